//! What the scheduler's decisions write.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use trellis_model::{Kind, Object, conditions};

use super::pod::PodInfo;
use crate::controllers::object::{HasMeta, Item, Note, Now, Write};

const COMPONENT: &str = "default-scheduler";
const SCHEDULED: &str = "PodScheduled";

/// The binding: spec.nodeName and PodScheduled=True, only from the version that was scheduled.
pub fn bind(pod: &PodInfo, node: &str, now: &Now) -> (Write, Note) {
    let mut bound = pod.item.object.clone();
    bound.spec.get_or_insert_default().node_name = Some(node.to_owned());
    set(&mut bound, "True", None, None, now);
    let message = format!("Successfully assigned {}/{} to {node}", pod.key.0, pod.key.1);
    let note = Note::new(Kind::Pod, bound.meta(), COMPONENT, "Scheduled", message);
    (Write::Update { object: Object::Pod(Box::new(bound)), revision: pod.item.revision }, note)
}

/// Why it is pending, as condition and Event; no write when the condition says so already.
pub fn unschedulable(item: &Item<Pod>, message: &str, now: &Now) -> Option<(Write, Note)> {
    let mut told = item.object.clone();
    let list = told.status.as_ref().and_then(|s| s.conditions.as_ref());
    let same =
        conditions::find(list, SCHEDULED).is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message));
    if same {
        return None;
    }
    set(&mut told, "False", Some("Unschedulable"), Some(message), now);
    let note = Note::new(Kind::Pod, told.meta(), COMPONENT, "FailedScheduling", message.to_owned()).warning();
    Some((Write::Update { object: Object::Pod(Box::new(told)), revision: item.revision }, note))
}

fn set(pod: &mut Pod, status: &str, reason: Option<&str>, message: Option<&str>, now: &Now) {
    let new = PodCondition {
        type_: SCHEDULED.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
        message: message.map(str::to_owned),
        ..PodCondition::default()
    };
    conditions::set(&mut pod.status.get_or_insert_default().conditions, new, now.time());
}
