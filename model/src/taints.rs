//! Taints and tolerations: the standard keys, who tolerates what, and when a NoExecute taint
//! evicts.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// The node's agent says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Nothing has been heard from the node.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node was cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The node is alive but the pod network does not reach it.
pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
/// The node runs out of memory.
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
/// The node runs out of disk.
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// The node runs out of process ids.
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
/// Machines that carry the control plane and should run nothing else.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// No new Pod that does not tolerate it.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// Rather no new Pod that does not tolerate it.
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// Pods that do not tolerate it leave.
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether the toleration covers the taint: an empty key with `Exists` covers every key, an empty
/// effect every effect.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = text(&toleration.key);
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match text(&toleration.operator).as_str() {
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

/// The first taint of one of the effects that no toleration covers.
pub fn first_untolerated<'t>(taints: &'t [Taint], tolerations: &[Toleration], effects: &[&str]) -> Option<&'t Taint> {
    taints
        .iter()
        .filter(|t| effects.contains(&t.effect.as_str()))
        .find(|t| !tolerations.iter().any(|o| tolerates(o, t)))
}

/// What the NoExecute taints of a node mean for a Pod on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// All are tolerated for ever.
    Stay,
    /// The Pod leaves that many seconds after the taint came; 0 is at once.
    AfterSeconds(u64),
}

/// When a Pod must leave a node with these taints: the shortest of the tolerations that cover
/// them, at once when one is not covered.
pub fn eviction(taints: &[Taint], tolerations: &[Toleration]) -> Eviction {
    let mut shortest: Option<u64> = None;
    for taint in taints.iter().filter(|t| t.effect == NO_EXECUTE) {
        let covering: Vec<&Toleration> = tolerations.iter().filter(|o| tolerates(o, taint)).collect();
        if covering.is_empty() {
            return Eviction::AfterSeconds(0);
        }
        for seconds in covering.iter().filter_map(|o| o.toleration_seconds) {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
        }
    }
    shortest.map_or(Eviction::Stay, Eviction::AfterSeconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()).filter(|v: &String| !v.is_empty()),
            effect: effect.into(),
            time_added: None,
        }
    }
    fn toleration(key: &str, op: &str, value: &str, effect: &str, secs: Option<i64>) -> Toleration {
        let o = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
        Toleration { key: o(key), operator: o(op), value: o(value), effect: o(effect), toleration_seconds: secs }
    }

    #[test]
    fn table() {
        let t = taint("k", "v", NO_SCHEDULE);
        for (tol, want) in [
            (toleration("k", "Equal", "v", NO_SCHEDULE, None), true),
            (toleration("k", "", "v", "", None), true),
            (toleration("k", "Equal", "w", "", None), false),
            (toleration("k", "Exists", "", "", None), true),
            (toleration("", "Exists", "", "", None), true),
            (toleration("", "", "", "", None), false),
            (toleration("k", "Exists", "", NO_EXECUTE, None), false),
            (toleration("j", "Exists", "", "", None), false),
        ] {
            assert_eq!(tolerates(&tol, &t), want, "{tol:?}");
        }
        assert!(first_untolerated(std::slice::from_ref(&t), &[], &[NO_SCHEDULE]).is_some());
        assert!(first_untolerated(&[t], &[], &[NO_EXECUTE]).is_none());
    }

    #[test]
    fn evictions() {
        let taints = [taint(UNREACHABLE, "", NO_EXECUTE), taint("x", "", NO_EXECUTE)];
        let all = toleration("", "Exists", "", "", None);
        assert_eq!(eviction(&taints, &[]), Eviction::AfterSeconds(0));
        assert_eq!(eviction(&taints, std::slice::from_ref(&all)), Eviction::Stay);
        let some = toleration(UNREACHABLE, "Exists", "", NO_EXECUTE, Some(30));
        assert_eq!(eviction(&taints, std::slice::from_ref(&some)), Eviction::AfterSeconds(0));
        assert_eq!(eviction(&taints, &[all, some]), Eviction::AfterSeconds(30));
        assert_eq!(eviction(&[taint("x", "", NO_SCHEDULE)], &[]), Eviction::Stay);
    }
}
