//! Pods that no agent will ever clean up: bound to a Node that does not exist, terminating but
//! never bound, or finished beyond the number that is kept.
//!
//! Cost: the whole plan O(Pods); it runs when a Node goes, and every [`EVERY`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trellis_model::resources::is_finished;

use super::cache::{Cache, node_of};
use super::object::{Now, Plan};
use super::pods;

/// A full look at all Pods, as Kubernetes' podgc does.
pub const EVERY: Duration = Duration::from_secs(20);
/// A Node that was deleted may come back at once (an agent that registers again).
const ORPHAN_GRACE: Duration = Duration::from_secs(40);
/// Pods removed in one transaction.
const BURST: usize = 250;

/// Remembers since when a Node that Pods are bound to does not exist.
#[derive(Debug, Default)]
pub struct PodGc {
    missing: HashMap<Arc<str>, Instant>,
}

impl PodGc {
    /// Plans the removals that are due. `keep_finished`: how many finished Pods may stay.
    pub fn plan(&mut self, cache: &Cache, keep_finished: usize, now: &Now) -> Plan {
        let mut plan = Plan::default();
        plan.again(now.mono + EVERY);
        self.note_missing(cache, now.mono);
        for (node, since) in &self.missing {
            let due = *since + ORPHAN_GRACE;
            if due > now.mono {
                plan.again(due);
                continue;
            }
            plan.writes.extend(cache.pods_on(node).filter_map(|p| pods::remove(p, now)));
        }
        let never_bound = cache.pods.iter().filter(|p| p.deleting() && node_of(p).is_none());
        plan.writes.extend(never_bound.filter_map(|p| pods::remove(p, now)));
        let mut finished: Vec<_> = cache.pods.iter().filter(|p| is_finished(&p.object) && !p.deleting()).collect();
        let excess = finished.len().saturating_sub(keep_finished);
        if excess > 0 {
            finished.sort_by_key(|p| p.object.metadata.creation_timestamp.clone());
            plan.writes.extend(finished.into_iter().take(excess).filter_map(|p| pods::remove(p, now)));
        }
        plan.writes.sort_by_key(super::object::Write::key);
        plan.writes.dedup_by_key(|w| w.key());
        if plan.writes.len() > BURST {
            plan.writes.truncate(BURST);
            plan.again(now.mono);
        }
        plan
    }

    fn note_missing(&mut self, cache: &Cache, now: Instant) {
        let gone: Vec<&Arc<str>> = cache.nodes_with_pods().filter(|n| cache.nodes.get("", n).is_none()).collect();
        self.missing.retain(|n, _| gone.contains(&n));
        for node in gone {
            self.missing.entry(node.clone()).or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::controllers::object::Write;
    use crate::controllers::testing::{World, pod};
    use trellis_model::Object;

    #[test]
    fn pods_of_a_node_that_is_gone_leave_after_a_grace() {
        let mut w = World::new();
        let mut p = pod("default", "a");
        p.spec.get_or_insert_default().node_name = Some("gone".into());
        w.create(p);
        let mut gc = PodGc::default();
        let now = w.now();
        let first = gc.plan(&w.cache, 100, &now);
        assert!(first.writes.is_empty());
        let later = Now { mono: now.mono + ORPHAN_GRACE, ..now };
        assert_eq!(gc.plan(&w.cache, 100, &later).writes.len(), 1);
    }

    #[test]
    fn what_finalizers_hold_is_marked_once_and_stays() {
        let mut w = World::new();
        let mut p = pod("default", "a");
        p.metadata.finalizers = Some(vec!["example.com/stay".into()]);
        p.spec.get_or_insert_default().node_name = Some("gone".into());
        w.create(p.clone());
        let mut gc = PodGc::default();
        let now = w.now();
        gc.plan(&w.cache, 100, &now);
        let later = Now { mono: now.mono + ORPHAN_GRACE, ..now };
        let plan = gc.plan(&w.cache, 100, &later);
        let [Write::Update { object: Object::Pod(marked), .. }] = &plan.writes[..] else { panic!("{plan:?}") };
        assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(0));
        assert_eq!(marked.metadata.finalizers, p.metadata.finalizers);
        w.create((**marked).clone());
        assert!(gc.plan(&w.cache, 100, &later).writes.is_empty());
    }

    #[test]
    fn the_oldest_finished_pods_leave_beyond_the_limit() {
        let mut w = World::new();
        for i in 0..5 {
            let mut p = pod("default", &format!("p{i}"));
            p.status.get_or_insert_default().phase = Some("Succeeded".into());
            w.create(p);
        }
        let now = w.now();
        assert_eq!(PodGc::default().plan(&w.cache, 3, &now).writes.len(), 2);
        assert!(PodGc::default().plan(&w.cache, 5, &now).writes.is_empty());
    }
}
