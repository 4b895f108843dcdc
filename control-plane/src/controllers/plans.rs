//! From a key of the queue to a planner's input, and its plan.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use trellis_model::Kind;
use trellis_model::resources::is_finished;

use super::cache::Cache;
use super::deployment::{self, OwnedSet};
use super::engine::Engine;
use super::object::{HasMeta, Item, Note, Now, Plan, Write};
use super::replicaset::{self, RelatedPods};
use super::work::{Named, Work};
use super::writer::WriteError;
use super::{gc, namespace, node, pods, retention};
use crate::nodes::Standing;

/// Plans one key from the cache as it is.
pub(super) fn plan(engine: &mut Engine, work: &Work, now: &Now) -> Plan {
    match work {
        Work::Node(name) => node_plan(engine, name, now),
        Work::Evict(name) => evict_plan(engine, name, now),
        Work::ReplicaSet(key) => replica_set_plan(engine, key, now),
        Work::Deployment(key) => deployment_plan(engine, key, now),
        Work::Namespace(name) => {
            let namespace = engine.cache.namespaces.get("", name);
            namespace.map(|n| namespace::plan(&engine.cache, n, now)).unwrap_or_default()
        }
        Work::Collect(key) => gc::plan(&engine.cache, key, now),
        Work::PodGc => engine.pod_gc.plan(&engine.cache, engine.config.max_finished_pods, now),
        Work::Retention => retention::plan(&engine.cache, engine.config.event_ttl, engine.config.max_events, now),
    }
}

fn node_plan(engine: &mut Engine, name: &Arc<str>, now: &Now) -> Plan {
    let Some(item) = engine.cache.nodes.get("", name).cloned() else { return Plan::default() };
    let has = has_cidrs(&item.object);
    // One that goes gets none any more; taints and conditions tell of it until it is gone.
    let lacks = !has && !item.deleting();
    let cidrs = if !lacks { Vec::new() } else { engine.cidrs.allocate(name, now.mono) };
    let standing = engine.assessor.track(name).map_or(Standing::Healthy, |t| t.standing);
    let reach = node::reach::find(name, &engine.reach, || {
        let born = |n: &Node| n.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second());
        engine.cache.nodes.iter().map(|n| (n.name().to_owned(), born(&n.object))).collect()
    });
    let input = node::Input {
        node: &item,
        standing,
        not_ready_for: engine.not_ready.get(name).map(|since| now.mono.saturating_duration_since(*since)),
        suspended: engine.assessor.suspended(),
        pod_cidrs: &cidrs,
        reach: &reach,
    };
    let mut plan = node::plan(&input, now);
    if let Some(above) = engine.cidrs.given(name).filter(|_| lacks) {
        // Enough for all that wait, so that their transactions do not compete for the counter.
        let lacking = engine.cache.nodes.iter().filter(|n| !has_cidrs(&n.object)).count();
        let to = above + lacking.max(1) as u64;
        plan.writes.push(Write::Raise { key: item.key(), counter: node::cidr::NEXT, above, to });
    }
    if lacks && cidrs.is_empty() && !engine.config.pod_ranges.is_empty() {
        let soon = engine.cidrs.next_free();
        if let Some(at) = soon {
            plan.again(at);
        }
        let what = if soon.is_some() { "deleted Nodes' rest for a minute" } else { "delete Nodes that are no more" };
        let message = format!("No pod CIDR is free for node {name}: {what}");
        tracing::warn!(node = %name, "{message}");
        let note = Note::new(Kind::Node, item.object.meta(), "node-controller", "CIDRNotAvailable", message);
        engine.recorder.tell([note.warning()]);
    }
    plan
}

fn has_cidrs(node: &Node) -> bool {
    node.spec.as_ref().and_then(|s| s.pod_cidrs.as_ref()).is_some_and(|c| !c.is_empty())
}

fn evict_plan(engine: &Engine, name: &Arc<str>, now: &Now) -> Plan {
    let Some(item) = engine.cache.nodes.get("", name) else { return Plan::default() };
    let pods: Vec<Arc<Item<Pod>>> = engine.cache.pods_on(name).cloned().collect();
    let seen = engine.taints_seen.get(name);
    let first_seen = |t: &Taint| -> Instant {
        let key = (t.key.clone(), t.value.clone().unwrap_or_default());
        seen.and_then(|s| s.get(&key).copied()).unwrap_or(now.mono)
    };
    let input = node::evict::Input {
        node: item,
        standing: engine.assessor.track(name).map_or(Standing::Healthy, |t| t.standing),
        suspended: engine.assessor.suspended(),
        pods: &pods,
        first_seen: &first_seen,
    };
    node::evict::plan(&input, now)
}

/// Pods of a Deployment, gathered only when a ReplicaSet of it must choose victims.
struct Siblings<'a> {
    cache: &'a Cache,
    set: &'a Item<ReplicaSet>,
}

impl std::fmt::Debug for Siblings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Siblings").field("of", &self.set.name()).finish()
    }
}

impl RelatedPods for Siblings<'_> {
    fn related(&self) -> Vec<Arc<Item<Pod>>> {
        match self.set.controller() {
            Some(owner) => {
                let sets = self.cache.replica_sets_of(&owner.uid);
                sets.iter().flat_map(|s| self.cache.pods_of(s.uid())).collect()
            }
            None => self.cache.pods_of(self.set.uid()),
        }
    }
}

fn replica_set_plan(engine: &mut Engine, (namespace, name): &Named, now: &Now) -> Plan {
    let Some(set) = engine.cache.replica_sets.get(namespace, name).cloned() else { return Plan::default() };
    let owned = engine.cache.pods_of(set.uid());
    let orphans: Vec<Arc<Item<Pod>>> = engine
        .cache
        .uncontrolled(Kind::Pod, namespace)
        .filter_map(|n| engine.cache.pods.get(namespace, n).cloned())
        .collect();
    let mut seed = engine.random();
    let mut random = || {
        // SplitMix64: distinct, well-mixed values from one draw of the engine's generator.
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let related = Siblings { cache: &engine.cache, set: &set };
    let input = replicaset::Input { set: &set, owned: &owned, orphans: &orphans, related: &related };
    replicaset::plan(&input, now, &mut random)
}

fn deployment_plan(engine: &Engine, (namespace, name): &Named, now: &Now) -> Plan {
    let cache = &engine.cache;
    let Some(item) = cache.deployments.get(namespace, name) else { return Plan::default() };
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let owned: Vec<OwnedSet> = cache
        .replica_sets_of(item.uid())
        .into_iter()
        .map(|set| {
            let own = cache.pods_of(set.uid());
            OwnedSet {
                active: count(own.iter().filter(|p| pods::active(p)).count()),
                living: count(own.iter().filter(|p| !is_finished(&p.object)).count()),
                set,
            }
        })
        .collect();
    let orphans: Vec<Arc<Item<ReplicaSet>>> = cache
        .uncontrolled(Kind::ReplicaSet, namespace)
        .filter_map(|n| cache.replica_sets.get(namespace, n).cloned())
        .collect();
    deployment::plan(&deployment::Input { deployment: item, owned: &owned, orphans: &orphans }, now)
}

/// What to tell about a transaction that admission refused: the template makes no valid Pod.
pub(super) fn failure_note(engine: &Engine, work: &Work, error: &WriteError) -> Option<Note> {
    let WriteError::Refused { source, .. } = error else { return None };
    let message = format!("Error creating: {source}");
    match work {
        Work::ReplicaSet((ns, name)) => {
            let set = engine.cache.replica_sets.get(ns, name)?;
            let note = Note::new(Kind::ReplicaSet, set.object.meta(), "replicaset-controller", "FailedCreate", message);
            Some(note.warning())
        }
        Work::Deployment((ns, name)) => {
            let d = engine.cache.deployments.get(ns, name)?;
            let note =
                Note::new(Kind::Deployment, d.object.meta(), deployment::COMPONENT, "ReplicaSetCreateError", message);
            Some(note.warning())
        }
        _ => None,
    }
}
