//! `trellis-lab`: whole clusters on one Linux machine, in namespaces, broken on purpose.
//!
//! A [`topology::Topology`] says which nodes there are; a [`backend::Backend`] makes machines
//! of it (namespaces here; virtual machines are a second backend of the same topology);
//! [`cluster`] installs the real binaries on them as an administrator would, and [`fault`]
//! breaks what lies between them. Nothing here talks to a daemon but through the API, the
//! command line and the unix sockets that it serves anyway.
//!
//! Left out on purpose: the library keeps no process of its own running. Everything that a
//! later invocation needs lies in the lab's folder (see [`layout`]), so that a lab survives its
//! maker and can be taken down after the maker was killed.
#![forbid(unsafe_code)]

pub mod backend;
pub mod bench;
pub mod cgroup;
pub mod cluster;
pub mod demo;
pub mod error;
pub mod fault;
pub mod http;
pub mod layout;
mod netlink;
pub mod netns;
pub mod node;
pub mod peer;
pub mod process;
pub mod programs;
pub mod progress;
pub mod remains;
pub mod status;
pub mod topology;
pub mod wait;
pub mod workload;

pub use error::{Error, Result};
