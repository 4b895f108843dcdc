//! What several controllers ask about a Pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use trellis_model::resources::is_finished;
use trellis_model::{Object, conditions};

use super::cache::node_of;
use super::object::{Item, Now, Write};

/// Whether it runs or may run: neither finished nor terminating.
pub fn active(pod: &Item<Pod>) -> bool {
    !is_finished(&pod.object) && !pod.deleting()
}

/// Its phase; Pending before anybody said.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Its condition of that type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    conditions::find(pod.status.as_ref().and_then(|s| s.conditions.as_ref()), type_)
}

/// Whether its Ready condition is True.
pub fn ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when it is ready.
pub fn ready_since(pod: &Pod) -> Option<&Time> {
    condition(pod, "Ready").filter(|c| c.status == "True").and_then(|c| c.last_transition_time.as_ref())
}

/// Whether a Pod counts as available, or how long until it will.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: &Now) -> Result<(), Option<Duration>> {
    if !ready(pod) {
        return Err(None);
    }
    let needed = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    if needed.is_zero() {
        return Ok(());
    }
    let age = ready_since(pod).map_or(Duration::ZERO, |t| now.since(t));
    if age >= needed { Ok(()) } else { Err(Some(needed - age)) }
}

/// The write that deletes a Pod as the API would: at once when no agent has anything to stop,
/// else marked with its grace period. `None`: it is marked already.
pub fn delete(pod: &Item<Pod>, now: &Now) -> Option<Write> {
    if pod.deleting() {
        return None;
    }
    if node_of(pod).is_none() || is_finished(&pod.object) {
        return remove(pod, now);
    }
    let grace = pod.object.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30).max(0);
    Some(mark(pod, grace, now))
}

/// The write that marks it as terminating, with so many seconds from now.
fn mark(pod: &Item<Pod>, grace: i64, now: &Now) -> Write {
    let mut marked = pod.object.clone();
    let at = now.wall.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(grace)).unwrap_or(now.wall);
    let deadline = Now { wall: at, ..*now };
    marked.metadata.deletion_timestamp = Some(deadline.time());
    marked.metadata.deletion_grace_period_seconds = Some(grace);
    Write::Update { object: Object::Pod(Box::new(marked)), revision: pod.revision }
}

/// The write that removes a Pod whatever its agent thinks: the node is dead or gone, or nothing
/// runs. Only this version of it: a Pod that was bound a moment ago is looked at again. One that
/// finalizers hold is marked with a grace period of 0 instead, and goes with the last of them;
/// `None`: it is marked so already.
pub fn remove(pod: &Item<Pod>, now: &Now) -> Option<Write> {
    let meta = &pod.object.metadata;
    if meta.finalizers.as_ref().is_none_or(Vec::is_empty) {
        let uid = meta.uid.clone().unwrap_or_default();
        return Some(Write::Delete { key: pod.key(), uid, revision: Some(pod.revision) });
    }
    let marked = pod.deleting() && meta.deletion_grace_period_seconds == Some(0);
    (!marked).then(|| mark(pod, 0, now))
}
