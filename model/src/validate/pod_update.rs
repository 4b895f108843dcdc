//! What may change in a Pod after its creation, and what only then.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::Value;

use super::shown;
use crate::field::{FieldError, Path};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn only_on_create(pod: &Pod, out: &mut Vec<FieldError>) {
    let has = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_ref());
    if has.is_some_and(|e| !e.is_empty()) {
        let p = Path::new("spec").child("ephemeralContainers");
        out.push(FieldError::forbidden(&p, "cannot be set on create"));
    }
    let Some(spec) = &pod.spec else { return };
    if spec.node_name.as_deref().is_some_and(|n| !n.is_empty()) && gated(spec) {
        let p = Path::new("spec").child("nodeName");
        out.push(FieldError::forbidden(&p, "cannot be set until all schedulingGates have been cleared"));
    }
}

fn gated(spec: &PodSpec) -> bool {
    spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty())
}

pub(super) fn update(old: &Pod, new: &Pod, out: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    let (Some(a), Some(b)) = (&old.spec, &new.spec) else { return };
    deadline(a, b, &path, out);
    let kept =
        a.tolerations.iter().flatten().all(|t| b.tolerations.iter().flatten().any(|u| t == u || is_longer(t, u)));
    if !kept {
        out.push(FieldError::forbidden(
            &path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    // What may change is made equal; all else must be.
    let mut munged = b.clone();
    gates(a, b, &path, out);
    munged.scheduling_gates.clone_from(&a.scheduling_gates);
    if gated(a) {
        node_selector(a, b, &path, out);
        munged.node_selector.clone_from(&a.node_selector);
    }
    munged.active_deadline_seconds = a.active_deadline_seconds;
    munged.tolerations.clone_from(&a.tolerations);
    if a.termination_grace_period_seconds.is_some_and(|g| g < 0) && b.termination_grace_period_seconds == Some(1) {
        munged.termination_grace_period_seconds = a.termination_grace_period_seconds;
    }
    images(&a.containers, &mut munged.containers);
    if let (Some(x), Some(y)) = (&a.init_containers, &mut munged.init_containers) {
        images(x, y);
    }
    if munged != *a {
        let fields = differences(&shown(a), &shown(&munged), "spec");
        out.push(FieldError::forbidden(&path, &format!("{MAY_CHANGE}; changed: {}", fields.join(", "))));
    }
}

/// Gates only go.
fn gates(a: &PodSpec, b: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    for (i, gate) in b.scheduling_gates.iter().flatten().enumerate() {
        if !a.scheduling_gates.iter().flatten().any(|old| old.name == gate.name) {
            out.push(FieldError::forbidden(
                &path.child("schedulingGates").index(i).child("name"),
                &format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name),
            ));
        }
    }
}

/// While it is gated, where a Pod may run is narrowed, never widened.
fn node_selector(a: &PodSpec, b: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let new = b.node_selector.clone().unwrap_or_default();
    if a.node_selector.iter().flatten().any(|(k, v)| new.get(k) != Some(v)) {
        let m = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        out.push(FieldError::invalid(&path.child("nodeSelector"), shown(&new), m));
    }
}

fn is_longer(a: &k8s_openapi::api::core::v1::Toleration, b: &k8s_openapi::api::core::v1::Toleration) -> bool {
    let mut c = b.clone();
    c.toleration_seconds = a.toleration_seconds;
    c == *a
}

fn deadline(a: &PodSpec, b: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let p = path.child("activeDeadlineSeconds");
    match (a.active_deadline_seconds, b.active_deadline_seconds) {
        (Some(x), Some(y)) if y > x => {
            out.push(FieldError::invalid(&p, y, "must be less than or equal to previous value"));
        }
        (Some(_), None) => {
            out.push(FieldError::invalid(&p, Value::Null, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

fn images(old: &[Container], new: &mut [Container]) {
    if old.len() == new.len() {
        for (a, b) in old.iter().zip(new) {
            b.image.clone_from(&a.image);
        }
    }
}

/// Paths at which two values differ, at the depth where they do.
fn differences(a: &Value, b: &Value, path: &str) -> Vec<String> {
    match (a, b) {
        _ if a == b => Vec::new(),
        (Value::Object(x), Value::Object(y)) => {
            let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter()
                .flat_map(|k| {
                    let null = Value::Null;
                    let (p, q) = (x.get(k).unwrap_or(&null), y.get(k).unwrap_or(&null));
                    differences(p, q, &format!("{path}.{k}"))
                })
                .collect()
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().flat_map(|(i, (p, q))| differences(p, q, &format!("{path}[{i}]"))).collect()
        }
        _ => vec![path.to_owned()],
    }
}
