//! Which pod CIDR a new Node gets.
//!
//! The allocator is rebuilt from the Nodes by every leader; a transaction of an earlier term
//! cannot interfere, since it is fenced and this leader's cache contains all before it. CIDRs
//! are given in rotation and rest for a while after their Node is deleted, so that routes to
//! them are gone everywhere before they are used again.
//!
//! How far the rotation has come is kept in the system keyspace, under [`NEXT`], written in the
//! transaction that gives a CIDR. What rests is not kept: a new leader gives only what was never
//! given before until anything that an earlier one released has rested.
//!
//! Cost: allocate O(CIDRs in use) at worst, 1 as a rule.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

/// A CIDR rests for as long as a Pod's address does.
const REST: Duration = Duration::from_secs(60);
/// Key of the system keyspace: how many pieces were given, decimal; never less than were.
pub const NEXT: &str = "pod-cidrs/next";

/// A cluster pod CIDR, cut into Nodes' CIDRs of `node_prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRange {
    /// "10.244.0.0/16"
    pub cidr: IpNetwork,
    /// 24
    pub node_prefix: u8,
}

/// A range that cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod CIDR {cidr} cannot be cut into /{node_prefix} pieces: {why}")]
pub struct RangeError {
    cidr: IpNetwork,
    node_prefix: u8,
    why: &'static str,
}

impl PodRange {
    /// Checks the two against each other.
    pub fn new(cidr: IpNetwork, node_prefix: u8) -> Result<Self, RangeError> {
        let err = |why| RangeError { cidr, node_prefix, why };
        let bits = if cidr.is_ipv4() { 32 } else { 128 };
        if node_prefix < cidr.prefix() {
            return Err(err("the pieces are larger than the whole"));
        }
        if node_prefix >= bits - 1 {
            return Err(err("a piece has no room for Pods"));
        }
        if node_prefix - cidr.prefix() > 24 {
            return Err(err("that would be more than 2^24 pieces"));
        }
        Ok(Self { cidr, node_prefix })
    }

    fn pieces(&self) -> u64 {
        1 << (self.node_prefix - self.cidr.prefix())
    }

    fn piece(&self, index: u64) -> Option<IpNetwork> {
        let ip = match self.cidr.network() {
            IpAddr::V4(base) => {
                let step = u64::from(32 - self.node_prefix);
                let value = u64::from(u32::from(base)) + (index << step);
                IpAddr::V4(Ipv4Addr::from(u32::try_from(value).ok()?))
            }
            IpAddr::V6(base) => {
                let step = u32::from(128 - self.node_prefix);
                IpAddr::V6(Ipv6Addr::from(u128::from(base).checked_add(u128::from(index) << step)?))
            }
        };
        IpNetwork::new(ip, self.node_prefix).ok()
    }
}

/// Gives Nodes their pod CIDRs.
#[derive(Debug, Default)]
pub struct CidrAllocator {
    ranges: Vec<PodRange>,
    /// What each Node has, also what was just promised to it.
    of_node: HashMap<Arc<str>, Vec<IpNetwork>>,
    used: BTreeMap<IpNetwork, Arc<str>>,
    resting: BTreeMap<IpNetwork, Instant>,
    /// Counts the pieces given, over all ranges and rounds: the next one's index is the remainder.
    next: u64,
    /// What the counter must be kept above, for Nodes that do not show their CIDR yet.
    promised: HashMap<Arc<str>, u64>,
    /// When this leader took over, while something that it does not know of may rest.
    began: Option<Instant>,
}

impl CidrAllocator {
    /// An allocator over these ranges.
    pub fn new(ranges: Vec<PodRange>) -> Self {
        Self { ranges, ..Self::default() }
    }

    /// Goes on from where an earlier leader was.
    pub fn resume(&mut self, next: u64, now: Instant) {
        self.next = self.next.max(next);
        self.began = Some(now);
    }

    /// What [`NEXT`] must be above once this Node has the CIDR that it was promised.
    pub fn given(&self, node: &str) -> Option<u64> {
        self.promised.get(node).copied()
    }

    /// Other ranges: as a rule the same with one appended.
    pub fn set_ranges(&mut self, ranges: Vec<PodRange>) {
        self.ranges = ranges;
    }

    /// A Node has these CIDRs. Answers another Node that has one of them too, if there is.
    pub fn set(&mut self, node: &Arc<str>, cidrs: &[String]) -> Option<Arc<str>> {
        let cidrs: Vec<IpNetwork> = cidrs.iter().filter_map(|c| c.parse().ok()).collect();
        if cidrs.is_empty() {
            // A promise is kept until the Node says otherwise or goes.
            return None;
        }
        self.promised.remove(node);
        for old in self.of_node.remove(node).unwrap_or_default() {
            if self.used.get(&old) == Some(node) {
                self.used.remove(&old);
            }
        }
        let clash = cidrs.iter().find_map(|c| self.user_of(c)).filter(|n| n != node);
        for cidr in &cidrs {
            self.used.entry(*cidr).or_insert_with(|| node.clone());
            if let Some(index) = self.index_of(cidr) {
                self.next = self.next.max(index + 1);
            }
        }
        self.of_node.insert(node.clone(), cidrs);
        clash
    }

    /// A Node is gone; its CIDRs rest before somebody else gets them.
    pub fn release(&mut self, node: &str, now: Instant) {
        self.promised.remove(node);
        for cidr in self.of_node.remove(node).unwrap_or_default() {
            if self.used.get(&cidr).is_some_and(|n| **n == *node) {
                self.used.remove(&cidr);
                self.resting.insert(cidr, now + REST);
            }
        }
    }

    /// The CIDRs for a Node that has none: those promised before, or a free one. Empty: none
    /// is free.
    pub fn allocate(&mut self, node: &Arc<str>, now: Instant) -> Vec<String> {
        if let Some(promised) = self.of_node.get(node) {
            return promised.iter().map(ToString::to_string).collect();
        }
        self.resting.retain(|_, until| *until > now);
        self.began = self.began.filter(|at| *at + REST > now);
        let total: u64 = self.ranges.iter().map(PodRange::pieces).sum();
        for count in self.next..self.next.saturating_add(total) {
            if self.began.is_some() && count >= total {
                // Given in an earlier round: it may have been released just now.
                break;
            }
            let Some(cidr) = self.nth(count % total.max(1)) else { continue };
            if self.user_of(&cidr).is_none() && !self.resting.contains_key(&cidr) {
                self.next = count + 1;
                self.promised.insert(node.clone(), count);
                self.used.insert(cidr, node.clone());
                self.of_node.insert(node.clone(), vec![cidr]);
                return vec![cidr.to_string()];
            }
        }
        Vec::new()
    }

    /// When a resting CIDR becomes free.
    pub fn next_free(&self) -> Option<Instant> {
        self.resting.values().copied().chain(self.began.map(|at| at + REST)).min()
    }

    /// Who has an overlapping CIDR. Exact matches are found at once; a Node that brought a
    /// CIDR of another size is found by looking at all.
    fn user_of(&self, cidr: &IpNetwork) -> Option<Arc<str>> {
        if let Some(user) = self.used.get(cidr) {
            return Some(user.clone());
        }
        let overlap = |other: &IpNetwork| {
            (other.prefix() != cidr.prefix()) && (other.contains(cidr.network()) || cidr.contains(other.network()))
        };
        self.used.iter().find(|(c, _)| overlap(c)).map(|(_, n)| n.clone())
    }

    fn nth(&self, mut index: u64) -> Option<IpNetwork> {
        for range in &self.ranges {
            if index < range.pieces() {
                return range.piece(index);
            }
            index -= range.pieces();
        }
        None
    }

    fn index_of(&self, cidr: &IpNetwork) -> Option<u64> {
        let mut before = 0;
        for range in &self.ranges {
            if range.cidr.contains(cidr.network()) && cidr.prefix() == range.node_prefix {
                let offset = match (range.cidr.network(), cidr.network()) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => {
                        u64::from((u32::from(b) - u32::from(a)) >> (32 - range.node_prefix))
                    }
                    (IpAddr::V6(a), IpAddr::V6(b)) => {
                        u64::try_from((u128::from(b) - u128::from(a)) >> (128 - u32::from(range.node_prefix))).ok()?
                    }
                    _ => return None,
                };
                return Some(before + offset);
            }
            before += range.pieces();
        }
        None
    }
}
