//! ReplicaSet: as many Pods as asked for, adopted by label and controller reference.
//!
//! One plan is one transaction with a check of the ReplicaSet's revision, so that Pods are made
//! or deleted only for the spec that was read: a Deployment that counts Pods and specs of one
//! revision can rely on never being overtaken.
//!
//! Cost of a plan: O(own Pods + Pods without controller in the namespace), and, when Pods are
//! deleted, O(Pods of the Deployment) for the ranking.

pub mod rank;
pub mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use trellis_model::selector::LabelSelector;
use trellis_model::{Kind, Object, names};

use super::object::{HasMeta, Item, MetaEdit, Note, Now, Plan, TRANSACTION_BYTES, Write, controller_ref};
use super::pods;
use crate::store::MAX_OBJECT_BYTES;

/// Pods made or deleted in one transaction: the API's limit is 1,000 objects, and half a
/// megabyte of Pods keeps one log entry short for everybody else.
pub const BURST: usize = 250;
/// Bytes of Pods in it: what is left is for the ReplicaSet's own status beside them.
const POD_BYTES: usize = TRANSACTION_BYTES - MAX_OBJECT_BYTES;
const COMPONENT: &str = "replicaset-controller";
/// One event a Pod is kind to a small cluster; a burst is told once.
const NOTES_EACH: usize = 10;

/// What a plan is made from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The ReplicaSet.
    pub set: &'a Item<ReplicaSet>,
    /// Pods whose controller it is.
    pub owned: &'a [Arc<Item<Pod>>],
    /// Pods of its namespace without a controller.
    pub orphans: &'a [Arc<Item<Pod>>],
    /// Pods of all ReplicaSets of the same owner (itself included), for the ranking.
    pub related: &'a dyn RelatedPods,
}

/// Pods of the same Deployment; asked for only when Pods are to be deleted.
pub trait RelatedPods: std::fmt::Debug {
    /// They.
    fn related(&self) -> Vec<Arc<Item<Pod>>>;
}

impl RelatedPods for Vec<Arc<Item<Pod>>> {
    fn related(&self) -> Vec<Arc<Item<Pod>>> {
        self.clone()
    }
}

/// Plans one step towards the wanted number of Pods. `random` gives the names' suffixes.
pub fn plan(input: &Input<'_>, now: &Now, random: &mut dyn FnMut() -> u64) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = input.set.object.spec.as_ref() else { return plan };
    let Ok(selector) = LabelSelector::from_k8s(&spec.selector) else { return plan };
    if !input.set.deleting() && !selector.is_everything() {
        claim(input, &selector, &mut plan.writes);
        if !plan.writes.is_empty() {
            plan.writes.insert(0, check(input.set));
            return plan;
        }
        scale(input, now, random, &mut plan);
    }
    let (new_status, again) = status::compute(input, now);
    if let Some(after) = again {
        plan.again(now.mono + after.max(Duration::from_millis(1)));
    }
    match status::write(input.set, new_status) {
        // First: it guards the others, whatever of them must wait for the next transaction.
        Some(update) => plan.writes.insert(0, update),
        None if !plan.writes.is_empty() => plan.writes.insert(0, check(input.set)),
        None => {}
    }
    plan
}

fn check(set: &Item<ReplicaSet>) -> Write {
    Write::Check { key: set.key(), revision: set.revision }
}

/// Adopts matching Pods that nobody controls, releases own ones that match no more.
fn claim(input: &Input<'_>, selector: &LabelSelector, writes: &mut Vec<Write>) {
    let matches = |p: &Item<Pod>| selector.matches(&p.object.metadata.labels);
    for pod in input.owned.iter().filter(|p| pods::active(p) && !matches(p)) {
        let edit = MetaEdit { drop_owners: vec![input.set.uid().to_owned()], drop_finalizer: None };
        writes.push(Write::EditMeta { key: pod.key(), revision: pod.revision, edit });
    }
    for pod in input.orphans.iter().filter(|p| pods::active(p) && matches(p)) {
        let mut adopted = pod.object.clone();
        let reference = controller_ref(Kind::ReplicaSet, input.set.object.meta());
        adopted.metadata.owner_references.get_or_insert_default().push(reference);
        writes.push(Write::Update { object: Object::Pod(Box::new(adopted)), revision: pod.revision });
    }
    writes.truncate(BURST);
}

fn scale(input: &Input<'_>, now: &Now, random: &mut dyn FnMut() -> u64, plan: &mut Plan) {
    let active: Vec<&Arc<Item<Pod>>> = input.owned.iter().filter(|p| pods::active(p)).collect();
    let wanted = wanted(input.set);
    if active.len() < wanted {
        let missing = (wanted - active.len()).min(BURST);
        let mut new = || Write::Create(new_pod(input.set, random()));
        let first = new();
        // They are all of one size.
        let fit = (POD_BYTES / first.weight().max(1)).max(1);
        plan.writes.push(first);
        plan.writes.extend(std::iter::repeat_with(new).take(missing.min(fit) - 1));
        tell(input.set, plan, "SuccessfulCreate", "Created pod");
    } else if active.len() > wanted {
        let excess = (active.len() - wanted).min(BURST);
        let related = input.related.related();
        let victims = rank::victims(&active, &related, excess, now);
        plan.writes.extend(victims.into_iter().filter_map(|p| pods::delete(p, now)));
        plan.cut(BURST, POD_BYTES);
        tell(input.set, plan, "SuccessfulDelete", "Deleted pod");
    }
}

/// spec.replicas as a count.
fn wanted(set: &Item<ReplicaSet>) -> usize {
    let replicas = set.object.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

fn tell(set: &Item<ReplicaSet>, plan: &mut Plan, reason: &'static str, what: &str) {
    let names: Vec<String> = plan.writes.iter().map(|w| w.key().name.to_string()).collect();
    let note = |m: String| Note::new(Kind::ReplicaSet, set.object.meta(), COMPONENT, reason, m);
    if names.len() <= NOTES_EACH {
        plan.notes.extend(names.iter().map(|n| note(format!("{what}: {n}"))));
    } else {
        plan.notes.push(note(format!(
            "{what}s: {} and {} more",
            names[..NOTES_EACH].join(", "),
            names.len() - NOTES_EACH
        )));
    }
}

fn new_pod(set: &Item<ReplicaSet>, random: u64) -> Object {
    let template = set.object.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let prefix = format!("{}-", set.name());
    let mut metadata = template.metadata.unwrap_or_default();
    metadata.name = Some(names::generated_name(&prefix, random));
    metadata.generate_name = Some(prefix);
    metadata.namespace = Some(set.namespace().to_owned());
    metadata.owner_references = Some(vec![controller_ref(Kind::ReplicaSet, set.object.meta())]);
    Object::Pod(Box::new(Pod { metadata, spec: template.spec, status: None }))
}
