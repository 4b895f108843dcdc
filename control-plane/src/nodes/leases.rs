//! The lease table: who renewed when, and how far each node's netd has come.
//!
//! A plain struct without clock: `now` is a parameter, all times are durations of the leader's
//! own monotonic clock. Nothing here is replicated; a new leader begins a new table, in which
//! every node that exists gets one whole lease before it can be found missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trellis_proto::patience::stretched;

use super::reach::{Reach, Reports};

/// How often agents renew. Three fit into a lease, so that two may be lost.
pub const RENEW_EVERY: Duration = Duration::from_millis(400);
/// How long a lease lasts. With gossip's verdict beside it a dead node is known within 2 s.
pub const LEASE_TTL: Duration = Duration::from_millis(1_200);
/// A lease this old has missed a renewal. Nodes that died together are at most one renewal
/// apart, so when the first one's lease ends the others' are at least this old.
pub const OVERDUE_AFTER: Duration = Duration::from_millis(800);
/// [`LEASE_TTL`], as patience has it: agents stretch their beat alike.
pub fn lease_ttl() -> Duration {
    stretched(LEASE_TTL)
}

/// [`OVERDUE_AFTER`], as patience has it.
pub fn overdue_after() -> Duration {
    stretched(OVERDUE_AFTER)
}

/// Most leases kept; as many nodes as a pod CIDR of /8 in /24 pieces could ever have, halved.
pub const MAX_LEASES: usize = 32_768;
/// A lease nobody renewed for so long, of a node that does not exist, is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What a renewal is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// How long the lease lasts from now.
    pub ttl: Duration,
    /// The leader's term.
    pub term: u64,
    /// Whether this renewal ended a gap that somebody may be acting on.
    pub recovered: bool,
}

/// Why a renewal or report was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// This member is not (or no longer) the leader.
    #[error("this member holds no leases: it is not the leader")]
    NotLeader,
    /// The table is full.
    #[error("the lease of node {node} is refused: {MAX_LEASES} leases are held, which is the limit")]
    Full {
        /// The node that asked.
        node: String,
    },
}

#[derive(Debug, Clone)]
struct Lease {
    renewed_at: Instant,
    /// Its agent renewed it in this term; false: it was only granted.
    heard: bool,
    instance: String,
    applied_revision: Option<u64>,
    reach: Option<Arc<Reach>>,
}

impl Lease {
    fn granted(now: Instant) -> Self {
        Self { renewed_at: now, heard: false, instance: String::new(), applied_revision: None, reach: None }
    }
}

/// All leases of one term.
#[derive(Debug, Default)]
pub struct LeaseTable {
    term: Option<u64>,
    /// It holds all nodes that exist, not only those that spoke first.
    adopted: bool,
    leases: BTreeMap<Arc<str>, Lease>,
}

impl LeaseTable {
    /// Starts the table of a new term: nothing of an earlier one is kept.
    pub fn begin(&mut self, term: u64) {
        self.term = Some(term);
        self.adopted = false;
        self.leases.clear();
    }

    /// Leadership ended.
    pub fn end(&mut self) {
        self.term = None;
        self.adopted = false;
        self.leases.clear();
    }

    /// The term it serves, if any.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// Grants every node in `nodes` that has no lease yet a whole one; forgets leases of nodes
    /// that do not exist and went silent long ago. Costs O(nodes).
    pub fn adopt<'a>(&mut self, nodes: impl Iterator<Item = &'a Arc<str>> + Clone, now: Instant) {
        if self.term.is_none() {
            return;
        }
        self.adopted = true;
        for node in nodes.clone() {
            if !self.leases.contains_key(node) && self.leases.len() < MAX_LEASES {
                self.leases.insert(node.clone(), Lease::granted(now));
            }
        }
        let exists: std::collections::BTreeSet<&Arc<str>> = nodes.collect();
        self.leases
            .retain(|name, l| exists.contains(name) || now.saturating_duration_since(l.renewed_at) < FORGET_AFTER);
    }

    /// An agent renews. O(log nodes).
    pub fn renew(&mut self, node: &str, instance: &str, now: Instant) -> Result<Grant, LeaseError> {
        let term = self.term.ok_or(LeaseError::NotLeader)?;
        if let Some(lease) = self.leases.get_mut(node) {
            let recovered = !lease.heard || now.saturating_duration_since(lease.renewed_at) >= OVERDUE_AFTER;
            lease.renewed_at = now;
            lease.heard = true;
            if lease.instance != instance {
                lease.instance = instance.to_owned();
            }
            return Ok(Grant { ttl: lease_ttl(), term, recovered });
        }
        self.insert(node, Lease { heard: true, instance: instance.to_owned(), ..Lease::granted(now) })?;
        Ok(Grant { ttl: lease_ttl(), term, recovered: true })
    }

    /// A netd says up to which revision it has acted. Answers the smallest such revision of all
    /// nodes whose lease is alive; a live node that has not said anything counts as 0.
    /// O(nodes).
    pub fn report(&mut self, node: &str, applied_revision: u64, now: Instant) -> Result<u64, LeaseError> {
        self.term.ok_or(LeaseError::NotLeader)?;
        match self.leases.get_mut(node) {
            // A netd that restored an older state after a restart really knows less again.
            Some(lease) => lease.applied_revision = Some(applied_revision),
            None => self.insert(node, Lease { applied_revision: Some(applied_revision), ..Lease::granted(now) })?,
        }
        Ok(self.floor(now))
    }

    /// What a netd whose [`LeaseTable::report`] was taken says of its routes; `None`: nothing. Answers
    /// whether that is news.
    pub fn set_reach(&mut self, node: &str, reach: Option<Reach>) -> bool {
        let Some(lease) = self.leases.get_mut(node) else { return false };
        if lease.reach.as_deref() == reach.as_ref() {
            return false;
        }
        lease.reach = reach.map(Arc::new);
        true
    }

    /// What each netd says of its routes. O(nodes).
    pub fn reach(&self) -> Reports {
        self.leases.iter().filter_map(|(node, l)| Some((node.clone(), l.reach.clone()?))).collect()
    }

    /// The smallest applied revision of the netds of live nodes; 0 while one is unknown, and before
    /// the term's first [`LeaseTable::adopt`]: who has not spoken yet may be behind.
    pub fn floor(&self, now: Instant) -> u64 {
        if !self.adopted {
            return 0;
        }
        let alive = self.leases.values().filter(|l| now.saturating_duration_since(l.renewed_at) < lease_ttl());
        alive.map(|l| l.applied_revision.unwrap_or(0)).min().unwrap_or(0)
    }

    /// When each agent last renewed in this term; those not heard yet are left out. O(nodes).
    pub fn renewals(&self) -> BTreeMap<Arc<str>, Instant> {
        self.leases.iter().filter(|(_, l)| l.heard).map(|(n, l)| (n.clone(), l.renewed_at)).collect()
    }

    fn insert(&mut self, node: &str, lease: Lease) -> Result<(), LeaseError> {
        if self.leases.len() >= MAX_LEASES {
            return Err(LeaseError::Full { node: node.to_owned() });
        }
        self.leases.insert(Arc::from(node), lease);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn only_a_leader_grants() {
        let mut t = LeaseTable::default();
        let now = Instant::now();
        assert_eq!(t.renew("n1", "a", now), Err(LeaseError::NotLeader));
        assert_eq!(t.report("n1", 5, now), Err(LeaseError::NotLeader));
        t.begin(3);
        assert_eq!(t.renew("n1", "a", now).unwrap(), Grant { ttl: LEASE_TTL, term: 3, recovered: true });
        assert!(!t.renew("n1", "a", now + ms(400)).unwrap().recovered);
        assert!(t.renew("n1", "a", now + ms(400) + OVERDUE_AFTER).unwrap().recovered);
        t.end();
        assert_eq!(t.renew("n1", "a", now), Err(LeaseError::NotLeader));
    }

    #[test]
    fn a_new_term_starts_every_lease_afresh() {
        let mut t = LeaseTable::default();
        let now = Instant::now();
        t.begin(1);
        t.renew("n1", "a", now).unwrap();
        t.begin(2);
        let later = now + ms(5_000);
        let nodes: Vec<Arc<str>> = vec![Arc::from("n1"), Arc::from("n2")];
        t.adopt(nodes.iter(), later);
        assert!(t.renewals().is_empty(), "granted, but nobody was heard yet");
        assert!(t.renew("n1", "a", later).unwrap().recovered, "the first word of a term is news");
        assert_eq!(t.renewals().into_values().collect::<Vec<_>>(), vec![later]);
    }

    #[test]
    fn the_floor_is_the_slowest_live_netd() {
        let mut t = LeaseTable::default();
        let now = Instant::now();
        t.begin(1);
        t.renew("n1", "a", now).unwrap();
        assert_eq!(t.report("n1", 10, now).unwrap(), 0, "who else there is, is not known yet");
        let nodes: [Arc<str>; 2] = [Arc::from("n1"), Arc::from("n2")];
        t.adopt(nodes.iter(), now);
        t.renew("n2", "b", now).unwrap();
        assert_eq!(t.report("n1", 10, now).unwrap(), 0, "n2 has said nothing yet");
        assert_eq!(t.report("n2", 7, now).unwrap(), 7);
        assert_eq!(t.report("n2", 12, now).unwrap(), 10);
        let later = now + LEASE_TTL;
        t.renew("n2", "b", later).unwrap();
        assert_eq!(t.floor(later), 12, "n1's lease ended, it no longer holds anybody back");
        assert_eq!(t.floor(later + LEASE_TTL), 0, "nobody alive: nothing is promised");
        t.begin(2);
        assert_eq!(t.report("n2", 12, later).unwrap(), 0, "the next term begins anew");
    }

    #[test]
    fn what_a_netd_says_of_its_routes_lasts_for_the_term() {
        let mut t = LeaseTable::default();
        let now = Instant::now();
        t.begin(1);
        let far = Reach { network: "10.0.0.0/24".into(), unrouted: [("n2".into(), "10.9.0.2".into())].into() };
        assert!(!t.set_reach("n1", Some(far.clone())), "nobody of that name has reported");
        t.report("n1", 1, now).unwrap();
        assert!(t.set_reach("n1", Some(far.clone())));
        assert!(!t.set_reach("n1", Some(far.clone())), "no news");
        assert_eq!(t.reach().into_values().collect::<Vec<_>>(), [Arc::new(far)]);
        assert!(t.set_reach("n1", None), "an older netd took its place");
        assert!(t.reach().is_empty());
        t.set_reach("n1", Some(Reach::default()));
        t.begin(2);
        assert!(t.reach().is_empty());
    }

    #[test]
    fn leases_of_nodes_that_never_existed_are_forgotten() {
        let mut t = LeaseTable::default();
        let now = Instant::now();
        t.begin(1);
        t.renew("ghost", "a", now).unwrap();
        let nodes: Vec<Arc<str>> = vec![];
        t.adopt(nodes.iter(), now + ms(59_000));
        assert_eq!(t.renewals().len(), 1);
        t.adopt(nodes.iter(), now + ms(60_000));
        assert!(t.renewals().is_empty());
    }
}
