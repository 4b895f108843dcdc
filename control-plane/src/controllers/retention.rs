//! Event objects are kept for an hour, and only so many of them: the oldest go first.
//!
//! Their times are wall times by nature. Cost: O(Events removed · log Events).

use std::time::Duration;

use super::cache::Cache;
use super::object::{Now, Plan, Write};

/// Kubernetes' default `--event-ttl`.
pub const EVENT_TTL: Duration = Duration::from_secs(3_600);
/// About 10 MB: a control plane is to fit 50.
pub const MAX_EVENTS: usize = 10_000;
/// Never more often than this, so that removals come in batches.
const EVERY: Duration = Duration::from_secs(10);
/// Events removed in one transaction.
const BURST: usize = 500;

/// Plans the removal of Events that are too old or too many.
pub fn plan(cache: &Cache, ttl: Duration, max: usize, now: &Now) -> Plan {
    let mut plan = Plan::default();
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let horizon = now.wall.as_second().saturating_sub(ttl);
    let excess = cache.events.len().saturating_sub(max);
    let due = cache.events.iter().enumerate().take_while(|(i, (at, _))| *i < excess || *at <= horizon).take(BURST);
    for (_, (_, key)) in due {
        plan.writes.push(Write::Delete { key: key.clone(), uid: String::new(), revision: None });
    }
    if plan.writes.len() == BURST {
        plan.again(now.mono);
    }
    let oldest = cache.events.iter().nth(plan.writes.len());
    let next = oldest.map(|(at, _)| u64::try_from(at.saturating_sub(horizon)).unwrap_or(0));
    let wait = next.map_or(EVERY * 6, Duration::from_secs).max(EVERY);
    plan.again(now.mono + wait);
    plan
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::controllers::testing::{World, object};

    #[test]
    fn the_old_and_the_too_many_go_oldest_first() {
        let mut w = World::new();
        let now = w.now();
        for (name, age) in [("a", 4_000), ("b", 3_000), ("c", 2_000), ("d", 0)] {
            let at = now.wall - k8s_openapi::jiff::SignedDuration::from_secs(age);
            w.create(object(serde_json::json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"namespace": "default", "name": name},
                "involvedObject": {}, "lastTimestamp": at.to_string(),
            })));
        }
        let names = |p: &Plan| p.writes.iter().map(|w| w.key().name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&plan(&w.cache, EVENT_TTL, 10, &now)), ["a"]);
        let few = plan(&w.cache, EVENT_TTL, 2, &now);
        assert_eq!(names(&few), ["a", "b"]);
        assert!(few.again_at.is_some());
    }
}
