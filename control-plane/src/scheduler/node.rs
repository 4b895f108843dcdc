//! One node's account: what it offers, what is taken, and by whose Pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};
use trellis_model::resources::{Amounts, node_allocatable};
use trellis_model::taints;

use super::pod::PodInfo;
use crate::controllers::node::ready_status;

/// Kubernetes' default when a node does not say how many Pods it takes.
const DEFAULT_MAX_PODS: i64 = 110;

/// What a Node object says that scheduling looks at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Offer {
    /// metadata.labels
    pub labels: BTreeMap<String, String>,
    /// NoSchedule and NoExecute taints, with those that its conditions imply.
    pub taints: Vec<Taint>,
    /// spec.unschedulable
    pub unschedulable: bool,
    /// status.allocatable
    pub allocatable: Amounts,
    /// Most Pods.
    pub max_pods: i64,
}

impl Offer {
    /// Reads a Node. A node that is not Ready counts as tainted before its taint is written.
    pub fn read(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let hard = |t: &&Taint| t.effect == taints::NO_SCHEDULE || t.effect == taints::NO_EXECUTE;
        let listed = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
        let mut all: Vec<Taint> = listed.filter(hard).cloned().collect();
        let implied = match ready_status(node) {
            Some("True") => None,
            Some("Unknown") => Some(taints::UNREACHABLE),
            _ => Some(taints::NOT_READY),
        };
        if let Some(key) = implied
            && !all.iter().any(|t| t.key == key)
        {
            let effect = taints::NO_SCHEDULE.to_owned();
            all.push(Taint { key: key.to_owned(), effect, ..Taint::default() });
        }
        // Cordoning has a filter of its own, whose words are better.
        all.retain(|t| t.key != taints::UNSCHEDULABLE);
        let mut allocatable = node_allocatable(node);
        let max_pods = allocatable.other.remove("pods").unwrap_or(DEFAULT_MAX_PODS);
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: all,
            unschedulable: spec.and_then(|s| s.unschedulable) == Some(true),
            allocatable,
            max_pods,
        }
    }
}

/// A node and what is on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Its name.
    pub name: Arc<str>,
    /// What it offers; `None`: Pods are bound to it, but it does not exist.
    pub offer: Option<Offer>,
    /// What its Pods request.
    pub taken: Amounts,
    /// How many Pods.
    pub pods: i64,
    /// How many Pods of each workload.
    pub owners: HashMap<Arc<str>, u32>,
}

impl NodeInfo {
    /// An empty one.
    pub fn new(name: Arc<str>) -> Self {
        Self { name, ..Self::default() }
    }

    /// A Pod takes its room. O(resources).
    pub fn add(&mut self, pod: &PodInfo) {
        self.taken.add(&pod.requests);
        self.pods += 1;
        if let Some(owner) = &pod.owner {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
    }

    /// A Pod gives its room back. O(resources).
    pub fn remove(&mut self, pod: &PodInfo) {
        self.taken.cpu_milli -= pod.requests.cpu_milli;
        self.taken.memory_bytes -= pod.requests.memory_bytes;
        self.taken.ephemeral_storage_bytes -= pod.requests.ephemeral_storage_bytes;
        for (name, amount) in &pod.requests.other {
            if let Some(taken) = self.taken.other.get_mut(name) {
                *taken -= amount;
                if *taken == 0 {
                    self.taken.other.remove(name);
                }
            }
        }
        self.pods -= 1;
        if let Some(owner) = &pod.owner
            && let Some(n) = self.owners.get_mut(owner)
        {
            *n -= 1;
            if *n == 0 {
                self.owners.remove(owner);
            }
        }
    }
}
