//! Deployment status and its conditions Available and Progressing.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use trellis_model::conditions;

use super::{Rollout, Working, max_unavailable};

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";
/// Deployments that never time out say so with this number of seconds, in Kubernetes too.
const NO_DEADLINE: i32 = i32::MAX;

/// Kubernetes' DeploymentComplete: all Pods are new, and available.
pub(crate) fn complete(r: &Rollout<'_>) -> bool {
    done(&counts(r), r.wanted())
}

fn done(c: &DeploymentStatus, wanted: i32) -> bool {
    let is = |n: Option<i32>| n.unwrap_or(0) == wanted;
    is(c.updated_replicas) && is(c.replicas) && is(c.available_replicas)
}

fn counts(r: &Rollout<'_>) -> DeploymentStatus {
    let of = |w: &Working| w.item.object.status.clone().unwrap_or_default();
    let sum = |f: &dyn Fn(&Working) -> i32| r.all().map(f).sum::<i32>();
    let replicas = sum(&|w| of(w).replicas);
    let available = sum(&|w| of(w).available_replicas.unwrap_or(0));
    let ready = sum(&|w| of(w).ready_replicas.unwrap_or(0));
    let terminating = sum(&|w| of(w).terminating_replicas.unwrap_or(0));
    let updated = r.new.as_ref().map_or(0, |w| of(w).replicas);
    let intended = sum(&|w| w.replicas());
    let some = |n: i32| (n != 0).then_some(n);
    let before = r.next.status.clone().unwrap_or_default();
    DeploymentStatus {
        observed_generation: r.deployment.object.metadata.generation,
        replicas: some(replicas),
        updated_replicas: some(updated),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((intended - available).max(0)),
        terminating_replicas: some(terminating),
        collision_count: before.collision_count,
        conditions: before.conditions,
    }
}

/// Writes the status into the planned Deployment. Answers how long until it must be looked at
/// again because time alone changes it.
pub(crate) fn sync(r: &mut Rollout<'_>) -> Option<Duration> {
    let before = r.deployment.object.status.clone().unwrap_or_default();
    let mut next = counts(r);
    let enough = next.available_replicas.unwrap_or(0) >= r.wanted() - max_unavailable(&r.spec);
    let (status, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(r, &mut next, AVAILABLE, status, reason, message.to_owned());
    let again = progress(r, &before, &mut next);
    let unchanged = r.next.status.as_ref() == Some(&next);
    if !unchanged {
        r.next.status = Some(next);
    }
    again
}

fn progress(r: &Rollout<'_>, before: &DeploymentStatus, next: &mut DeploymentStatus) -> Option<Duration> {
    let limit = r.spec.progress_deadline_seconds.unwrap_or(NO_DEADLINE);
    if limit == NO_DEADLINE {
        if let Some(list) = &mut next.conditions {
            list.retain(|c| c.type_ != PROGRESSING);
        }
        return None;
    }
    let limit = Duration::from_secs(u64::try_from(limit).unwrap_or(0));
    let current = conditions::find(next.conditions.as_ref(), PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.clone()).unwrap_or_default();
    let what = match (&r.new, &r.create) {
        (Some(w), _) => format!("ReplicaSet {:?}", w.name()),
        (None, Some(set)) => format!("ReplicaSet {:?}", set.metadata.name.clone().unwrap_or_default()),
        (None, None) => format!("Deployment {:?}", r.deployment.name()),
    };
    let all_new = next.replicas == next.updated_replicas;
    if r.spec.paused == Some(true) || r.create.is_some() || (all_new && reason == NEW_SET_AVAILABLE) {
        return None;
    }
    if done(next, r.wanted()) {
        set(r, next, PROGRESSING, "True", NEW_SET_AVAILABLE, format!("{what} has successfully progressed."));
        return None;
    }
    if moved(before, next) || current.is_none() {
        touch(r, next, "True", "ReplicaSetUpdated", format!("{what} is progressing."));
        return Some(limit);
    }
    let since = current.and_then(|c| c.last_update_time).map_or(Duration::ZERO, |t| r.now.since(&t));
    if reason == TIMED_OUT || reason == NEW_SET_AVAILABLE {
        return None;
    }
    if since < limit {
        return Some((limit - since).max(Duration::from_millis(100)));
    }
    set(r, next, PROGRESSING, "False", TIMED_OUT, format!("{what} has timed out progressing."));
    None
}

/// Kubernetes' DeploymentProgressing.
fn moved(before: &DeploymentStatus, next: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    let old = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(next.updated_replicas) > n(before.updated_replicas)
        || old(next) < old(before)
        || n(next.ready_replicas) > n(before.ready_replicas)
        || n(next.available_replicas) > n(before.available_replicas)
}

/// The new ReplicaSet is being created.
pub(crate) fn created(r: &mut Rollout<'_>, name: &str) {
    let mut status = r.next.status.take().unwrap_or_default();
    touch(r, &mut status, "True", "NewReplicaSetCreated", format!("Created new replica set {name:?}"));
    r.next.status = Some(status);
}

/// The new ReplicaSet existed already.
pub(crate) fn found(r: &mut Rollout<'_>, name: &str) {
    let mut status = r.next.status.clone().unwrap_or_default();
    let has_deadline = r.spec.progress_deadline_seconds.is_some_and(|d| d != NO_DEADLINE);
    if has_deadline && conditions::find(status.conditions.as_ref(), PROGRESSING).is_none() {
        touch(r, &mut status, "True", "FoundNewReplicaSet", format!("Found new replica set {name:?}"));
        r.next.status = Some(status);
    }
}

/// Keeps the Progressing condition in step with spec.paused: a paused Deployment does not time
/// out, and a resumed one starts its deadline afresh.
pub(crate) fn pause_condition(r: &mut Rollout<'_>) {
    if r.spec.progress_deadline_seconds.is_none_or(|d| d == NO_DEADLINE) {
        return;
    }
    let mut status = r.next.status.clone().unwrap_or_default();
    let reason = conditions::find(status.conditions.as_ref(), PROGRESSING).and_then(|c| c.reason.clone());
    if reason.as_deref() == Some(TIMED_OUT) {
        return;
    }
    let was_paused = reason.as_deref() == Some(PAUSED);
    match (r.spec.paused == Some(true), was_paused) {
        (true, false) => touch(r, &mut status, "Unknown", PAUSED, "Deployment is paused".to_owned()),
        (false, true) => touch(r, &mut status, "Unknown", RESUMED, "Deployment is resumed".to_owned()),
        _ => return,
    }
    r.next.status = Some(status);
}

/// Sets a condition; its update time moves only with its content.
fn set(r: &Rollout<'_>, status: &mut DeploymentStatus, type_: &str, value: &str, reason: &str, message: String) {
    let same = conditions::find(status.conditions.as_ref(), type_).is_some_and(|c| {
        c.status == value && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message.as_str())
    });
    if !same {
        write(r, status, type_, value, reason, message);
    }
}

/// Sets Progressing with a new update time: the deadline counts from here.
fn touch(r: &Rollout<'_>, status: &mut DeploymentStatus, value: &str, reason: &str, message: String) {
    write(r, status, PROGRESSING, value, reason, message);
}

fn write(r: &Rollout<'_>, status: &mut DeploymentStatus, type_: &str, value: &str, reason: &str, message: String) {
    let new = DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(r.now.time()),
        last_transition_time: None,
    };
    conditions::set(&mut status.conditions, new, r.now.time());
}
