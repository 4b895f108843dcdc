//! The client of this node's netd: two descriptors over a SOCK_SEQPACKET socket, then gRPC over a
//! unix socket that only root may open. Every call is idempotent by pod uid; netd may restart
//! between any two of them, so each connects anew where that is needed.
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
};
use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::transport::{Channel, Endpoint};
use trellis_proto::netd::{
    AttachReply, AttachRequest, DetachRequest, StatusReply, StatusRequest, pod_network_client::PodNetworkClient,
};

/// netd answers in milliseconds; when it does not, the lifecycle machine tries again.
const CALL_TIMEOUT: Duration = trellis_proto::patience::ATTACH_LIMIT;
/// For the same reason, in the blocking handoff.
const HANDOFF_TIMEOUT_SECS: i64 = 5;

/// Why netd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// Its socket cannot be reached.
    #[error("netd at {path}: {source}: is trellis-netd running?")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It refused the descriptors.
    #[error("netd refused the network namespace of pod {uid}: {message}")]
    Refused {
        /// The Pod.
        uid: String,
        /// netd's words.
        message: String,
    },
    /// A call failed.
    #[error("netd: {0}")]
    Call(String),
}

/// Handle on netd.
#[derive(Clone, Debug)]
pub struct Netd {
    handoff: PathBuf,
    attach: PathBuf,
    channel: Channel,
}

impl Netd {
    /// For the sockets in `<run dir>/netd`. Nothing is dialled yet.
    pub fn new(run_dir: &Path) -> Result<Self, NetdError> {
        let dir = run_dir.join("netd");
        let attach = dir.join("attach.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", attach.display()))
            .map_err(|e| NetdError::Call(e.to_string()))?
            .connect_timeout(CALL_TIMEOUT)
            .timeout(CALL_TIMEOUT);
        Ok(Self { handoff: dir.join("handoff.sock"), attach, channel: endpoint.connect_lazy() })
    }

    /// Hands over the netns, then awaits addresses, routes and policy.
    pub async fn attach(
        &self,
        uid: &str,
        namespace: &str,
        pod: &str,
        fds: (OwnedFd, OwnedFd),
    ) -> Result<AttachReply, NetdError> {
        let (path, id) = (self.handoff.clone(), uid.to_owned());
        let handed = tokio::task::spawn_blocking(move || handoff(&path, &id, &fds.0, &fds.1)).await;
        handed.map_err(|e| NetdError::Call(e.to_string()))??;
        let request = AttachRequest { pod_uid: uid.into(), namespace: namespace.into(), pod: pod.into() };
        let mut client = PodNetworkClient::new(self.channel.clone());
        Ok(client.attach(request).await.map_err(|e| self.failed(&e))?.into_inner())
    }

    /// Lets go of a Pod; one it does not know is fine.
    pub async fn detach(&self, uid: &str) -> Result<(), NetdError> {
        let mut client = PodNetworkClient::new(self.channel.clone());
        match client.detach(DetachRequest { pod_uid: uid.into() }).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(&status)),
        }
    }

    /// What netd holds.
    pub async fn status(&self) -> Result<StatusReply, NetdError> {
        let mut client = PodNetworkClient::new(self.channel.clone());
        Ok(client.status(StatusRequest {}).await.map_err(|e| self.failed(&e))?.into_inner())
    }

    fn failed(&self, status: &tonic::Status) -> NetdError {
        if status.code() == tonic::Code::Unavailable {
            let source = std::io::Error::other(status.message().to_owned());
            return NetdError::Socket { path: self.attach.clone(), source };
        }
        NetdError::Call(status.message().to_owned())
    }
}

fn handoff(path: &Path, uid: &str, netns: &OwnedFd, rtnetlink: &OwnedFd) -> Result<(), NetdError> {
    let answer = exchange(path, uid, netns, rtnetlink)
        .map_err(|e| NetdError::Socket { path: path.to_owned(), source: e.into() })?;
    if answer == "ok" {
        return Ok(());
    }
    let message = answer.strip_prefix("error: ").unwrap_or(&answer).to_owned();
    Err(NetdError::Refused { uid: uid.to_owned(), message })
}

fn exchange(path: &Path, uid: &str, netns: &OwnedFd, rtnetlink: &OwnedFd) -> Result<String, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let wait = Some(Duration::from_secs(HANDOFF_TIMEOUT_SECS.unsigned_abs()));
    for direction in [rustix::net::sockopt::Timeout::Recv, rustix::net::sockopt::Timeout::Send] {
        rustix::net::sockopt::set_socket_timeout(&socket, direction, wait)?;
    }
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [netns.as_fd(), rtnetlink.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(&socket, &[IoSlice::new(uid.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    let mut buffer = [0u8; 4096];
    let (n, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}
