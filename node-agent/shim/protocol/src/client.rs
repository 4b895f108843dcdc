//! The blocking client of one shim.
//!
//! Made for `spawn_blocking` or a thread of its own. An async agent that only wants
//! [`Request::Events`] or [`Request::Wait`] can use its own socket with [`crate::codec`]: those
//! carry no descriptors.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::codec::{CodecError, Decoder, encode};
use crate::{ContainerState, CreateContainer, ErrorCode, Event, Exec, Exit, Reply, Request, SandboxState};
use crate::{HELPER_TIMEOUT, MAX_FRAME_FDS, offered_versions};

/// Nothing but a helper's work takes a second; the removal of a container is bounded by some ten.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What a helper does may wait for a slow disk. The shim gives it up first, and says so: a request that
/// is counted as failed must not come to pass later.
const HELPER_REQUEST_TIMEOUT: Duration = HELPER_TIMEOUT.saturating_add(Duration::from_secs(15));

/// Why talking to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket: not there, closed, or timed out. When it is gone for good, so is the shim.
    #[error("shim at {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not a valid frame.
    #[error("shim at {path}: {source}")]
    Codec {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The shim refused.
    #[error("{message}")]
    Refused {
        /// What kind of failure.
        code: ErrorCode,
        /// The shim's words.
        message: String,
    },
    /// An answer that does not belong to the request.
    #[error("shim at {path} answered {what} with something else")]
    Unexpected {
        /// The socket.
        path: PathBuf,
        /// The request.
        what: &'static str,
    },
}

impl ClientError {
    /// The shim's error code, if it was the shim that refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The socket is not there or its listener is dead: no shim runs behind it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        ))
    }
}

/// A connection to one shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    decoder: Decoder<Reply>,
    fds: VecDeque<OwnedFd>,
    version: u32,
    pod_uid: String,
}

impl Client {
    /// Connects and agrees on a version.
    ///
    /// # Errors
    /// When nobody listens or no version is common.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let io = |source| ClientError::Io { path: socket.to_owned(), source };
        let stream = UnixStream::connect(socket).map_err(io)?;
        let mut client = Self {
            stream,
            path: socket.to_owned(),
            decoder: Decoder::default(),
            fds: VecDeque::new(),
            version: 0,
            pod_uid: String::new(),
        };
        match client.call(&Request::Hello { versions: offered_versions() })? {
            Reply::Hello { version, pod_uid, .. } => {
                client.version = version;
                client.pod_uid = pod_uid;
                Ok(client)
            }
            _ => Err(client.unexpected("hello")),
        }
    }

    /// The version both sides speak.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whose shim this is.
    #[must_use]
    pub fn pod_uid(&self) -> &str {
        &self.pod_uid
    }

    /// The shim's process id as this process' PID namespace numbers it.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn shim_pid(&self) -> Result<i32, ClientError> {
        rustix::net::sockopt::socket_peercred(&self.stream)
            .map(|c| c.pid.as_raw_nonzero().get())
            .map_err(|e| self.io(e.into()))
    }

    /// Everything the shim knows.
    ///
    /// # Errors
    /// See [`ClientError`]; the same holds for all methods below.
    pub fn state(&mut self) -> Result<SandboxState, ClientError> {
        match self.call(&Request::State)? {
            Reply::State(state) => Ok(*state),
            _ => Err(self.unexpected("state")),
        }
    }

    /// The Pod's network namespace and an rtnetlink socket that lives in it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn netns(&mut self) -> Result<(OwnedFd, OwnedFd), ClientError> {
        match self.call(&Request::GetNetns)? {
            Reply::Netns => match (self.fds.pop_front(), self.fds.pop_front()) {
                (Some(netns), Some(rtnetlink)) => Ok((netns, rtnetlink)),
                _ => Err(self.unexpected("get_netns")),
            },
            _ => Err(self.unexpected("get_netns")),
        }
    }

    /// Makes a container.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create(&mut self, create: CreateContainer) -> Result<ContainerState, ClientError> {
        let request = Request::CreateContainer(Box::new(create));
        match self.call_with(&request, &[], Some(HELPER_REQUEST_TIMEOUT))? {
            Reply::Created(state) => Ok(*state),
            _ => Err(self.unexpected("create_container")),
        }
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn start(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(&Request::StartContainer { id: id.to_owned() }, "start_container")
    }

    /// Signals a container's first process, or all its processes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn signal(&mut self, id: &str, signal: i32, all: bool) -> Result<(), ClientError> {
        self.done(&Request::Signal { id: id.to_owned(), signal, all }, "signal")
    }

    /// Blocks until the container has ended or `timeout` is over (an `Io` error of kind
    /// `WouldBlock` or `TimedOut`; the connection is then to be dropped).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn wait(&mut self, id: &str, timeout: Option<Duration>) -> Result<Exit, ClientError> {
        self.exited(&Request::Wait { id: id.to_owned() }, timeout, "wait")
    }

    /// Removes a container, killing it if need be.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&mut self, id: &str, remove_upper: bool) -> Result<(), ClientError> {
        self.done(&Request::DeleteContainer { id: id.to_owned(), remove_upper }, "delete_container")
    }

    /// Runs a process without a terminal on the three descriptors given.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn exec(&mut self, exec: Exec, stdio: [BorrowedFd<'_>; 3]) -> Result<u64, ClientError> {
        match self.call_with(&Request::Exec(Box::new(exec)), &stdio, Some(HELPER_REQUEST_TIMEOUT))? {
            Reply::ExecStarted { exec_id } => Ok(exec_id),
            _ => Err(self.unexpected("exec")),
        }
    }

    /// Runs a process on a terminal of its own; gives the terminal's master.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn exec_tty(&mut self, exec: Exec) -> Result<(u64, OwnedFd), ClientError> {
        let exec = Exec { tty: true, ..exec };
        match self.call_with(&Request::Exec(Box::new(exec)), &[], Some(HELPER_REQUEST_TIMEOUT))? {
            Reply::ExecStarted { exec_id } => match self.fds.pop_front() {
                Some(master) => Ok((exec_id, master)),
                None => Err(self.unexpected("exec")),
            },
            _ => Err(self.unexpected("exec")),
        }
    }

    /// Blocks until the process has ended.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn wait_exec(&mut self, exec_id: u64, timeout: Option<Duration>) -> Result<Exit, ClientError> {
        self.exited(&Request::WaitExec { exec_id }, timeout, "wait_exec")
    }

    /// Signals an exec'd process.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn signal_exec(&mut self, exec_id: u64, signal: i32) -> Result<(), ClientError> {
        self.done(&Request::SignalExec { exec_id, signal }, "signal_exec")
    }

    /// Reopens a container's log by its path.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reopen_logs(&mut self, id: &str) -> Result<(), ClientError> {
        self.done(&Request::ReopenLogs { id: id.to_owned() }, "reopen_logs")
    }

    /// Arms, renews or disarms the stop deadline.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_stop_deadline(&mut self, after_millis: Option<u64>) -> Result<(), ClientError> {
        self.done(&Request::SetStopDeadline { after_millis }, "set_stop_deadline")
    }

    /// Ends the Pod: all containers are killed, the shim ends.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn shutdown(mut self) -> Result<(), ClientError> {
        self.done(&Request::Shutdown, "shutdown")
    }

    /// Makes this connection an event stream.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn events(mut self, after: u64) -> Result<EventStream, ClientError> {
        self.send(&Request::Events { after }, &[])?;
        Ok(EventStream { client: self })
    }

    /// Sends any request and gives its reply; an error reply becomes [`ClientError::Refused`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.call_with(request, &[], Some(REQUEST_TIMEOUT))
    }

    fn call_with(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<Reply, ClientError> {
        self.fds.clear();
        self.send(request, fds)?;
        self.receive(timeout)
    }

    fn done(&mut self, request: &Request, what: &'static str) -> Result<(), ClientError> {
        match self.call(request)? {
            Reply::Done => Ok(()),
            _ => Err(self.unexpected(what)),
        }
    }

    fn exited(
        &mut self,
        request: &Request,
        timeout: Option<Duration>,
        what: &'static str,
    ) -> Result<Exit, ClientError> {
        match self.call_with(request, &[], timeout)? {
            Reply::Exited(exit) => Ok(exit),
            _ => Err(self.unexpected(what)),
        }
    }

    fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let bytes = encode(request).map_err(|source| ClientError::Codec { path: self.path.clone(), source })?;
        self.stream.set_write_timeout(Some(REQUEST_TIMEOUT)).map_err(|e| self.io(e))?;
        let sent = send_with_fds(&self.stream, &bytes, fds).map_err(|e| self.io(e))?;
        self.stream.write_all(&bytes[sent..]).map_err(|e| self.io(e))
    }

    fn receive(&mut self, timeout: Option<Duration>) -> Result<Reply, ClientError> {
        let deadline = timeout.map(|t| Instant::now() + t);
        loop {
            let next = self.decoder.next_frame();
            match next.map_err(|source| ClientError::Codec { path: self.path.clone(), source })? {
                Some(Reply::Error { code, message }) => return Err(ClientError::Refused { code, message }),
                Some(reply) => return Ok(reply),
                None => {}
            }
            let left = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Err(self.io(io::ErrorKind::TimedOut.into())),
                left => left,
            };
            self.stream.set_read_timeout(left).map_err(|e| self.io(e))?;
            let mut buffer = [0; 16 * 1024];
            match receive_with_fds(&self.stream, &mut buffer, &mut self.fds) {
                Ok(0) => return Err(self.io(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.decoder.feed(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(e)),
            }
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }

    fn unexpected(&self, what: &'static str) -> ClientError {
        ClientError::Unexpected { path: self.path.clone(), what }
    }
}

/// A connection that has become a stream of events. Its end means that the shim has died or shut down.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
}

impl EventStream {
    /// The next event; `Ok(None)` when `timeout` is over first.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::is_gone`] when the shim is.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, ClientError> {
        match self.client.receive(timeout) {
            Ok(Reply::Event(event)) => Ok(Some(event)),
            Ok(_) => Err(self.client.unexpected("events")),
            Err(ClientError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Sends the beginning of `bytes` with `fds` beside it; gives how many bytes went out.
///
/// # Errors
/// What the kernel says; `InvalidInput` for more than [`MAX_FRAME_FDS`] descriptors.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MAX_FRAME_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one frame"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Reads once; descriptors that came along are put at the end of `fds` (close-on-exec).
///
/// # Errors
/// What the kernel says.
pub fn receive_with_fds(socket: impl AsFd, buffer: &mut [u8], fds: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(got.bytes)
}
