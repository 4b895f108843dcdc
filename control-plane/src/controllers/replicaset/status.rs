//! ReplicaSet status.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use trellis_model::Object;
use trellis_model::resources::is_finished;

use super::Input;
use crate::controllers::object::{Item, Now, Write};
use crate::controllers::pods;

/// The status of this moment, and when a ready Pod will become available by time alone.
pub fn compute(input: &Input<'_>, now: &Now) -> (ReplicaSetStatus, Option<Duration>) {
    let set = &input.set.object;
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let mut status = ReplicaSetStatus {
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        observed_generation: set.metadata.generation,
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in input.owned.iter() {
        if pod.deleting() && !is_finished(&pod.object) {
            terminating += 1;
        }
        if !pods::active(pod) {
            continue;
        }
        status.replicas += 1;
        let labels = pod.object.metadata.labels.as_ref();
        labelled += i32::from(template_labels.iter().all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v))));
        ready += i32::from(pods::ready(&pod.object));
        match pods::availability(&pod.object, spec.min_ready_seconds.unwrap_or(0), now) {
            Ok(()) => available += 1,
            Err(Some(wait)) => again = Some(again.map_or(wait, |a| a.min(wait))),
            Err(None) => {}
        }
    }
    status.fully_labeled_replicas = some_unless_zero(labelled);
    status.ready_replicas = some_unless_zero(ready);
    status.available_replicas = some_unless_zero(available);
    status.terminating_replicas = some_unless_zero(terminating);
    (status, again)
}

fn some_unless_zero(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// The update that brings the new status, if it differs.
pub fn write(set: &Item<ReplicaSet>, status: ReplicaSetStatus) -> Option<Write> {
    if set.object.status.as_ref() == Some(&status) {
        return None;
    }
    let mut object = set.object.clone();
    object.status = Some(status);
    Some(Write::Update { object: Object::ReplicaSet(Box::new(object)), revision: set.revision })
}
