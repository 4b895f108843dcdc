//! What a node's init is asked over its unix socket: one JSON line each way.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The init does nothing slow while it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// No request or answer is longer.
pub const LINE_LIMIT_BYTES: u64 = 1 << 20;

/// A question or order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Are you there?
    Ping,
    /// Keep this daemon running; a no-op when it is.
    Start {
        /// The daemon.
        daemon: DaemonSpec,
    },
    /// Send SIGTERM and leave it stopped.
    Stop {
        /// The daemon's name.
        name: String,
    },
    /// Send a signal; when it ends of it, it is started again.
    Signal {
        /// The daemon's name.
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Tell all daemons.
    List,
}

/// How a daemon is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonSpec {
    /// Its name, and its log's.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment beside PATH and HOME.
    pub env: BTreeMap<String, String>,
    /// User and group it runs as; root when absent.
    #[serde(default)]
    pub user: Option<u32>,
}

/// How a daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonState {
    /// Its name.
    pub name: String,
    /// Its process, as the node numbers it.
    pub pid: Option<i32>,
    /// Is it to run?
    pub wanted: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, or begun.
    Ok,
    /// To [`Request::List`].
    Daemons {
        /// All there are.
        daemons: Vec<DaemonState>,
    },
    /// Not done.
    Refused {
        /// Why.
        why: String,
    },
}

/// Asks the init behind the socket.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply> {
    let what = format!("ask the node's init at {}", socket.display());
    let io = || Error::io(what.clone());
    let mut stream = UnixStream::connect(socket).map_err(io())?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(io())?;
    let bad = |e: serde_json::Error| Error::Format { what: what.clone(), why: e.to_string() };
    let mut line = serde_json::to_vec(request).map_err(bad)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io())?;
    let mut answer = String::new();
    BufReader::new(std::io::Read::take(stream, LINE_LIMIT_BYTES)).read_line(&mut answer).map_err(io())?;
    match serde_json::from_str(&answer).map_err(bad)? {
        Reply::Refused { why } => Err(Error::Format { what, why }),
        reply => Ok(reply),
    }
}

/// All daemons of the node.
pub fn daemons(socket: &Path) -> Result<Vec<DaemonState>> {
    match ask(socket, &Request::List)? {
        Reply::Daemons { daemons } => Ok(daemons),
        _ => Ok(Vec::new()),
    }
}
