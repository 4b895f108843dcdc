//! `trellis-lab status`: what the lab knows of its nodes, and what the cluster says of them.

use serde::Serialize;

use crate::{
    Result,
    backend::{Backend, Power},
    cluster::{Api, api::condition},
    layout::Layout,
    node::control::DaemonState,
};

/// One lab.
#[derive(Clone, Debug, Serialize)]
pub struct LabStatus {
    /// Its name.
    pub lab: String,
    /// The context of `trellis`.
    pub context: String,
    /// Who leads; none when the API does not answer.
    pub leader: Option<String>,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: String,
    /// Does it carry the control plane?
    pub control_plane: bool,
    /// Its power.
    pub power: Power,
    /// The Ready condition of its Node; none when the API does not answer or knows no such Node.
    pub ready: Option<String>,
    /// Its daemons; empty when it is off or paused.
    pub daemons: Vec<DaemonState>,
}

/// Looks at everything.
pub fn collect(backend: &dyn Backend, layout: &Layout) -> Result<LabStatus> {
    let topology = backend.topology();
    // A lab whose API is down has a status all the same.
    let api = Api::open(&layout.contexts()).ok();
    let status = api.as_ref().and_then(|a| a.status().ok());
    let cluster_nodes = match (&api, &status) {
        (Some(api), Some(_)) => api.list("Node", "", "").unwrap_or_default(),
        _ => Vec::new(),
    };
    let mut nodes = Vec::with_capacity(topology.nodes.len());
    for node in &topology.nodes {
        let power = backend.power(&node.name)?;
        let known = cluster_nodes.iter().find(|n| n["metadata"]["name"] == node.name.as_str());
        nodes.push(NodeStatus {
            name: node.name.clone(),
            address: node.address.to_string(),
            control_plane: node.is_control_plane(),
            power,
            ready: known.and_then(|n| condition(n, "Ready")).map(str::to_owned),
            // A paused init does not answer.
            daemons: if power == Power::On { backend.daemons(&node.name)? } else { Vec::new() },
        });
    }
    let leader = status.and_then(|s| s.members.into_iter().find(|m| m.id == s.leader_id).map(|m| m.name));
    Ok(LabStatus { lab: topology.name.clone(), context: backend.context(), leader, nodes })
}

/// A table for a person.
#[must_use]
pub fn table(status: &LabStatus) -> String {
    let leader = status.leader.as_deref().unwrap_or("the API does not answer");
    let mut text = format!("lab {}  context {}  leader {leader}\n\n", status.lab, status.context);
    text.push_str(&format!("{:<10} {:<15} {:<7} {:<8} {:<24} DAEMONS\n", "NODE", "ADDRESS", "POWER", "READY", "ROLE"));
    for node in &status.nodes {
        let power = format!("{:?}", node.power).to_lowercase();
        let role = if node.control_plane { "control-plane" } else { "worker" };
        let daemons: Vec<String> = node.daemons.iter().map(daemon).collect();
        text.push_str(&format!(
            "{:<10} {:<15} {power:<7} {:<8} {role:<24} {}\n",
            node.name,
            node.address,
            node.ready.as_deref().unwrap_or("-"),
            daemons.join("  ")
        ));
    }
    text
}

fn daemon(state: &DaemonState) -> String {
    let how = match (state.pid, state.wanted) {
        (Some(_), _) => String::new(),
        (None, true) => format!(" down: {}", state.last_exit.as_deref().unwrap_or("not started yet")),
        (None, false) => " stopped".to_owned(),
    };
    let restarts = if state.restarts > 0 { format!(" ({} restarts)", state.restarts) } else { String::new() };
    format!("{}{how}{restarts}", state.name)
}
