//! What a Pod asks of a node: the effective sums of its containers' requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;

use crate::quantity::Quantity;

/// Amounts by resource. Values are milli-cores for `cpu`, units (bytes) for all else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of local storage.
    pub ephemeral_storage_bytes: i64,
    /// Everything else by name, in units.
    pub other: BTreeMap<String, i64>,
}

impl Amounts {
    /// From a `requests`, `limits` or `allocatable` map. Validation has refused what does not
    /// parse; a value that is no quantity counts as nothing.
    pub fn from_map(map: Option<&BTreeMap<String, K8sQuantity>>) -> Self {
        let mut out = Amounts::default();
        for (name, q) in map.into_iter().flatten() {
            let q = Quantity::try_from(q).unwrap_or_default();
            match name.as_str() {
                "cpu" => out.cpu_milli = q.milli(),
                "memory" => out.memory_bytes = q.bytes(),
                "ephemeral-storage" => out.ephemeral_storage_bytes = q.bytes(),
                _ => {
                    out.other.insert(name.clone(), q.value());
                }
            }
        }
        out
    }

    /// Adds each amount.
    pub fn add(&mut self, other: &Amounts) {
        self.merge(other, i64::saturating_add);
    }

    /// Keeps the greater of each amount.
    pub fn max(&mut self, other: &Amounts) {
        self.merge(other, Ord::max);
    }

    fn merge(&mut self, other: &Amounts, f: impl Fn(i64, i64) -> i64) {
        self.cpu_milli = f(self.cpu_milli, other.cpu_milli);
        self.memory_bytes = f(self.memory_bytes, other.memory_bytes);
        self.ephemeral_storage_bytes = f(self.ephemeral_storage_bytes, other.ephemeral_storage_bytes);
        for (k, v) in &other.other {
            let mine = self.other.entry(k.clone()).or_default();
            *mine = f(*mine, *v);
        }
    }
}

/// What the scheduler reserves for a Pod: the sum over its containers and sidecars, or what an
/// init container needs beside the sidecars started before it, whichever is more, plus overhead.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    effective(spec, |c| Amounts::from_map(c.resources.as_ref().and_then(|r| r.requests.as_ref())))
}

/// The same of limits: a resource counts only where a container limits it.
pub fn pod_limits(spec: &PodSpec) -> Amounts {
    effective(spec, |c| Amounts::from_map(c.resources.as_ref().and_then(|r| r.limits.as_ref())))
}

fn effective(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut sidecars = Amounts::default();
    let mut init_peak = Amounts::default();
    for c in spec.init_containers.iter().flatten() {
        let mut at_this_point = sidecars.clone();
        at_this_point.add(&of(c));
        init_peak.max(&at_this_point);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars = at_this_point;
        }
    }
    let mut total = sidecars;
    for c in &spec.containers {
        total.add(&of(c));
    }
    total.max(&init_peak);
    total.add(&Amounts::from_map(spec.overhead.as_ref()));
    total
}

/// What a node lets Pods use.
pub fn node_allocatable(node: &Node) -> Amounts {
    Amounts::from_map(node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref())))
}

/// Kubernetes' QoS class: who is killed first when memory runs out.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let get = |m: Option<&BTreeMap<String, K8sQuantity>>, r: &str| {
        m.and_then(|m| m.get(r)).and_then(|q| Quantity::try_from(q).ok()).filter(|q| !q.is_zero())
    };
    let mut any = false;
    let mut guaranteed = true;
    for c in all() {
        let res = c.resources.as_ref();
        for r in ["cpu", "memory"] {
            let request = get(res.and_then(|r| r.requests.as_ref()), r);
            let limit = get(res.and_then(|r| r.limits.as_ref()), r);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Whether the Pod has ended and holds nothing of its node any more.
pub fn is_finished(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| p == "Succeeded" || p == "Failed")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    fn spec(v: serde_json::Value) -> PodSpec {
        serde_json::from_value(v).unwrap()
    }
    fn c(cpu: &str) -> serde_json::Value {
        json!({"name":"x","resources":{"requests":{"cpu":cpu,"memory":"1Mi","example.com/gpu":"1"}}})
    }

    #[test]
    fn init_containers_count_only_by_their_peak() {
        let s = spec(json!({"containers":[c("100m"), c("200m")], "initContainers":[c("1"), c("50m")]}));
        let a = pod_requests(&s);
        assert_eq!((a.cpu_milli, a.memory_bytes, a.other["example.com/gpu"]), (1000, 2 << 20, 2));
        let s = spec(json!({"containers":[c("100m"), c("200m")], "initContainers":[c("250m")]}));
        assert_eq!(pod_requests(&s).cpu_milli, 300);
    }

    #[test]
    fn sidecars_count_beside_what_starts_after_them() {
        let mut side = c("100m");
        side["restartPolicy"] = json!("Always");
        let s = spec(json!({"containers":[c("100m")], "initContainers":[side, c("500m")],
            "overhead":{"cpu":"10m"}}));
        assert_eq!(pod_requests(&s).cpu_milli, 610);
    }

    #[test]
    fn qos() {
        let s = |r: serde_json::Value| spec(json!({"containers":[{"name":"x","resources":r}]}));
        assert_eq!(qos_class(&s(json!({}))), "BestEffort");
        assert_eq!(qos_class(&s(json!({"requests":{"cpu":"1"}}))), "Burstable");
        let full = json!({"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1","memory":"1Gi"}});
        assert_eq!(qos_class(&s(full)), "Guaranteed");
    }
}
