//! The lab's errors; each names what it was about and, where there is one, the way out.

use std::{io, path::PathBuf};

/// Result with the lab's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lab is already there.
    #[error("lab {name:?} already exists in {path}: `trellis-lab down --name {name}` removes it")]
    Exists {
        /// The lab.
        name: String,
        /// Its folder.
        path: PathBuf,
    },
    /// No such lab.
    #[error("there is no lab {name:?} (looked in {path}): `trellis-lab up --name {name}` makes one")]
    NoLab {
        /// The lab.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// No such node in the topology.
    #[error("lab {lab:?} has no node {node:?}; it has {known}")]
    NoNode {
        /// The lab.
        lab: String,
        /// What was asked for.
        node: String,
        /// What there is, comma separated.
        known: String,
    },
    /// The node's power is off.
    #[error("node {node} is off: `trellis-lab start {node}` starts it")]
    Off {
        /// The node.
        node: String,
    },
    /// A topology that cannot be built.
    #[error("topology: {0}")]
    Topology(String),
    /// What the machine lacks for a lab.
    #[error("{what}: {how}")]
    Lacking {
        /// What is missing.
        what: String,
        /// How to get it.
        how: String,
    },
    /// An operating system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{what}: {source}")]
    Netlink {
        /// What was being done, to what.
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A program ended with a failure.
    #[error("{what} failed ({status}){output}")]
    Command {
        /// The program and where it ran.
        what: String,
        /// How it ended.
        status: String,
        /// What it printed, indented, or nothing.
        output: String,
    },
    /// A state that was waited for did not come.
    #[error("{what} did not happen within {seconds} s; last seen: {last}")]
    Deadline {
        /// The state waited for.
        what: String,
        /// The limit.
        seconds: u64,
        /// The last observation.
        last: String,
    },
    /// The API refused a call.
    #[error("{what}: {message}")]
    Api {
        /// The call.
        what: String,
        /// What the API said.
        message: String,
    },
    /// Something of a lab outlived it.
    #[error("of lab {name} there is left: {left}")]
    Remains {
        /// The lab.
        name: String,
        /// What, semicolon separated.
        left: String,
    },
    /// A file or answer that cannot be understood.
    #[error("{what} cannot be read: {why}")]
    Format {
        /// The file or answer.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// For `map_err`: an I/O error about `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err`: an errno about `what`.
    pub fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source: source.into() }
    }

    /// For `map_err`: a netlink error about `what`.
    pub fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }

    /// For `map_err`: a refused API call.
    pub fn api(what: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let what = what.into();
        move |status| Self::Api { what, message: format!("{}: {}", status.code(), status.message()) }
    }
}
