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
    let wait = next.map_or(EVERY * 6, |s| Duration::from_secs(s)).max(EVERY);
    plan.again(now.mono + wait);
    plan
}
