//! One agent's connection: frames in, replies out, never blocking the loop.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use trellis_shim_protocol::client::{receive_with_fds, send_with_fds};
use trellis_shim_protocol::codec::{Decoder, encode};
use trellis_shim_protocol::{ErrorCode, Reply, Request};

/// Replies that an agent does not read: past this its connection is closed (it reconnects and
/// asks for the state, which has everything).
const MAX_UNREAD_BYTES: usize = 1024 * 1024;

/// Descriptors that came before the request they belong to was whole.
const MAX_WAITING_FDS: usize = 8;

/// What a connection is waiting for; while it waits, its next request is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Nothing: a request may come.
    No,
    /// A helper process will answer.
    Helper,
    /// A container's end.
    Container(String),
    /// An exec'd process' end.
    Exec(u64),
    /// Nothing any more: it is an event stream.
    Events,
}

/// A connection.
pub struct Conn {
    /// Non-blocking.
    pub stream: UnixStream,
    /// See [`Waiting`].
    pub waiting: Waiting,
    /// The agreed version; 0 before hello.
    pub version: u32,
    /// To be dropped once everything is sent.
    pub closing: bool,
    decoder: Decoder<Request>,
    fds: VecDeque<OwnedFd>,
    out: VecDeque<(Vec<u8>, usize, Vec<OwnedFd>)>,
    unread: usize,
}

impl Conn {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            waiting: Waiting::No,
            version: 0,
            closing: false,
            decoder: Decoder::default(),
            fds: VecDeque::new(),
            out: VecDeque::new(),
            unread: 0,
        })
    }

    /// Reads what is there. `false`: the agent is gone.
    pub fn fill(&mut self, buffer: &mut [u8]) -> bool {
        match receive_with_fds(&self.stream, buffer, &mut self.fds) {
            Ok(0) => false,
            Ok(n) => {
                self.decoder.feed(&buffer[..n]);
                self.fds.len() <= MAX_WAITING_FDS
            }
            Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// The next request with its descriptors, unless the connection is waiting.
    pub fn request(&mut self) -> Option<(Request, Vec<OwnedFd>)> {
        if self.waiting != Waiting::No || self.closing {
            return None;
        }
        match self.decoder.next_frame() {
            Ok(Some(request)) => Some((request, self.fds.drain(..).collect())),
            Ok(None) => None,
            Err(e) => {
                // A request of a newer protocol reads as bad JSON: say so, stay in step.
                self.reply(&Reply::Error { code: ErrorCode::Unsupported, message: e.to_string() }, Vec::new());
                self.closing = matches!(e, trellis_shim_protocol::codec::CodecError::TooLarge(_));
                None
            }
        }
    }

    /// Queues a reply.
    pub fn reply(&mut self, reply: &Reply, fds: Vec<OwnedFd>) {
        match encode(reply) {
            Ok(bytes) => {
                self.unread += bytes.len();
                self.out.push_back((bytes, 0, fds));
                if self.unread > MAX_UNREAD_BYTES {
                    self.out.clear();
                    self.closing = true;
                }
            }
            Err(_) => self.closing = true,
        }
    }

    /// There is something to send.
    pub fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sends what goes. `false`: the agent is gone.
    pub fn flush(&mut self) -> bool {
        while let Some((bytes, sent, fds)) = self.out.front_mut() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match send_with_fds(&self.stream, &bytes[*sent..], &borrowed) {
                Ok(n) => {
                    *sent += n;
                    fds.clear();
                    self.unread = self.unread.saturating_sub(n);
                    if *sent == bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}
