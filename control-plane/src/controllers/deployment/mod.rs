//! Deployment: ReplicaSets by template, rolled over as the strategy says.
//!
//! ```text
//!  adopt/release ── paused, or spec.replicas changed ──> scale proportionally
//!        │
//!        ├─ Recreate:      old to 0 ─> wait until their Pods are gone ─> create/scale new
//!        └─ RollingUpdate: create new ─> scale new up within maxSurge
//!                                      └> else scale old down within maxUnavailable
//!        └─ complete: forget ReplicaSets beyond revisionHistoryLimit
//! ```
//!
//! One plan is one transaction: changed ReplicaSets and the Deployment's status together, each
//! under its revision. Unlike Kubernetes' controller, which trusts ReplicaSet status, the plan
//! counts Pods of the same revision of the cache: a ReplicaSet whose spec was lowered but whose
//! Pods are still there counts with its Pods, so maxSurge holds in every interleaving.
//!
//! Cost: O(ReplicaSets of the Deployment); no Pods are read, only counted.

pub mod numbers;
pub mod revision;
pub mod rolling;
pub mod scaling;
pub mod status;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use trellis_model::selector::LabelSelector;
use trellis_model::{Kind, Object};

use super::object::{HasMeta, Item, MetaEdit, Note, Now, Plan, Write, controller_ref};

pub use numbers::{max_surge, max_unavailable};

pub(crate) const COMPONENT: &str = "deployment-controller";

/// A ReplicaSet and its Pods as of the same revision.
#[derive(Debug, Clone)]
pub struct OwnedSet {
    /// The ReplicaSet.
    pub set: Arc<Item<ReplicaSet>>,
    /// Own Pods that are neither finished nor terminating.
    pub active: i32,
    /// Own Pods that are not finished: terminating ones too.
    pub living: i32,
}

/// What a plan is made from.
#[derive(Debug)]
pub struct Input<'a> {
    /// The Deployment.
    pub deployment: &'a Item<Deployment>,
    /// ReplicaSets whose controller it is.
    pub owned: &'a [OwnedSet],
    /// ReplicaSets of its namespace without a controller.
    pub orphans: &'a [Arc<Item<ReplicaSet>>],
}

/// A ReplicaSet while a plan changes it.
#[derive(Debug, Clone)]
pub(crate) struct Working {
    pub item: Arc<Item<ReplicaSet>>,
    pub next: ReplicaSet,
    pub active: i32,
    pub living: i32,
}

impl Working {
    pub(crate) fn name(&self) -> &str {
        self.item.name()
    }
    /// spec.replicas as planned.
    pub(crate) fn replicas(&self) -> i32 {
        self.next.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    /// Pods there are or may be any moment: the ReplicaSet's last spec, or what is left of an
    /// earlier one.
    pub(crate) fn possible(&self) -> i32 {
        let spec = self.item.object.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        spec.max(self.replicas()).max(self.active)
    }
    /// Pods known available, of those that the planned spec keeps.
    pub(crate) fn available(&self) -> i32 {
        let status = self.item.object.status.as_ref();
        status.and_then(|s| s.available_replicas).unwrap_or(0).min(self.replicas())
    }
    fn changed(&self) -> bool {
        self.next != self.item.object
    }
}

/// The plan under construction.
#[derive(Debug)]
pub(crate) struct Rollout<'a> {
    pub deployment: &'a Item<Deployment>,
    pub spec: DeploymentSpec,
    pub now: Now,
    /// All but the new one, oldest first.
    pub old: Vec<Working>,
    pub new: Option<Working>,
    pub create: Option<ReplicaSet>,
    pub delete: Vec<Arc<Item<ReplicaSet>>>,
    /// The Deployment as planned (annotations and status).
    pub next: Deployment,
    pub notes: Vec<Note>,
}

impl Rollout<'_> {
    /// spec.replicas.
    pub(crate) fn wanted(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
    /// All ReplicaSets.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Working> {
        self.old.iter().chain(&self.new)
    }
    pub(crate) fn note(&mut self, reason: &'static str, message: String) {
        self.notes.push(Note::new(Kind::Deployment, self.deployment.object.meta(), COMPONENT, reason, message));
    }
    pub(crate) fn recreates(&self) -> bool {
        self.spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate")
    }
}

/// Plans the next step of a Deployment.
pub fn plan(input: &Input<'_>, now: &Now) -> Plan {
    let Some(spec) = input.deployment.object.spec.clone() else { return Plan::default() };
    let Ok(selector) = LabelSelector::from_k8s(&spec.selector) else { return Plan::default() };
    if !input.deployment.deleting() && !selector.is_everything() {
        let writes = claim(input, &selector);
        if !writes.is_empty() {
            return Plan { writes, ..Plan::default() };
        }
    }
    let mut rollout = begin(input, spec, *now);
    if !input.deployment.deleting() && !selector.is_everything() {
        step(&mut rollout);
    }
    finish(rollout)
}

fn claim(input: &Input<'_>, selector: &LabelSelector) -> Vec<Write> {
    let matches = |s: &Item<ReplicaSet>| selector.matches(&s.object.metadata.labels);
    let mut writes = Vec::new();
    for owned in input.owned.iter().filter(|o| !o.set.deleting() && !matches(&o.set)) {
        let edit = MetaEdit { drop_owners: vec![input.deployment.uid().to_owned()], drop_finalizer: None };
        writes.push(Write::EditMeta { key: owned.set.key(), revision: owned.set.revision, edit });
    }
    for orphan in input.orphans.iter().filter(|s| !s.deleting() && matches(s)) {
        let mut adopted = orphan.object.clone();
        let reference = controller_ref(Kind::Deployment, input.deployment.object.meta());
        adopted.metadata.owner_references.get_or_insert_default().push(reference);
        let object = Object::ReplicaSet(Box::new(adopted));
        writes.push(Write::Update { object, revision: orphan.revision });
    }
    if !writes.is_empty() {
        writes.push(Write::Check { key: input.deployment.key(), revision: input.deployment.revision });
    }
    writes
}

fn begin<'a>(input: &Input<'a>, spec: DeploymentSpec, now: Now) -> Rollout<'a> {
    let mut sets: Vec<Working> = input
        .owned
        .iter()
        .filter(|o| !o.set.deleting())
        .map(|o| Working { item: o.set.clone(), next: o.set.object.clone(), active: o.active, living: o.living })
        .collect();
    sets.sort_by(|a, b| {
        let age = |w: &Working| w.item.object.metadata.creation_timestamp.clone();
        age(a).cmp(&age(b)).then_with(|| a.name().cmp(b.name()))
    });
    let at = sets.iter().position(|w| revision::same_template(w.item.object.spec.as_ref(), &spec.template));
    let new = at.map(|i| sets.remove(i));
    Rollout {
        deployment: input.deployment,
        spec,
        now,
        old: sets,
        new,
        create: None,
        delete: Vec::new(),
        next: input.deployment.object.clone(),
        notes: Vec::new(),
    }
}

fn step(r: &mut Rollout<'_>) {
    status::pause_condition(r);
    // A Recreate has one ReplicaSet with Pods at most: it is scaled as part of the strategy.
    if r.spec.paused == Some(true) || (!r.recreates() && scaling::is_scaling(r)) {
        revision::sync_existing(r);
        scaling::scale(r);
        if r.spec.paused == Some(true) {
            revision::clean_up(r);
        }
    } else if r.recreates() {
        rolling::recreate(r);
    } else {
        rolling::roll(r);
    }
}

fn finish(mut r: Rollout<'_>) -> Plan {
    let again_in = status::sync(&mut r);
    let mut plan = Plan { notes: std::mem::take(&mut r.notes), ..Plan::default() };
    if let Some(wait) = again_in {
        plan.again(r.now.mono + wait);
    }
    for working in r.all().filter(|w| w.changed()) {
        let object = Object::ReplicaSet(Box::new(working.next.clone()));
        plan.writes.push(Write::Update { object, revision: working.item.revision });
    }
    for set in &r.delete {
        plan.writes.push(Write::Delete { key: set.key(), uid: set.uid().to_owned(), revision: Some(set.revision) });
    }
    if let Some(set) = r.create {
        plan.writes.push(Write::Create(Object::ReplicaSet(Box::new(set))));
    }
    if r.next != r.deployment.object {
        let object = Object::Deployment(Box::new(r.next));
        plan.writes.push(Write::Update { object, revision: r.deployment.revision });
    } else if !plan.writes.is_empty() {
        // The spec that was read is the one that is acted on.
        plan.writes.push(Write::Check { key: r.deployment.key(), revision: r.deployment.revision });
    }
    plan
}
