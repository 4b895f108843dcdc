//! What of a Pod matters to the scheduler, read once per change.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Toleration};
use trellis_model::resources::{Amounts, is_finished, pod_requests};

use crate::controllers::object::{Item, controller_of};

/// Names under which Pods ask for this scheduler.
const OWN_NAMES: [&str; 2] = ["default-scheduler", "trellis-scheduler"];

/// Namespace and name.
pub type PodKey = (Arc<str>, Arc<str>);

/// A Pod as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct PodInfo {
    /// Namespace and name.
    pub key: PodKey,
    /// metadata.uid
    pub uid: Arc<str>,
    /// The version this was read from.
    pub item: Arc<Item<Pod>>,
    /// Sum of its requests.
    pub requests: Amounts,
    /// spec.nodeSelector
    pub node_selector: BTreeMap<String, String>,
    /// spec.tolerations
    pub tolerations: Vec<Toleration>,
    /// The node it is bound to.
    pub node: Option<Arc<str>>,
    /// uid of its controller: Pods of one workload are spread.
    pub owner: Option<Arc<str>>,
    /// spec.priority
    pub priority: i32,
    /// It waits for this scheduler.
    pub pending: bool,
    /// It takes room on its node.
    pub counts: bool,
}

impl PodInfo {
    /// Reads a Pod.
    pub fn new(item: &Arc<Item<Pod>>) -> Self {
        let pod = &item.object;
        let spec = pod.spec.clone().unwrap_or_default();
        let node: Option<Arc<str>> = spec.node_name.as_deref().filter(|n| !n.is_empty()).map(Arc::from);
        let finished = is_finished(pod);
        let ours = spec.scheduler_name.as_deref().is_none_or(|n| OWN_NAMES.contains(&n));
        let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
        Self {
            key: (Arc::from(item.namespace()), Arc::from(item.name())),
            uid: Arc::from(item.uid()),
            requests: pod_requests(&spec),
            pending: node.is_none() && !finished && !item.deleting() && ours && !gated,
            counts: node.is_some() && !finished,
            node_selector: spec.node_selector.unwrap_or_default(),
            tolerations: spec.tolerations.unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            owner: controller_of(&pod.metadata).map(|o| Arc::from(o.uid.as_str())),
            node,
            item: item.clone(),
        }
    }

    /// Whether nothing that scheduling looks at differs.
    pub fn same_needs(&self, other: &PodInfo) -> bool {
        self.uid == other.uid
            && self.requests == other.requests
            && self.node_selector == other.node_selector
            && self.tolerations == other.tolerations
            && self.priority == other.priority
    }
}
