//! The standard taints: which a Node should carry, and how they are put among others'.

use k8s_openapi::api::core::v1::{Node, Taint};
use trellis_model::{conditions, taints as keys};

use super::{Input, NETWORK_UNAVAILABLE, NOT_READY_GRACE, ready_status};
use crate::controllers::object::Now;
use crate::nodes::Standing;

/// Keys that the control plane alone decides on.
const MANAGED: [&str; 7] = [
    keys::NOT_READY,
    keys::UNREACHABLE,
    keys::UNSCHEDULABLE,
    keys::NETWORK_UNAVAILABLE,
    keys::MEMORY_PRESSURE,
    keys::DISK_PRESSURE,
    keys::PID_PRESSURE,
];

/// (key, effect) of the standard taints that the Node should carry.
pub(super) fn wanted(node: &Node, input: &Input<'_>) -> Vec<(&'static str, &'static str)> {
    let list = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let has = |key: &str, effect: &str| {
        let present = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        present.into_iter().flatten().any(|t| t.key == key && t.effect == effect)
    };
    let mut out = Vec::new();
    match ready_status(node) {
        Some("True") => {}
        Some("Unknown") => {
            out.push((keys::UNREACHABLE, keys::NO_SCHEDULE));
            if input.standing == Standing::Dead && !input.suspended {
                out.push((keys::UNREACHABLE, keys::NO_EXECUTE));
            }
        }
        _ => {
            out.push((keys::NOT_READY, keys::NO_SCHEDULE));
            // A taint set by an earlier leader stays: its grace was over then.
            let grace_over = input.not_ready_for.is_some_and(|d| d >= NOT_READY_GRACE);
            if !input.suspended && (grace_over || has(keys::NOT_READY, keys::NO_EXECUTE)) {
                out.push((keys::NOT_READY, keys::NO_EXECUTE));
            }
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        out.push((keys::UNSCHEDULABLE, keys::NO_SCHEDULE));
    }
    let by_condition = [
        (NETWORK_UNAVAILABLE, keys::NETWORK_UNAVAILABLE),
        ("MemoryPressure", keys::MEMORY_PRESSURE),
        ("DiskPressure", keys::DISK_PRESSURE),
        ("PIDPressure", keys::PID_PRESSURE),
    ];
    let pressed = by_condition.into_iter().filter(|(type_, _)| conditions::is_true(list, type_));
    out.extend(pressed.map(|(_, key)| (key, keys::NO_SCHEDULE)));
    out
}

/// Makes the managed taints of the Node exactly `wanted`; others, and the times of those that
/// stay, are kept.
pub(super) fn apply(node: &mut Node, wanted: Vec<(&'static str, &'static str)>, now: &Now) {
    let spec = node.spec.get_or_insert_default();
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|t| {
        let managed = MANAGED.contains(&t.key.as_str()) && t.effect != keys::PREFER_NO_SCHEDULE;
        !managed || wanted.iter().any(|(k, e)| t.key == *k && t.effect == *e)
    });
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(now.time()),
            });
        }
    }
    spec.taints = (!taints.is_empty()).then_some(taints);
}
