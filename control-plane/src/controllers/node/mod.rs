//! Node lifecycle: what the control plane writes into a Node, from the verdict about it.
//!
//! ```text
//! standing   Ready             NetworkUnavailable   taints
//! Healthy    the agent's word  False, or by `reach`  not-ready:NoSchedule while not Ready
//! Cut        the agent's word  True                 network-unavailable:NoSchedule
//! Silent     False             –                    not-ready:NoSchedule, after 40 s :NoExecute
//! Dead       Unknown           –                    unreachable:NoSchedule and :NoExecute
//! ```
//!
//! While more than half of the nodes are lost no NoExecute taint is added, and those of lost
//! nodes are taken away: nothing is evicted, since it is more likely us.
//!
//! The agent owns the Ready condition. When it is overruled, what it said stands in an
//! annotation, and is restored once its lease lives again.
//!
//! Cost of a plan: O(conditions + taints).

pub mod cidr;
pub mod evict;
pub mod reach;
pub mod taints;
#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use trellis_model::{Kind, Object, conditions};

use super::object::{HasMeta, Item, Note, Now, Plan, Write};
use crate::nodes::Standing;

/// How long a node may be NotReady before its Pods leave: Kubernetes' node-monitor grace
/// period, since an agent that is only being upgraded is back sooner.
pub const NOT_READY_GRACE: Duration = Duration::from_secs(40);
/// Holds the agent's own word while it is overruled.
pub const AGENT_READY: &str = "node.trellis.dev/agent-ready";

pub(crate) const READY: &str = "Ready";
pub(crate) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
const COMPONENT: &str = "node-controller";
const DEAD_REASON: &str = "NodeStatusUnknown";
const SILENT_REASON: &str = "AgentLeaseExpired";
const RESTORED_REASON: &str = "AgentLeaseRenewed";
const CUT_REASON: &str = "GossipUnreachable";
const JOINED_REASON: &str = "GossipReachable";

/// What a plan is made from.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The Node.
    pub node: &'a Item<Node>,
    /// The verdict.
    pub standing: Standing,
    /// How long this leader has seen it not Ready; `None`: it is Ready.
    pub not_ready_for: Option<Duration>,
    /// Nothing is to be evicted now.
    pub suspended: bool,
    /// Pod CIDRs to give it, if it has none.
    pub pod_cidrs: &'a [String],
    /// Whether routes lead from it to all others.
    pub reach: &'a reach::Finding,
}

/// Plans the one update that makes the Node say what is held of it.
pub fn plan(input: &Input<'_>, now: &Now) -> Plan {
    let mut plan = Plan::default();
    let before = &input.node.object;
    let mut node = before.clone();
    assign_cidrs(&mut node, input.pod_cidrs);
    ready_condition(&mut node, input.standing, now);
    network_condition(&mut node, input, now);
    let wanted = taints::wanted(&node, input);
    taints::apply(&mut node, wanted, now);
    if let Some(age) = input.not_ready_for
        && age < NOT_READY_GRACE
    {
        plan.again(now.mono + (NOT_READY_GRACE - age));
    }
    if node != *before {
        tell(before, &node, &mut plan);
        plan.writes.push(Write::Update { object: Object::Node(Box::new(node)), revision: input.node.revision });
    }
    plan
}

/// The Ready condition's status: "True", "False", "Unknown", or `None` before the agent spoke.
pub fn ready_status(node: &Node) -> Option<&str> {
    let list = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions::find(list, READY).map(|c| c.status.as_str())
}

/// What an earlier leader wrote into its object.
pub fn prior_standing(node: &Node) -> Standing {
    let list = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    match conditions::find(list, READY).and_then(|c| c.reason.as_deref()) {
        Some(DEAD_REASON) => Standing::Dead,
        Some(SILENT_REASON) => Standing::Silent,
        _ => Standing::Healthy,
    }
}

fn assign_cidrs(node: &mut Node, cidrs: &[String]) {
    let spec = node.spec.get_or_insert_default();
    let has = spec.pod_cidrs.as_ref().is_some_and(|c| !c.is_empty());
    if !has && let Some(first) = cidrs.first() {
        spec.pod_cidr = Some(first.clone());
        spec.pod_cidrs = Some(cidrs.to_vec());
    }
}

fn ready_condition(node: &mut Node, standing: Standing, now: &Now) {
    let current = {
        let list = node.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions::find(list, READY).cloned()
    };
    let reason = current.as_ref().and_then(|c| c.reason.as_deref()).unwrap_or_default();
    let ours = reason == DEAD_REASON || reason == SILENT_REASON;
    let overrule = match standing {
        Standing::Dead => {
            Some(("Unknown", DEAD_REASON, "The agent's lease expired and gossip declares the node dead."))
        }
        Standing::Silent => Some(("False", SILENT_REASON, "The agent stopped renewing its lease.")),
        Standing::Healthy | Standing::Cut => None,
    };
    let Some((status, reason, message)) = overrule else {
        restore_ready(node, ours, now);
        return;
    };
    if !ours {
        let word = current.map_or_else(|| "False".to_owned(), |c| c.status);
        node.metadata.annotations.get_or_insert_default().insert(AGENT_READY.to_owned(), word);
    }
    set_condition(node, READY, status, reason, message, now);
}

fn restore_ready(node: &mut Node, ours: bool, now: &Now) {
    let word = node.metadata.annotations.as_mut().and_then(|a| a.remove(AGENT_READY));
    if node.metadata.annotations.as_ref().is_some_and(|a| a.is_empty()) {
        node.metadata.annotations = None;
    }
    if ours {
        let word = word.unwrap_or_else(|| "False".to_owned());
        let message = "The agent renews its lease again; this is what it said last.";
        set_condition(node, READY, &word, RESTORED_REASON, message, now);
    }
}

fn network_condition(node: &mut Node, input: &Input<'_>, now: &Now) {
    if input.standing == Standing::Cut {
        let message =
            "Gossip declares the node dead, but its agent renews its lease: the pod network does not reach it.";
        set_condition(node, NETWORK_UNAVAILABLE, "True", CUT_REASON, message, now);
        return;
    }
    let list = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ours = conditions::find(list, NETWORK_UNAVAILABLE).is_some_and(|c| c.reason.as_deref() == Some(CUT_REASON));
    if input.standing != Standing::Healthy {
        return;
    }
    if let Some((status, reason, message)) = reach::condition(node, input.reach) {
        set_condition(node, NETWORK_UNAVAILABLE, status, reason, message, now);
    } else if ours {
        set_condition(node, NETWORK_UNAVAILABLE, "False", JOINED_REASON, "Gossip reaches the node.", now);
    }
}

fn set_condition(node: &mut Node, type_: &str, status: &str, reason: &str, message: &str, now: &Now) {
    let list = &mut node.status.get_or_insert_default().conditions;
    let same = conditions::find(list.as_ref(), type_).is_some_and(|c| {
        c.status == status && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
    });
    if same {
        return;
    }
    let new = NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(now.time()),
        last_transition_time: None,
    };
    conditions::set(list, new, now.time());
}

fn tell(before: &Node, after: &Node, plan: &mut Plan) {
    let name = after.meta().name.clone().unwrap_or_default();
    let note = |reason: &'static str| {
        Note::new(Kind::Node, after.meta(), COMPONENT, reason, format!("Node {name} status is now: {reason}"))
    };
    match (ready_status(before), ready_status(after)) {
        (Some("True"), Some("True")) => {}
        (Some("True"), _) => plan.notes.push(note("NodeNotReady").warning()),
        (_, Some("True")) => plan.notes.push(note("NodeReady")),
        _ => {}
    }
    if let Some((warning, reason, message)) = reach::news(before, after) {
        let note = Note::new(Kind::Node, after.meta(), COMPONENT, reason, message);
        plan.notes.push(if warning { note.warning() } else { note });
    }
    let cidrs = |n: &Node| n.spec.as_ref().and_then(|s| s.pod_cidrs.clone());
    if cidrs(before) != cidrs(after) {
        let message = format!("Node {name} was given the pod CIDRs {}", cidrs(after).unwrap_or_default().join(", "));
        plan.notes.push(Note::new(Kind::Node, after.meta(), COMPONENT, "PodCIDRAllocated", message));
    }
}
