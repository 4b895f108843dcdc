//! A netlink socket: requests out, answers in, acknowledgements awaited.
//!
//! Written over `nix` because a socket must be made from a descriptor that another process
//! handed over, and netlink-sys offers that only as `unsafe`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::KernelError;

/// The kernel answers at once; longer means that an answer was lost.
const ANSWER_TIMEOUT_SECONDS: i64 = 5;
/// A batch of ten thousand set elements is one message of about 1 MB.
const SEND_BUFFER_BYTES: usize = 8 << 20;
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// The kernel fills dump buffers of up to 32 KiB (netlink(7)); errors echo what they are about.
const DATAGRAM_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Tries of a dump that kept being interrupted by changes.
const DUMP_TRIES: usize = 8;

/// One received message, without its header.
#[derive(Debug)]
pub struct Reply {
    /// nlmsg_type.
    pub kind: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// A netlink socket bound to the network namespace it was opened in.
#[derive(Debug)]
pub struct NetlinkSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket in the calling thread's network namespace, subscribed to `groups`.
    pub fn open(protocol: SockProtocol, groups: u32) -> Result<Self, KernelError> {
        let failed = |source: nix::Error| KernelError::Refused {
            verb: "open netlink socket",
            object: format!("{protocol:?}"),
            source: source.into(),
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed)?;
        Ok(Self::from_fd(fd))
    }

    /// Takes over an open netlink socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // Best effort: without CAP_NET_ADMIN the defaults remain, and large batches fail loudly.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER_BYTES);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
        let _ = setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_SECONDS, 0));
        Self { fd, sequence: 0, buffer: vec![0; DATAGRAM_BYTES] }
    }

    /// The descriptor, to wait for events on.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reserves `count` sequence numbers; answers the first.
    pub fn reserve(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count.max(1));
        first
    }

    /// Sends one request (header included; its sequence number is set here) and collects answers
    /// until the acknowledgement, the end of a dump, or an error.
    pub fn request(&mut self, message: &mut [u8], dump: bool) -> io::Result<Vec<Reply>> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.reserve(1);
            message[8..12].copy_from_slice(&sequence.to_ne_bytes());
            self.send(message)?;
            let (replies, interrupted) = self.collect(sequence, dump)?;
            if !interrupted {
                return Ok(replies);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the dump was interrupted by changes over and over"))
    }

    /// Sends several messages at once and waits for the answer to the one numbered `last`; the
    /// first error among the answers is the result.
    pub fn transact(&mut self, messages: &[u8], last: u32) -> io::Result<()> {
        self.send(messages)?;
        let mut failure: Option<io::Error> = None;
        loop {
            let length = match self.receive() {
                Ok(length) => length,
                // After an error the kernel may have given up before the last message.
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            for (header, payload) in Messages::new(&self.buffer[..length]) {
                if header.kind != NLMSG_ERROR {
                    continue;
                }
                if let Some(error) = error_of(payload) {
                    tracing::debug!(message = header.sequence, %last, %error, "netlink refused one of several messages");
                    failure.get_or_insert(error);
                }
                if header.sequence == last || failure.is_some() {
                    return match failure {
                        Some(error) => {
                            self.drain();
                            Err(error)
                        }
                        None => Ok(()),
                    };
                }
            }
        }
    }

    /// Throws away everything that waits; true when there was anything.
    pub fn drain(&mut self) -> bool {
        let mut any = false;
        while let Ok(length) = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            if length == 0 {
                break;
            }
            any = true;
        }
        any
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendto(self.fd.as_raw_fd(), bytes, &kernel, MsgFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::WriteZero, "message cut short")) }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answer longer than 64 KiB"));
                }
                Ok(length) => return Ok(length),
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer within 5 s"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn collect(&mut self, sequence: u32, dump: bool) -> io::Result<(Vec<Reply>, bool)> {
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.receive()?;
            for (header, payload) in Messages::new(&self.buffer[..length]) {
                // Left-overs of a request that timed out.
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_ERROR => match error_of(payload) {
                        Some(error) => return Err(error),
                        None => return Ok((replies, interrupted)),
                    },
                    NLMSG_DONE => {
                        // A dump that fails half way says so in its end.
                        return match error_of(payload) {
                            Some(error) if dump => Err(error),
                            _ => Ok((replies, interrupted)),
                        };
                    }
                    kind => replies.push(Reply { kind, payload: payload.to_vec() }),
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages in one datagram.
struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.len() < HEADER_BYTES {
            return None;
        }
        let half = |at: usize| u16::from_ne_bytes([self.rest[at], self.rest[at + 1]]);
        let word =
            |at: usize| u32::from_ne_bytes([self.rest[at], self.rest[at + 1], self.rest[at + 2], self.rest[at + 3]]);
        let length = (word(0) as usize).clamp(HEADER_BYTES, self.rest.len());
        let header = Header { kind: half(4), flags: half(6), sequence: word(8) };
        let payload = &self.rest[HEADER_BYTES..length];
        self.rest = &self.rest[length.next_multiple_of(4).min(self.rest.len())..];
        Some((header, payload))
    }
}

fn error_of(payload: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    (code < 0).then(|| io::Error::from_raw_os_error(-code))
}

/// Builds the 16-byte header in front of a payload; the sequence number is set when sending.
pub fn frame(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + payload.len();
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(payload);
    message
}
