//! The verdict about a node, from gossip and lease together. One of them alone evicts nobody.
//!
//! | gossip          | lease   | standing                                            |
//! |-----------------|---------|-----------------------------------------------------|
//! | alive, unknown  | alive   | `Healthy`                                           |
//! | dead            | alive   | `Cut`: NetworkUnavailable, nothing evicted          |
//! | alive, unknown  | expired | `Silent`: NotReady, evict after 40 s                |
//! | dead            | expired | `Dead`: Unknown, evict and replace now              |
//!
//! Two refinements. `Dead` is sticky while the lease stays expired and gossip does not say
//! *alive*: netd forgets the dead after a while, and forgetting is no news. And when gossip
//! says dead of more than half of the nodes whose leases are alive, it is our netd that is cut
//! off, so its opinion counts as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gossip::{GossipView, Liveness};
use trellis_proto::patience::stretched;

use super::leases::{lease_ttl, overdue_after};

/// An agent that fails over to another member may miss its lease by one connection timeout
/// (0.5 + 0.5 s); only a silence longer than that makes a node NotReady that gossip sees alive.
pub const SILENT_HOLD: Duration = Duration::from_millis(800);

/// When the network between halves of a cluster heals, agents are heard again one after another:
/// each first notices its dead connection (1 s), then tries the members in turn (1 s each). Until
/// all had the time for it, the last of them must not be taken for the only ones lost.
pub const RETURN_HOLD: Duration = Duration::from_secs(5);

/// What the control plane holds of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Leases come, gossip does not object.
    Healthy,
    /// Leases come, gossip says dead: its pod network is cut.
    Cut,
    /// Leases stopped, gossip does not say dead.
    Silent,
    /// Leases stopped and gossip says dead.
    Dead,
}

/// The table, without memory.
pub fn judge(gossip: Liveness, lease_alive: bool) -> Standing {
    match (gossip, lease_alive) {
        (Liveness::Dead, true) => Standing::Cut,
        (_, true) => Standing::Healthy,
        (Liveness::Dead, false) => Standing::Dead,
        (_, false) => Standing::Silent,
    }
}

/// A node as the assessor follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Track {
    /// The standing.
    pub standing: Standing,
    /// Since when this leader holds it.
    pub since: Instant,
}

/// Everything the assessment is made from.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// When each lease was renewed.
    pub renewed: BTreeMap<Arc<str>, Instant>,
    /// What gossip says; `None` without a view.
    pub gossip: Option<Arc<GossipView>>,
}

#[derive(Debug, Default)]
struct Known {
    /// `None`: lost before this leader's time, and not heard since.
    renewed: BTreeMap<Arc<str>, Option<Instant>>,
    /// Who renewed in this leader's time; the others were only granted a lease when it began.
    heard: BTreeSet<Arc<str>>,
    gossip: Option<Arc<GossipView>>,
}

/// Follows the standing of every node.
#[derive(Debug, Default)]
pub struct Assessor {
    tracks: BTreeMap<Arc<str>, Track>,
    signals: Known,
    lost: usize,
    /// After more than half were lost: until then they may return before anybody is evicted.
    held_until: Option<Instant>,
    gossip_trusted: bool,
}

impl Assessor {
    /// A node exists; `prior` is what an earlier leader wrote into its object. Who was well gets
    /// a whole lease from now on; who was lost stays so until its agent is heard.
    pub fn add(&mut self, node: &Arc<str>, prior: Standing, now: Instant) {
        self.tracks.entry(node.clone()).or_insert(Track { standing: prior, since: now });
        if matches!(prior, Standing::Healthy | Standing::Cut) {
            self.signals.renewed.entry(node.clone()).or_insert(Some(now));
        } else {
            self.signals.renewed.entry(node.clone()).or_insert(None);
        }
    }

    /// A node exists no more.
    pub fn remove(&mut self, node: &str) {
        self.tracks.remove(node);
        self.signals.renewed.remove(node);
        self.signals.heard.remove(node);
    }

    /// What is held of `node`.
    pub fn track(&self, node: &str) -> Option<Track> {
        self.tracks.get(node).copied()
    }

    /// More than half of the nodes are lost (or overdue), or were a moment ago: nothing is
    /// evicted, since it is more likely us.
    pub fn suspended(&self) -> bool {
        self.held_until.is_some()
    }

    /// New signals. Nodes without a lease in them keep the renewal known before.
    pub fn set_signals(&mut self, signals: Signals) {
        for (node, at) in signals.renewed {
            if let Some(known) = self.signals.renewed.get_mut(&node) {
                // None is less than any time.
                *known = (*known).max(Some(at));
                self.signals.heard.insert(node);
            }
        }
        self.signals.gossip = signals.gossip;
    }

    /// Judges every node again and answers those whose standing changed. O(nodes).
    pub fn assess(&mut self, now: Instant) -> Vec<Arc<str>> {
        self.gossip_trusted = self.trust_gossip(now);
        let mut changed = Vec::new();
        let mut lost = 0;
        let names: Vec<Arc<str>> = self.tracks.keys().cloned().collect();
        for node in names {
            let age = self.age(&node, now);
            let gossip = self.gossip_says(&node);
            let Some(track) = self.tracks.get_mut(&node) else { continue };
            let next = step(track.standing, gossip, age);
            // Who is not heard yet may be turning from the dead leader to another member, which
            // takes more than one renewal. If many are lost, their leases end together.
            let overdue = age >= overdue_after() && self.signals.heard.contains(&node);
            if overdue || matches!(next, Standing::Dead | Standing::Silent) {
                lost += 1;
            }
            if next != track.standing {
                *track = Track { standing: next, since: now };
                changed.push(node);
            }
        }
        self.lost = lost;
        self.held_until = match self.held_until {
            _ if lost * 2 > self.tracks.len() => Some(now + stretched(RETURN_HOLD)),
            Some(until) if lost > 0 && now < until => Some(until),
            _ => None,
        };
        changed
    }

    /// When the passing of time alone may change a standing or the suspension. O(nodes).
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let anybody_lost = self.lost > 0;
        let steps = self.tracks.iter().filter_map(|(node, track)| {
            let renewed = (*self.signals.renewed.get(node)?)?;
            let age = now.saturating_duration_since(renewed);
            let marks: &[Duration] = match track.standing {
                Standing::Dead | Standing::Silent => &[],
                _ if anybody_lost => {
                    &[overdue_after(), lease_ttl(), lease_ttl().saturating_add(stretched(SILENT_HOLD))]
                }
                _ => &[lease_ttl(), lease_ttl().saturating_add(stretched(SILENT_HOLD))],
            };
            marks.iter().find(|m| **m > age).map(|m| renewed + *m)
        });
        steps.chain(self.held_until.filter(|until| *until > now)).min()
    }

    fn age(&self, node: &str, now: Instant) -> Duration {
        match self.signals.renewed.get(node) {
            Some(Some(at)) => now.saturating_duration_since(*at),
            Some(None) => Duration::MAX,
            None => Duration::ZERO,
        }
    }

    fn gossip_says(&self, node: &str) -> Liveness {
        match &self.signals.gossip {
            Some(view) if self.gossip_trusted => view.liveness(node),
            _ => Liveness::Unknown,
        }
    }

    fn trust_gossip(&self, now: Instant) -> bool {
        let Some(view) = &self.signals.gossip else { return false };
        let mut living = 0;
        let mut contradicted = 0;
        for node in self.tracks.keys() {
            if self.age(node, now) < lease_ttl() {
                living += 1;
                // A node killed a moment ago still has its lease: only one that renewed lately
                // contradicts gossip.
                let renewed_lately = self.age(node, now) < overdue_after();
                contradicted += usize::from(renewed_lately && view.liveness(node) == Liveness::Dead);
            }
        }
        contradicted * 2 <= living || contradicted < 2
    }
}

fn step(before: Standing, gossip: Liveness, age: Duration) -> Standing {
    let alive = age < lease_ttl();
    match judge(gossip, alive) {
        // netd forgot the dead: nothing new was learnt.
        Standing::Silent if before == Standing::Dead && gossip == Liveness::Unknown => Standing::Dead,
        Standing::Silent if before != Standing::Silent && age < lease_ttl() + stretched(SILENT_HOLD) => before,
        // An agent that died with its lease fresh may still be renewed by a packet in flight.
        other => other,
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
