//! What it means for a Node that its netd finds no route to others' Pods.
//!
//! Packets between Pods are routed, not wrapped, so nodes whose addresses are of different subnets
//! cannot reach each other's Pods. Both sides say so of each other, yet only one of them is to be
//! taken out of use: a single machine that joined with a wrong address must not make the scheduler
//! shun all the others. A node's *side* is every node that it does report a route to, itself
//! included; of two sides the larger one stays in use, and of two equal ones that with the oldest
//! node. The Node on the other side gets NetworkUnavailable, in the words of Kubernetes' route
//! controller; on the larger side the condition is False, and names the nodes that are missing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use trellis_model::conditions;

use super::NETWORK_UNAVAILABLE;
use crate::nodes::reach::{Reach, Reports};

/// Kubernetes' route controller's reason where no route could be made.
pub(super) const NO_ROUTE: &str = "NoRouteCreated";
/// The same where all are there.
pub(super) const ROUTED: &str = "RouteCreated";
/// Some nodes cannot be reached, but it is they who are cut off.
pub(super) const SOME_UNROUTED: &str = "PeersWithoutRoute";
/// Names in a message; the others are counted.
const MAX_NAMED: usize = 8;

/// What is found of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Finding {
    /// Its netd has said nothing to this leader.
    #[default]
    Unknown,
    /// Routes lead to the Pods of all nodes.
    Routed,
    /// Not to those of some, which are cut off themselves.
    SomeUnrouted(String),
    /// It is on the smaller side.
    CutOff(String),
}

/// Orders nodes by age: their creation in seconds since 1970.
pub type Ages = BTreeMap<String, i64>;

/// What the reports mean for `node`. Costs O(unrouted × nodes), where all is well O(1).
pub fn find(node: &str, reports: &Reports, ages: impl FnOnce() -> Ages) -> Finding {
    let Some(own) = reports.get(node) else { return Finding::Unknown };
    if own.unrouted.is_empty() {
        return Finding::Routed;
    }
    let ages = ages();
    let missing: Vec<&String> = own.unrouted.keys().filter(|peer| ages.contains_key(*peer)).collect();
    if missing.is_empty() {
        return Finding::Routed;
    }
    let mine = side(node, Some(own), &ages);
    let beaten = missing.iter().any(|peer| {
        let theirs = side(peer, reports.get(peer.as_str()).map(|r| &**r), &ages);
        (theirs.0, std::cmp::Reverse(theirs.1)) > (mine.0, std::cmp::Reverse(mine.1))
    });
    let message = message(node, own, &missing, beaten);
    if beaten { Finding::CutOff(message) } else { Finding::SomeUnrouted(message) }
}

/// How many nodes are on a node's side, and the oldest of them.
fn side<'a>(node: &str, reach: Option<&Reach>, ages: &'a Ages) -> (usize, Option<(i64, &'a str)>) {
    let on = |other: &str| match reach {
        Some(reach) => other == node || !reach.unrouted.contains_key(other),
        // Who has not spoken yet speaks for itself alone.
        None => other == node,
    };
    let members = ages.iter().filter(|(other, _)| on(other));
    let (mut count, mut oldest) = (0, None::<(i64, &str)>);
    for (other, age) in members {
        count += 1;
        let this = (*age, other.as_str());
        oldest = Some(oldest.map_or(this, |o| o.min(this)));
    }
    (count, oldest)
}

fn message(node: &str, own: &Reach, missing: &[&String], cut_off: bool) -> String {
    let address = |peer: &str| own.unrouted.get(peer).map(String::as_str).unwrap_or_default();
    let mut named: Vec<String> =
        missing.iter().take(MAX_NAMED).map(|peer| format!("{peer} ({})", address(peer))).collect();
    if missing.len() > MAX_NAMED {
        named.push(format!("{} more", missing.len() - MAX_NAMED));
    }
    let advice = if cut_off {
        format!("give {node} an address of their subnet (--advertise-address of `trellis cluster join`)")
    } else {
        "give them an address of this subnet (--advertise-address of `trellis cluster join`)".to_owned()
    };
    format!(
        "No route leads from {node} to the Pods of {}: not of its own network {}. Packets between Pods are routed, \
         not wrapped, so all nodes need addresses of one subnet: {advice}.",
        named.join(", "),
        own.network
    )
}

/// The condition that a finding asks for: status, reason, message; `None`: leave it.
pub(super) fn condition<'a>(node: &Node, finding: &'a Finding) -> Option<(&'static str, &'static str, &'a str)> {
    match finding {
        Finding::CutOff(message) => Some(("True", NO_ROUTE, message)),
        Finding::SomeUnrouted(message) => Some(("False", SOME_UNROUTED, message)),
        Finding::Routed if current(node).is_some_and(is_ours) => {
            Some(("False", ROUTED, "Routes lead to the Pods of all nodes."))
        }
        Finding::Routed | Finding::Unknown => None,
    }
}

/// What to tell when the condition changed: (a warning?, reason, message).
pub(super) fn news(before: &Node, after: &Node) -> Option<(bool, &'static str, String)> {
    let (old, new) = (current(before), current(after)?);
    let said = |c: Option<&NodeCondition>| c.map(|c| (c.reason.clone(), c.message.clone()));
    if said(old) == said(Some(new)) {
        return None;
    }
    let message = new.message.clone().unwrap_or_default();
    match new.reason.as_deref() {
        // Kubernetes' route controller calls it so.
        Some(NO_ROUTE | SOME_UNROUTED) => Some((true, "FailedToCreateRoute", message)),
        Some(ROUTED) => Some((false, ROUTED, message)),
        _ => None,
    }
}

fn current(node: &Node) -> Option<&NodeCondition> {
    conditions::find(node.status.as_ref().and_then(|s| s.conditions.as_ref()), NETWORK_UNAVAILABLE)
}

fn is_ours(condition: &NodeCondition) -> bool {
    matches!(condition.reason.as_deref(), Some(NO_ROUTE | SOME_UNROUTED | ROUTED))
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
