//! One node of the namespaces backend: a machine made of namespaces, cgroups and folders.
//!
//! ```text
//! trellis-lab (any invocation)
//!   └ node-spawn   joins the node's cgroups, unshares all namespaces, starts the init, ends
//!       └ node-init  PID 1 of the node: root file system, then daemons and orphans until killed
//!           ├ trellis-control-plane, trellis-netd, trellis-node-agent
//!           └ …
//! ```
//! Power off is SIGKILL to node-init: the kernel then ends everything in its PID namespace.

pub mod control;
pub mod enter;
pub mod init;
pub mod rootfs;
pub mod spawn;
mod supervisor;

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupDir;

/// Where the cluster's binaries are on a node.
pub const NODE_BIN: &str = "/opt/trellis/bin";
/// What is looked up first on a node.
pub const NODE_PATH: &str = "/opt/trellis/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The ordinary user that the control plane runs as on a node; no machine has it already.
pub const TRELLIS_USER: u32 = 64_646;
/// The init's control socket below the node's `lab` folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// What node-spawn and node-init are told, as a file in the node's `lab` folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Host name.
    pub name: String,
    /// The node's folder on this machine.
    pub root: PathBuf,
    /// All labs' folder, hidden from the node.
    pub labs: PathBuf,
    /// The cluster's binaries on this machine.
    pub bin_dir: PathBuf,
    /// The node's cgroups.
    pub cgroups: Vec<CgroupDir>,
    /// All nodes, for /etc/hosts.
    pub hosts: Vec<(Ipv4Addr, String)>,
}
