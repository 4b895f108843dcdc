//! What makes machines of a topology: the namespaces of this machine, or the virtual machines of
//! the Vagrantfile.

mod namespaces;
mod vagrant;
mod wires;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;

pub use namespaces::Namespaces;
pub use vagrant::Vagrant;

use crate::{
    Result,
    cluster::contexts,
    http::Response,
    node::control::{DaemonSpec, DaemonState},
    topology::Topology,
};

/// What a command on a node printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code, 128 + signal when killed.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

/// A node's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// No power, or never started.
    Off,
    /// It runs.
    On,
    /// It stands still, with everything in it.
    Paused,
}

/// Machines, their power, and the wires between them. Every method may be called by a later
/// process than the one that made the machines.
pub trait Backend: Send + Sync {
    /// What the machines are made of.
    fn topology(&self) -> &Topology;

    /// How a person calls `trellis-lab` for these machines.
    fn command(&self) -> String {
        match self.topology().name.as_str() {
            "lab" => "trellis-lab".to_owned(),
            name => format!("trellis-lab -n {name}"),
        }
    }

    /// Prepares for machines: folders, the network between. No node runs yet.
    fn create(&self) -> Result<()>;

    /// Removes everything, whatever state it is in. A no-op when nothing is there.
    fn destroy(&self) -> Result<()>;

    /// Power on: answers when the node takes commands. A no-op when it runs.
    fn start(&self, node: &str) -> Result<()>;

    /// Power cut: no packet and no process of it after this. A no-op when it is off.
    fn kill(&self, node: &str) -> Result<()>;

    /// It stands still until [`Backend::resume`].
    fn pause(&self, node: &str) -> Result<()>;

    /// It goes on.
    fn resume(&self, node: &str) -> Result<()>;

    /// Power cut, and its disk is empty afterwards.
    fn wipe(&self, node: &str) -> Result<()>;

    /// Nodes of different groups do not reach each other; nodes in no group form another one.
    fn partition(&self, groups: &[Vec<String>]) -> Result<()>;

    /// Packets from nodes of the first group to nodes of the second are dropped; those back pass.
    /// Ends an earlier partition.
    fn cut_one_way(&self, _from: &[String], _to: &[String]) -> Result<()> {
        wires::cannot("be partitioned one way")
    }

    /// Of the packets from and to a node this share each is lost, in hundredths of a percent
    /// ([`crate::fault::state::WHOLE`] is all); 0 ends it.
    fn lose(&self, _node: &str, _share: u32) -> Result<()> {
        wires::cannot("lose packets")
    }

    /// Packets from and to a node take so much longer each way; zero ends it.
    fn delay(&self, _node: &str, _by: Duration) -> Result<()> {
        wires::cannot("delay packets")
    }

    /// Everybody reaches everybody; nothing is lost or late.
    fn heal(&self) -> Result<()>;

    /// How it is.
    fn power(&self, node: &str) -> Result<Power>;

    /// Runs a command on a node to its end, with no input.
    fn run(&self, node: &str, argv: &[&str], env: &BTreeMap<String, String>) -> Result<Output>;

    /// Keeps a daemon running on a node.
    fn start_daemon(&self, node: &str, daemon: DaemonSpec) -> Result<()>;

    /// Ends a daemon of a node for good; answers when it is gone.
    fn stop_daemon(&self, node: &str, daemon: &str) -> Result<()>;

    /// Sends a signal to a daemon; it is started again when it ends of it.
    fn signal_daemon(&self, node: &str, daemon: &str, signal: i32) -> Result<()>;

    /// The daemons of a node.
    fn daemons(&self, node: &str) -> Result<Vec<DaemonState>>;

    /// The endpoint (`unix://…` or `https://…`) under which this machine reaches the API member
    /// on that node.
    fn api_endpoint(&self, node: &str) -> String;

    /// Asks a web server over HTTP, as the node itself would.
    fn http_get(&self, node: &str, address: SocketAddr, path: &str, limit: Duration) -> Result<Response>;

    /// Where this machine sees a daemon's log.
    fn log(&self, node: &str, daemon: &str) -> PathBuf;

    /// The context of `trellis` for this cluster.
    fn context(&self) -> String {
        contexts::name_of(&self.topology().name)
    }

    /// A node that starts has its daemons started by itself, as an installation does.
    fn daemons_start_themselves(&self) -> bool {
        false
    }

    /// Where this machine can watch the gossip of that node; none where it is out of reach.
    fn membership_socket(&self, node: &str) -> Option<PathBuf>;
}
