//! handoff.sock: the agent hands over a Pod's network namespace and a socket opened inside it.
//!
//! SOCK_SEQPACKET; one packet is the pod uid as text with two descriptors in SCM_RIGHTS, `[netns,
//! rtnetlink socket]`; the answer is a packet `ok` or `error: …`. gRPC cannot carry descriptors,
//! hence this socket of its own beside attach.sock.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recvmsg, send, socket_with,
};
use tokio::sync::{mpsc, oneshot};

use crate::engine::Event;

/// A pod uid is 36 characters; the rest is room for other makers of uids.
const MAX_UID_BYTES: usize = 128;
const DESCRIPTORS: usize = 2;
/// An agent sends at once after connecting.
const PATIENCE: Duration = Duration::from_secs(2);
const BACKLOG: i32 = 64;

/// Listens at `path`; connections are served one after the other on a thread of its own.
pub fn serve(path: &Path, events: mpsc::Sender<Event>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    listen(&listener, BACKLOG)?;
    std::thread::Builder::new().name("handoff".into()).spawn(move || accept_all(&listener, &events))?;
    Ok(())
}

fn accept_all(listener: &OwnedFd, events: &mpsc::Sender<Event>) {
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => {
                if let Err(error) = serve_one(&connection, events) {
                    tracing::warn!(%error, "handoff failed");
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept on handoff.sock");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        if events.is_closed() {
            return;
        }
    }
}

/// Serves packets until the other side closes.
fn serve_one(connection: &OwnedFd, events: &mpsc::Sender<Event>) -> io::Result<()> {
    set_socket_timeout(connection, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(connection, Timeout::Send, Some(PATIENCE))?;
    loop {
        let answer = match receive(connection)? {
            None => return Ok(()),
            Some(Ok((uid, netns, socket))) => hand_on(uid, netns, socket, events),
            Some(Err(what)) => Err(what),
        };
        let text = match answer {
            Ok(()) => "ok".to_owned(),
            Err(what) => format!("error: {what}"),
        };
        send(connection, text.as_bytes(), SendFlags::NOSIGNAL)?;
    }
}

type Handed = Result<(String, OwnedFd, OwnedFd), String>;

fn receive(connection: impl AsFd) -> io::Result<Option<Handed>> {
    let mut bytes = [0; MAX_UID_BYTES + 1];
    // One more than wanted, so that too many are seen as such (and closed).
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(connection, &mut [io::IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::with_capacity(DESCRIPTORS);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.bytes > MAX_UID_BYTES {
        return Ok(Some(Err(format!("a pod uid has at most {MAX_UID_BYTES} bytes"))));
    }
    let Ok(uid) = std::str::from_utf8(&bytes[..received.bytes]) else {
        return Ok(Some(Err("the pod uid is not text".into())));
    };
    let found = descriptors.len();
    let mut descriptors = descriptors.into_iter();
    match (descriptors.next(), descriptors.next(), descriptors.next()) {
        (Some(netns), Some(socket), None) => Ok(Some(Ok((uid.trim().to_owned(), netns, socket)))),
        _ => Ok(Some(Err(format!("{found} descriptors; two are wanted: [netns, rtnetlink socket]")))),
    }
}

fn hand_on(uid: String, netns: OwnedFd, socket: OwnedFd, events: &mpsc::Sender<Event>) -> Result<(), String> {
    if uid.is_empty() {
        return Err("the pod uid is empty".into());
    }
    if rustix::net::sockopt::socket_domain(&socket).ok() != Some(AddressFamily::NETLINK) {
        return Err("the second descriptor is no netlink socket".into());
    }
    let (reply, answer) = oneshot::channel();
    events.blocking_send(Event::Handoff { uid, netns, socket, reply }).map_err(|_| "netd is stopping".to_owned())?;
    answer.blocking_recv().map_err(|_| "netd is stopping".to_owned())
}
