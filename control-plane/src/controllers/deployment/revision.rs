//! Which ReplicaSet is the new one, how it is named and numbered, and which old ones go.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use trellis_model::Kind;
use trellis_model::apply::LAST_APPLIED;
use trellis_model::hash::pod_template_hash;

use super::{Rollout, Working, max_surge, status};
use crate::controllers::object::{HasMeta, controller_ref};

/// Label that tells the ReplicaSets of one Deployment apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// The revision's number.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a ReplicaSet that was rolled back to.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// spec.replicas of the Deployment when the ReplicaSet was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// That plus maxSurge.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] =
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED, MAX, "deprecated.deployment.rollback.to"];
/// Kubernetes' bound of the history's text, in bytes.
const HISTORY_BYTES: usize = 2_000;

/// Whether a ReplicaSet is of this template: equal but for the hash label.
pub fn same_template(spec: Option<&ReplicaSetSpec>, template: &PodTemplateSpec) -> bool {
    spec.and_then(|s| s.template.as_ref()).is_some_and(|t| without_hash(t) == without_hash(template))
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut t = template.clone();
    if let Some(meta) = &mut t.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.take().filter(|l| !l.is_empty());
        meta.creation_timestamp = None;
    }
    t.metadata = t.metadata.filter(|m| *m != ObjectMeta::default());
    t
}

/// A ReplicaSet's revision number; 0 without.
pub fn number(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// One annotation.
pub fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Numbers and annotates an existing new ReplicaSet, and the Deployment after it.
pub(crate) fn sync_existing(r: &mut Rollout<'_>) {
    let next_number = next_number(r);
    let from = r.deployment.object.metadata.annotations.clone().unwrap_or_default();
    let min_ready = r.spec.min_ready_seconds;
    let Some(new) = &mut r.new else { return };
    annotate(&mut new.next, &from, next_number);
    if let Some(spec) = &mut new.next.spec {
        spec.min_ready_seconds = min_ready;
    }
    let number = number(&new.next);
    let name = new.name().to_owned();
    set_deployment_number(r, number);
    status::found(r, &name);
}

fn next_number(r: &Rollout<'_>) -> i64 {
    r.old.iter().map(|w| number(&w.item.object)).max().unwrap_or(0) + 1
}

fn annotate(set: &mut ReplicaSet, from: &BTreeMap<String, String>, next_number: i64) {
    let before = number(set);
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (k, v) in from.iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())) {
        annotations.insert(k.clone(), v.clone());
    }
    if before >= next_number {
        return;
    }
    annotations.insert(REVISION.to_owned(), next_number.to_string());
    if before > 0 {
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        let grown = if history.is_empty() { before.to_string() } else { format!("{history},{before}") };
        let mut text = grown.as_str();
        while text.len() > HISTORY_BYTES {
            text = text.split_once(',').map_or("", |(_, rest)| rest);
        }
        *history = text.to_owned();
    }
}

fn set_deployment_number(r: &mut Rollout<'_>, number: i64) {
    let annotations = r.next.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.to_owned(), number.to_string());
}

/// Plans the creation of the ReplicaSet of the present template with `replicas` Pods.
pub(crate) fn create(r: &mut Rollout<'_>, replicas: i32) {
    let status = r.deployment.object.status.as_ref();
    let collisions = status.and_then(|s| s.collision_count);
    let hash = pod_template_hash(&without_hash(&r.spec.template), collisions);
    let name = format!("{}-{hash}", r.deployment.name());
    if r.old.iter().any(|w| w.name() == name) {
        // Another template has the same hash: count, so that the next plan makes another name.
        let status = r.next.status.get_or_insert_default();
        status.collision_count = Some(collisions.unwrap_or(0) + 1);
        return;
    }
    let number = next_number(r);
    let mut set = ReplicaSet { metadata: own_meta(r, &name), spec: Some(set_spec(r, &hash, replicas)), status: None };
    set.metadata.labels = set.spec.as_ref().and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.clone());
    let from = r.deployment.object.metadata.annotations.clone().unwrap_or_default();
    annotate(&mut set, &from, number);
    set_sizes(&mut set, r.wanted(), r.wanted() + max_surge(&r.spec));
    set_deployment_number(r, number);
    status::created(r, &name);
    r.note("ScalingReplicaSet", format!("Scaled up replica set {name} from 0 to {replicas}"));
    r.create = Some(set);
}

fn own_meta(r: &Rollout<'_>, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(r.deployment.namespace().to_owned()),
        owner_references: Some(vec![controller_ref(Kind::Deployment, r.deployment.object.meta())]),
        ..ObjectMeta::default()
    }
}

fn set_spec(r: &Rollout<'_>, hash: &str, replicas: i32) -> ReplicaSetSpec {
    let mut template = r.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    let mut selector = r.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.to_owned());
    ReplicaSetSpec {
        min_ready_seconds: r.spec.min_ready_seconds,
        replicas: Some(replicas),
        selector,
        template: Some(template),
    }
}

/// Writes the sizes that a later change of spec.replicas is told by.
pub(crate) fn set_sizes(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
}

/// Deletes empty old ReplicaSets beyond revisionHistoryLimit, lowest revision first.
pub(crate) fn clean_up(r: &mut Rollout<'_>) {
    let Some(limit) = r.spec.revision_history_limit.and_then(|l| usize::try_from(l).ok()) else { return };
    let mut old: Vec<&Working> = r.old.iter().collect();
    let excess = old.len().saturating_sub(limit);
    old.sort_by_key(|w| (number(&w.item.object), w.item.object.metadata.creation_timestamp.clone()));
    let empty = |w: &&&Working| {
        let status = w.item.object.status.as_ref();
        let seen = status.and_then(|s| s.observed_generation).unwrap_or(0);
        w.possible() == 0
            && w.living == 0
            && status.map_or(0, |s| s.replicas) == 0
            && w.item.object.metadata.generation.unwrap_or(0) <= seen
    };
    r.delete = old.iter().take(excess).filter(empty).map(|w| w.item.clone()).collect();
    let gone: Vec<String> = r.delete.iter().map(|s| s.name().to_owned()).collect();
    r.old.retain(|w| !gone.iter().any(|n| n == w.name()));
}
