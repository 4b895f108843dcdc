//! Where a Pod may run. The filters and their order are Kubernetes': the first that refuses
//! names the reason, and resources name every one that is short.

use k8s_openapi::api::core::v1::Taint;
use trellis_model::taints;

use super::node::NodeInfo;
use super::pod::PodInfo;

/// Why a node was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It was cordoned.
    Unschedulable,
    /// It has a taint that the Pod does not tolerate; which one is for those who may read Nodes.
    Taint,
    /// Its labels do not match spec.nodeSelector.
    Selector,
    /// It has no room for another Pod.
    TooManyPods,
    /// A resource is short.
    Insufficient(String),
}

/// Calls `refuse` for each reason against running `pod` on `node`; none: it fits.
/// O(taints · tolerations + selector + resources), without allocation when it fits.
pub fn check(pod: &PodInfo, node: &NodeInfo, mut refuse: impl FnMut(Reason)) {
    let Some(offer) = &node.offer else { return };
    if offer.unschedulable && !tolerates_cordon(pod) {
        return refuse(Reason::Unschedulable);
    }
    let effects = [taints::NO_SCHEDULE, taints::NO_EXECUTE];
    if taints::first_untolerated(&offer.taints, &pod.tolerations, &effects).is_some() {
        return refuse(Reason::Taint);
    }
    if !pod.node_selector.iter().all(|(k, v)| offer.labels.get(k) == Some(v)) {
        return refuse(Reason::Selector);
    }
    if node.pods + 1 > offer.max_pods {
        refuse(Reason::TooManyPods);
    }
    let (wants, has, taken) = (&pod.requests, &offer.allocatable, &node.taken);
    // A Pod that asks for nothing of a resource is not refused for its being overdrawn.
    let short = |want: i64, has: i64, taken: i64| want > 0 && want > has.saturating_sub(taken);
    if short(wants.cpu_milli, has.cpu_milli, taken.cpu_milli) {
        refuse(Reason::Insufficient("cpu".into()));
    }
    if short(wants.memory_bytes, has.memory_bytes, taken.memory_bytes) {
        refuse(Reason::Insufficient("memory".into()));
    }
    let (want, have) = (wants.ephemeral_storage_bytes, has.ephemeral_storage_bytes);
    // An agent that does not report local storage does not limit it either.
    if have > 0 && short(want, have, taken.ephemeral_storage_bytes) {
        refuse(Reason::Insufficient("ephemeral-storage".into()));
    }
    for (name, want) in &wants.other {
        let of = |a: &trellis_model::resources::Amounts| a.other.get(name).copied().unwrap_or(0);
        if short(*want, of(has), of(taken)) {
            refuse(Reason::Insufficient(name.clone()));
        }
    }
}

/// Whether the Pod may run there now.
pub fn fits(pod: &PodInfo, node: &NodeInfo) -> bool {
    let mut ok = node.offer.is_some();
    check(pod, node, |_| ok = false);
    ok
}

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let taint =
        Taint { key: taints::UNSCHEDULABLE.to_owned(), effect: taints::NO_SCHEDULE.to_owned(), ..Taint::default() };
    pod.tolerations.iter().any(|t| taints::tolerates(t, &taint))
}
