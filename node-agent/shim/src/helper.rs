//! Forked helpers: what they tell the shim, and how it listens.
//!
//! A helper writes one JSON line a report to its end of a socket pair; descriptors (a terminal's
//! master) travel beside. The shim never blocks on it; one that takes too long is killed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use trellis_shim_protocol::HELPER_TIMEOUT;
use trellis_shim_protocol::client::{receive_with_fds, send_with_fds};

/// A report is an error text at most.
const MAX_REPORT_BYTES: usize = 64 * 1024;

/// What a helper says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The process it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// For the shim's log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// In the helper: sends a report. Nobody listening means that the shim has given up on it.
pub fn report(socket: &UnixStream, report: &Report, fds: &[BorrowedFd<'_>]) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.truncate(MAX_REPORT_BYTES - 1);
    line.push(b'\n');
    if let Ok(sent) = send_with_fds(socket, &line, fds) {
        let _ = io::Write::write_all(&mut &*socket, &line[sent..]);
    }
}

/// What a helper is for.
#[derive(Debug)]
pub enum Purpose {
    /// Making this container.
    Create(String),
    /// Starting this exec.
    Exec(u64),
}

/// In the shim: a running helper.
#[derive(Debug)]
pub struct Helper {
    /// Its process.
    pub pid: i32,
    /// The shim's end; non-blocking.
    pub socket: UnixStream,
    /// What it is for.
    pub purpose: Purpose,
    /// Who waits for it.
    pub conn: u64,
    /// When it is killed.
    pub deadline: Instant,
    /// All reports so far, merged.
    pub said: Report,
    /// Descriptors that came along.
    pub fds: VecDeque<OwnedFd>,
    /// It has closed its end.
    pub ended: bool,
    bytes: Vec<u8>,
}

impl Helper {
    pub fn new(pid: i32, socket: UnixStream, purpose: Purpose, conn: u64) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            pid,
            socket,
            purpose,
            conn,
            deadline: Instant::now() + HELPER_TIMEOUT,
            said: Report::default(),
            fds: VecDeque::new(),
            ended: false,
            bytes: Vec::new(),
        })
    }

    /// Reads all that is there.
    pub fn listen(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match receive_with_fds(&self.socket, &mut buffer, &mut self.fds) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) if self.bytes.len() + n <= 2 * MAX_REPORT_BYTES => self.bytes.extend_from_slice(&buffer[..n]),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.ended = e.kind() != io::ErrorKind::WouldBlock;
                    break;
                }
            }
        }
        while let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            match serde_json::from_slice::<Report>(&line) {
                Ok(report) => {
                    self.said.pid = report.pid.or(self.said.pid);
                    self.said.error = report.error.or(self.said.error.take());
                    self.said.notes.extend(report.notes);
                }
                Err(e) => self.said.error = Some(format!("the helper's report is not valid: {e}")),
            }
        }
    }

    /// It has said all: a create after its one report (the container keeps the socket open until
    /// its `execve`), an exec when the socket is closed (by its `execve`).
    pub fn is_done(&self) -> bool {
        match self.purpose {
            Purpose::Create(_) => self.ended || self.said.pid.is_some() || self.said.error.is_some(),
            Purpose::Exec(_) => self.ended,
        }
    }
}
