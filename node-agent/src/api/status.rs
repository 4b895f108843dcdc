//! Writing one Pod's status: the newest wish only, one write under way, again after a conflict.
//!
//! A Pod passes through several states in the tenths of a second that its start takes. Each would
//! be a write through the log to every disk and every watcher, and the last, which says that it
//! runs, would wait for the one before. So a status that says no more than "not yet" waits a moment
//! for a better one.
use super::{ApiError, get, key, update};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use trellis_proto::client::Connection;

/// Between two tries when the control plane cannot be reached.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long "not yet" waits for better news: a start takes less where the image is present.
const PENDING_WAITS: Duration = Duration::from_millis(250);
/// Conditions the agent owns; all others are left as they are found.
const OWN_CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// What is wished, and the object it was derived from.
pub type Wish = Option<(Arc<Pod>, PodStatus)>;

/// Runs until the wishing side is dropped; what is wished last is tried to be written before it
/// ends, unless the Pod is gone.
pub async fn run(conn: Connection, mut wishes: watch::Receiver<Wish>) {
    let mut base: Option<Pod> = None;
    loop {
        settle(&mut wishes, PENDING_WAITS).await;
        let wish = wishes.borrow_and_update().clone();
        if let Some((pod, status)) = wish {
            let newest = base.take().filter(|b| revision(b) > revision(&pod));
            let mut object = newest.unwrap_or_else(|| (*pod).clone());
            loop {
                match write(&conn, object, &status).await {
                    Ok(stored) => {
                        base = Some(stored);
                        break;
                    }
                    Err(Failure::Gone) => return,
                    Err(Failure::Again(fresh)) => object = *fresh,
                    Err(Failure::Later(same)) => {
                        tokio::time::sleep(RETRY_EVERY).await;
                        match wishes.has_changed() {
                            Ok(true) => break,
                            Ok(false) => object = *same,
                            // The Pod is over here. What could not be written (a node may not write to
                            // a Pod that is not its own any more) must not be tried for ever.
                            Err(_) => return,
                        }
                    }
                }
            }
        }
        if wishes.changed().await.is_err() {
            return;
        }
    }
}

/// Returns when what is wished is worth a write, or has waited long enough.
async fn settle(wishes: &mut watch::Receiver<Wish>, at_most: Duration) {
    let better = |wish: &Wish| wish.as_ref().is_some_and(|(_, status)| !is_on_its_way(status));
    if wishes.borrow().is_some() {
        // Too late, or nobody is there to wish any more: then it is written as it is.
        drop(tokio::time::timeout(at_most, wishes.wait_for(better)).await);
    }
}

/// It says only that the Pod is being started.
fn is_on_its_way(status: &PodStatus) -> bool {
    let waits = |reason: &str| matches!(reason, "ContainerCreating" | "PodInitializing");
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let mut states = all.map(|c| c.state.as_ref());
    status.phase.as_deref() == Some("Pending")
        && status.reason.is_none()
        && states.all(|state| {
            let waiting = state.and_then(|s| s.waiting.as_ref());
            waiting.and_then(|w| w.reason.as_deref()).is_some_and(waits)
        })
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

enum Failure {
    /// The Pod is not there any more.
    Gone,
    /// It changed meanwhile: try on this.
    Again(Box<Pod>),
    /// Nobody answers.
    Later(Box<Pod>),
}

async fn write(conn: &Connection, mut object: Pod, status: &PodStatus) -> Result<Pod, Failure> {
    let meta = object.metadata.clone();
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    let key = key("Pod", &namespace, &name);
    let merged = merge(status, object.status.as_ref());
    if is_written(&object, &merged) {
        return Ok(object);
    }
    object.status = Some(merged);
    match update(conn, &key, &object, "status").await {
        Ok(stored) => Ok(stored),
        Err(ApiError::NotFound(_)) => Err(Failure::Gone),
        Err(ApiError::Conflict(_)) => match get::<Pod>(conn, &key).await {
            Ok(fresh) if fresh.metadata.uid == meta.uid => Err(Failure::Again(Box::new(fresh))),
            Ok(_) | Err(ApiError::NotFound(_)) => Err(Failure::Gone),
            Err(_) => Err(later(object)),
        },
        Err(error) => {
            tracing::warn!(%error, "cannot write a Pod's status: trying again");
            Err(later(object))
        }
    }
}

/// Without the status that was not written: the next try would take it for the stored one.
fn later(mut object: Pod) -> Failure {
    object.status = None;
    Failure::Later(Box::new(object))
}

/// The object has this status already.
fn is_written(object: &Pod, merged: &PodStatus) -> bool {
    object.status.as_ref() == Some(merged)
}

/// The agent's words, with the conditions of others as the object has them now.
fn merge(ours: &PodStatus, theirs: Option<&PodStatus>) -> PodStatus {
    let mut merged = ours.clone();
    let own = |kind: &str| OWN_CONDITIONS.contains(&kind);
    let mut conditions: Vec<_> = ours.conditions.iter().flatten().filter(|c| own(&c.type_)).cloned().collect();
    let foreign = theirs.or(Some(ours)).and_then(|s| s.conditions.as_ref());
    conditions.extend(foreign.into_iter().flatten().filter(|c| !own(&c.type_)).cloned());
    merged.conditions = Some(conditions);
    merged
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn not_yet_waits_for_better_news_but_not_for_ever() {
        let wish = |json| Some((Arc::new(Pod::default()), serde_json::from_value::<PodStatus>(json).unwrap()));
        let waiting = |reason: &str| {
            let state = serde_json::json!({"waiting": {"reason": reason}});
            let container = serde_json::json!({"name": "c", "state": state, "ready": false,
                "restartCount": 0, "image": "", "imageID": ""});
            wish(serde_json::json!({"phase": "Pending", "containerStatuses": [container]}))
        };
        let (tx, mut rx) = watch::channel(waiting("ContainerCreating"));
        // Nothing better comes: this returns all the same.
        settle(&mut rx, Duration::from_millis(1)).await;
        for better in [wish(serde_json::json!({"phase": "Running"})), waiting("ErrImagePull")] {
            tx.send_replace(waiting("PodInitializing"));
            let far = Duration::from_secs(3600);
            let waits = tokio::time::timeout(Duration::from_millis(20), settle(&mut rx, far));
            assert!(waits.await.is_err(), "not yet is not written at once");
            tx.send_replace(better);
            tokio::time::timeout(Duration::from_secs(10), settle(&mut rx, far)).await.unwrap();
        }
    }

    #[test]
    fn what_was_not_written_is_not_taken_for_written_by_the_next_try() {
        let ours: PodStatus =
            serde_json::from_value(serde_json::json!({"phase": "Running", "conditions": []})).unwrap();
        let tried = Pod { status: Some(merge(&ours, None)), ..Pod::default() };
        assert!(is_written(&tried, &merge(&ours, tried.status.as_ref())), "the control");
        let Failure::Later(next) = later(tried) else { panic!("not later") };
        assert!(!is_written(&next, &merge(&ours, next.status.as_ref())));
    }

    #[test]
    fn conditions_of_others_are_taken_from_the_object() {
        let status = |json| serde_json::from_value::<PodStatus>(json).unwrap();
        let ours = status(serde_json::json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "False"}]}));
        let theirs = status(serde_json::json!({"phase": "Pending", "conditions": [
            {"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]}));
        let merged = merge(&ours, Some(&theirs));
        let pairs: Vec<_> =
            merged.conditions.unwrap().into_iter().map(|c| format!("{}={}", c.type_, c.status)).collect();
        assert_eq!(pairs, ["Ready=True", "PodScheduled=True"]);
        assert_eq!(merged.phase.as_deref(), Some("Running"));
    }
}
