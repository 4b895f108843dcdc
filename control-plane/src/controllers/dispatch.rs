//! Which work a change asks for.
//!
//! Cost of a change: O(log n), plus O(ReplicaSets or Deployments of the namespace) for objects
//! that nobody controls, plus O(dependents) when an owner goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use trellis_model::selector::LabelSelector;
use trellis_model::taints::NO_EXECUTE;

use super::cache::{Body, Change, node_of};
use super::engine::Engine;
use super::object::{HasMeta, Item, Now, controller_of};
use super::work::Work;
use super::{gc, node};
use crate::nodes::Standing;

/// Queues what one change asks for.
pub(super) fn changed(engine: &mut Engine, change: &Change, now: &Now) {
    match &change.body {
        Body::Pod(old, new) => pod(engine, change, old.as_ref(), new.as_ref(), now),
        Body::Node(old, new) => node_changed(engine, change, old.as_deref(), new.as_deref(), now),
        Body::Namespace(_, Some(new)) if new.deleting() => engine.queue.add(Work::Namespace(change.key.name.clone())),
        Body::ReplicaSet(old, new) => replica_set(engine, change, old.as_deref(), new.as_deref()),
        Body::Deployment(_, Some(_)) => engine.queue.add(Work::Deployment(named(change))),
        Body::Namespace(..) | Body::Deployment(..) | Body::Other => {}
    }
    collect(engine, change);
    let going = engine.cache.namespaces.get("", &change.key.namespace).is_some_and(|n| n.deleting());
    if going {
        engine.queue.add(Work::Namespace(change.key.namespace.clone()));
    }
}

fn named(change: &Change) -> (Arc<str>, Arc<str>) {
    (change.key.namespace.clone(), change.key.name.clone())
}

fn pod(engine: &mut Engine, change: &Change, old: Option<&Arc<Item<Pod>>>, new: Option<&Arc<Item<Pod>>>, now: &Now) {
    engine.scheduler.pod_changed(&named(change), new, now.mono);
    for version in [old, new].into_iter().flatten() {
        if let Some(owner) = version.controller()
            && owner.kind == "ReplicaSet"
        {
            engine.queue.add(Work::ReplicaSet((change.key.namespace.clone(), Arc::from(owner.name.as_str()))));
        }
    }
    let Some(new) = new else { return };
    if new.controller().is_none() && !new.deleting() {
        let labels = &new.object.metadata.labels;
        let matching = engine.cache.replica_sets.in_namespace(new.namespace()).filter(|s| {
            let selector = s.object.spec.as_ref().and_then(|s| LabelSelector::from_k8s(&s.selector).ok());
            selector.is_some_and(|s| !s.is_everything() && s.matches(labels))
        });
        for set in matching {
            engine.queue.add(Work::ReplicaSet((change.key.namespace.clone(), Arc::from(set.name()))));
        }
    }
    let Some(name) = node_of(new) else {
        if new.deleting() {
            engine.queue.add(Work::PodGc);
        }
        return;
    };
    match engine.cache.nodes.get("", name) {
        None => engine.queue.add(Work::PodGc),
        Some(node) => {
            let tainted = !no_execute(&node.object).is_empty();
            let dead = engine.assessor.track(name).is_some_and(|t| t.standing == Standing::Dead);
            if tainted || dead {
                engine.queue.add(Work::Evict(Arc::from(name)));
            }
        }
    }
}

fn no_execute(node: &Node) -> Vec<(String, String)> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref()).into_iter().flatten();
    taints.filter(|t| t.effect == NO_EXECUTE).map(|t| (t.key.clone(), t.value.clone().unwrap_or_default())).collect()
}

fn node_changed(engine: &mut Engine, change: &Change, old: Option<&Item<Node>>, new: Option<&Item<Node>>, now: &Now) {
    let name = &change.key.name;
    engine.scheduler.node_changed(name, new.map(|n| &n.object), now.mono);
    let Some(new) = new else {
        engine.assessor.remove(name);
        engine.assess_due = true;
        engine.cidrs.release(name, now.mono);
        engine.taints_seen.remove(name);
        engine.not_ready.remove(name);
        engine.queue.add(Work::PodGc);
        return;
    };
    if old.is_none_or(|o| o.uid() != new.uid()) {
        engine.assessor.add(name, node::prior_standing(&new.object), now.mono);
        engine.assess_due = true;
    }
    let cidrs = new.object.spec.as_ref().and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
    if let Some(other) = engine.cidrs.set(name, &cidrs) {
        tracing::error!(node = %name, %other, ?cidrs, "two nodes have overlapping pod CIDRs: delete one of them");
    }
    let before = engine.taints_seen.remove(name).unwrap_or_default();
    let seen: BTreeMap<_, _> =
        no_execute(&new.object).into_iter().map(|t| (t.clone(), before.get(&t).copied().unwrap_or(now.mono))).collect();
    if !seen.is_empty() {
        engine.taints_seen.insert(name.clone(), seen);
    }
    if node::ready_status(&new.object) == Some("True") {
        engine.not_ready.remove(name);
    } else {
        engine.not_ready.entry(name.clone()).or_insert(now.mono);
    }
    engine.queue.add(Work::Node(name.clone()));
    engine.queue.add(Work::Evict(name.clone()));
}

fn replica_set(engine: &mut Engine, change: &Change, old: Option<&Item<ReplicaSet>>, new: Option<&Item<ReplicaSet>>) {
    if new.is_some() {
        engine.queue.add(Work::ReplicaSet(named(change)));
    }
    for version in [old, new].into_iter().flatten() {
        if let Some(owner) = controller_of(version.object.meta())
            && owner.kind == "Deployment"
        {
            engine.queue.add(Work::Deployment((change.key.namespace.clone(), Arc::from(owner.name.as_str()))));
        }
    }
    let Some(new) = new.filter(|n| n.controller().is_none() && !n.deleting()) else { return };
    let labels = &new.object.metadata.labels;
    let matching = engine.cache.deployments.in_namespace(new.namespace()).filter(|d| {
        let selector = d.object.spec.as_ref().and_then(|s| LabelSelector::from_k8s(&s.selector).ok());
        selector.is_some_and(|s| !s.is_everything() && s.matches(labels))
    });
    for deployment in matching {
        engine.queue.add(Work::Deployment((change.key.namespace.clone(), Arc::from(deployment.name()))));
    }
}

fn collect(engine: &mut Engine, change: &Change) {
    let gone = |uid: &Arc<str>| !engine.cache.uid_exists(uid);
    let mut keys = Vec::new();
    if let Some(meta) = &change.new_meta {
        let dangling = meta.owners.iter().any(|o| o.served && gone(&o.uid));
        if gc::concerns(meta) && (dangling || meta.deleting) {
            keys.push(change.key.clone());
        }
        // Foreground deletion waits for its dependents.
        for owner in &meta.owners {
            keys.extend(engine.cache.key_of_uid(&owner.uid).filter(|k| waits(engine, k)).cloned());
        }
    }
    if let Some(old) = &change.old_meta {
        if gone(&old.uid) {
            keys.extend(engine.cache.dependents(&old.uid).cloned());
        }
        for owner in &old.owners {
            keys.extend(engine.cache.key_of_uid(&owner.uid).filter(|k| waits(engine, k)).cloned());
        }
    }
    for key in keys {
        engine.queue.add(Work::Collect(key));
    }
}

fn waits(engine: &Engine, owner: &super::object::ObjKey) -> bool {
    engine.cache.meta(owner).is_some_and(|m| m.deleting && !m.finalizers.is_empty())
}

/// Judges all nodes and queues those about which the verdict, or whether to act on it, changed.
pub(super) fn assess(engine: &mut Engine, now: &Now) {
    let before = engine.assessor.suspended();
    let changed = engine.assessor.assess(now.mono);
    for name in &changed {
        if let Some(track) = engine.assessor.track(name) {
            tracing::info!(node = %name, standing = ?track.standing, "node standing changed");
        }
        engine.queue.add(Work::Node(name.clone()));
        engine.queue.add(Work::Evict(name.clone()));
    }
    let suspended = engine.assessor.suspended();
    if before != suspended {
        if suspended {
            tracing::warn!("more than half of the nodes are lost: nothing is evicted until some are back");
        }
        let all: Vec<Arc<str>> = engine.cache.nodes.iter().map(|n| Arc::from(n.name())).collect();
        for name in all {
            engine.queue.add(Work::Node(name.clone()));
            engine.queue.add(Work::Evict(name));
        }
    }
}
