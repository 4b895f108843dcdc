//! Why a Pod runs nowhere, in Kubernetes' words: reasons counted, and sorted as text.

use std::collections::BTreeMap;
use std::fmt;

use super::filter::{self, Reason};
use super::node::NodeInfo;
use super::pod::PodInfo;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unschedulable => f.write_str("node(s) were unschedulable"),
            Reason::Taint => f.write_str("node(s) had untolerated taint(s)"),
            Reason::Selector => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Reason::TooManyPods => f.write_str("Too many pods"),
            Reason::Insufficient(resource) => write!(f, "Insufficient {resource}"),
        }
    }
}

/// `0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu.`
/// O(nodes · filters).
pub fn explain<'a>(pod: &PodInfo, nodes: impl Iterator<Item = &'a NodeInfo>) -> String {
    let mut total = 0_usize;
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    for node in nodes.filter(|n| n.offer.is_some()) {
        total += 1;
        filter::check(pod, node, |reason| *counts.entry(reason).or_default() += 1);
    }
    if total == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}
