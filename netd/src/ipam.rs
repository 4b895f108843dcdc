//! Addresses of this node's Pods: which is whose, and when a freed one may be given again.
//!
//! ```text
//!            allocate                 release                      seen gone from the API
//!   free ───────────────► in use ───────────────► cooling ─────────────────► cooling, gone at r
//!     ▲                     ▲  allocate by the same Pod │                            │
//!     │                     └───────────────────────────┘                            │
//!     └──── 60 s since release, and every live netd has acted on revision r ─────────┘
//! ```
//! An address that some other node still lets through as the old Pod must not become another's:
//! that is what the two conditions are for. Pure: time is a duration since the process started,
//! and after a restart every cooling address cools from the beginning.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How long a freed address rests: longer than a netd may be cut off while its Pods still talk.
pub const COOLING: Duration = Duration::from_secs(60);

/// No address can be given.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IpamError {
    /// All are in use or cooling.
    #[error("no free address in {cidr}: {in_use} in use, {cooling} freed less than 60 s ago or still known elsewhere")]
    Exhausted {
        /// The node's pod CIDR.
        cidr: Ipv4Network,
        /// Addresses of Pods.
        in_use: usize,
        /// Addresses at rest.
        cooling: usize,
    },
}

/// What is kept of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    pod_uid: String,
    /// None: in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<Released>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Released {
    #[serde(skip)]
    since: Duration,
    /// The revision by which the API no longer shows the Pod with its address.
    gone_revision: Option<u64>,
}

/// The allocator of one pod CIDR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipam {
    version: u32,
    cidr: Ipv4Network,
    entries: BTreeMap<Ipv4Addr, Entry>,
    /// Where to look first: the address after the last one given.
    next: u32,
}

impl Ipam {
    /// An allocator in which nothing is given yet.
    pub fn new(cidr: Ipv4Network) -> Self {
        Self { version: 1, cidr, entries: BTreeMap::new(), next: 0 }
    }

    /// The format version of a stored allocator.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// To be called on an allocator read from disk: cooling begins anew.
    pub fn restarted(&mut self, now: Duration) {
        for released in self.entries.values_mut().filter_map(|entry| entry.released.as_mut()) {
            released.since = now;
        }
    }

    /// The pod CIDR.
    pub fn cidr(&self) -> Ipv4Network {
        self.cidr
    }

    /// The gateway as Pods see it: the first address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()).saturating_add(1))
    }

    /// The Pod's address, if it has one in use.
    pub fn address_of(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        self.in_use().find(|(uid, _)| *uid == pod_uid).map(|(_, ip)| ip)
    }

    /// All Pods with their addresses.
    pub fn in_use(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.released.is_none())
            .map(|(ip, entry)| (entry.pod_uid.as_str(), *ip))
    }

    /// Gives the Pod an address: the one that it has or had, or one that is free.
    pub fn allocate(&mut self, pod_uid: &str, now: Duration, min_applied_revision: u64) -> Result<Ipv4Addr, IpamError> {
        if let Some((ip, entry)) = self.entries.iter_mut().find(|(_, entry)| entry.pod_uid == pod_uid) {
            entry.released = None;
            return Ok(*ip);
        }
        self.entries.retain(|_, entry| match &entry.released {
            None => true,
            Some(released) => {
                now.saturating_sub(released.since) < COOLING
                    || released.gone_revision.is_none_or(|gone| gone > min_applied_revision)
            }
        });
        // Network, gateway and broadcast address are never given.
        let first = u32::from(self.cidr.network()).saturating_add(2);
        let last = u32::from(self.cidr.broadcast()).saturating_sub(1);
        let start = if (first..=last).contains(&self.next) { self.next } else { first };
        let found = (start..=last).chain(first..start).map(Ipv4Addr::from).find(|ip| !self.entries.contains_key(ip));
        let Some(ip) = found else {
            let in_use = self.in_use().count();
            return Err(IpamError::Exhausted { cidr: self.cidr, in_use, cooling: self.entries.len() - in_use });
        };
        self.next = u32::from(ip).saturating_add(1);
        self.entries.insert(ip, Entry { pod_uid: pod_uid.into(), released: None });
        Ok(ip)
    }

    /// Takes back an address that a Pod was found to have (the state file was lost).
    pub fn adopt(&mut self, pod_uid: &str, ip: Ipv4Addr) -> bool {
        self.enter(ip, Entry { pod_uid: pod_uid.into(), released: None })
    }

    /// An address that a Pod is said to have had (the state file was lost) rests as if it was freed
    /// now; the Pod itself gets it back when it is attached again.
    pub fn rest(&mut self, pod_uid: &str, ip: Ipv4Addr, now: Duration) -> bool {
        let known = self.entries.values().any(|entry| entry.pod_uid == pod_uid);
        let released = Some(Released { since: now, gone_revision: None });
        !known && self.enter(ip, Entry { pod_uid: pod_uid.into(), released })
    }

    /// What is given next lies behind all that was found to have been given.
    fn enter(&mut self, ip: Ipv4Addr, entry: Entry) -> bool {
        if !self.cidr.contains(ip) || self.entries.contains_key(&ip) {
            return false;
        }
        self.entries.insert(ip, entry);
        self.next = self.next.max(u32::from(ip).saturating_add(1));
        true
    }

    /// The Pod no longer has its address; answers which it was.
    pub fn release(&mut self, pod_uid: &str, now: Duration) -> Option<Ipv4Addr> {
        let (ip, entry) =
            self.entries.iter_mut().find(|(_, entry)| entry.pod_uid == pod_uid && entry.released.is_none())?;
        entry.released = Some(Released { since: now, gone_revision: None });
        Some(*ip)
    }

    /// Notes of freed addresses that at `revision` the API does not show their Pods any more;
    /// true when something changed.
    pub fn note_gone(&mut self, revision: u64, shown: impl Fn(&str) -> bool) -> bool {
        let mut changed = false;
        for entry in self.entries.values_mut() {
            if let Some(released) = &mut entry.released
                && released.gone_revision.is_none()
                && !shown(&entry.pod_uid)
            {
                released.gone_revision = Some(revision);
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Ipam {
        Ipam::new("10.244.1.0/29".parse().unwrap())
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn gives_each_pod_one_address_and_never_the_reserved_ones() {
        let mut ipam = small();
        let given: Vec<_> = (0..5).map(|n| ipam.allocate(&format!("p{n}"), s(0), 0).unwrap()).collect();
        assert_eq!(given.first().unwrap().to_string(), "10.244.1.2");
        assert_eq!(given.last().unwrap().to_string(), "10.244.1.6");
        assert_eq!(ipam.allocate("p3", s(0), 0).unwrap(), given[3], "idempotent");
        assert_eq!(ipam.gateway().to_string(), "10.244.1.1");
        assert_eq!(
            ipam.allocate("p9", s(0), 0),
            Err(IpamError::Exhausted { cidr: ipam.cidr(), in_use: 5, cooling: 0 })
        );
    }

    #[test]
    fn a_freed_address_rests_until_time_and_everybody_agree() {
        let mut ipam = small();
        for n in 0..5 {
            ipam.allocate(&format!("p{n}"), s(0), 0).unwrap();
        }
        let freed = ipam.release("p2", s(100)).unwrap();
        assert_eq!(ipam.release("p2", s(100)), None);
        assert!(ipam.allocate("new", s(1000), 999).is_err(), "the API may still show it");
        assert!(!ipam.note_gone(50, |uid| uid == "p2"));
        assert!(ipam.note_gone(51, |_| false));
        assert!(ipam.allocate("new", s(159), 51).is_err(), "not before 60 s");
        assert!(ipam.allocate("new", s(160), 50).is_err(), "not before everybody knows");
        assert_eq!(ipam.allocate("new", s(160), 51), Ok(freed));
    }

    #[test]
    fn a_pod_that_comes_back_gets_its_own_address() {
        let mut ipam = small();
        let ip = ipam.allocate("p", s(0), 0).unwrap();
        ipam.release("p", s(1));
        assert_eq!(ipam.allocate("p", s(2), 0), Ok(ip));
    }

    #[test]
    fn addresses_go_around_before_they_come_again() {
        let mut ipam = Ipam::new("10.244.1.0/24".parse().unwrap());
        let first = ipam.allocate("a", s(0), 0).unwrap();
        ipam.release("a", s(0));
        ipam.note_gone(1, |_| false);
        assert_ne!(ipam.allocate("b", s(1000), 9), Ok(first));
    }

    #[test]
    fn survives_the_disk_and_cools_again() {
        let mut ipam = small();
        for n in 0..5 {
            ipam.allocate(&format!("p{n}"), s(0), 0).unwrap();
        }
        ipam.release("p0", s(0));
        ipam.note_gone(7, |_| false);
        let mut read: Ipam = serde_json::from_str(&serde_json::to_string(&ipam).unwrap()).unwrap();
        read.restarted(s(5));
        assert_eq!(read.address_of("p1"), ipam.address_of("p1"));
        assert!(read.allocate("new", s(64), 100).is_err());
        assert!(read.allocate("new", s(65), 100).is_ok());
    }

    #[test]
    fn what_is_found_to_have_been_given_rests_and_is_not_given_next() {
        let mut ipam = small();
        let ip = |last: u8| Ipv4Addr::new(10, 244, 1, last);
        assert!(ipam.adopt("runs", ip(2)));
        assert!(ipam.rest("gone", ip(4), s(10)));
        assert!(!ipam.rest("other", ip(2), s(10)), "somebody has it");
        assert!(!ipam.rest("runs", ip(3), s(10)), "it has another");
        assert!(!ipam.rest("elsewhere", Ipv4Addr::new(10, 244, 2, 2), s(10)), "not of this node");
        assert_eq!(ipam.in_use().collect::<Vec<_>>(), [("runs", ip(2))]);
        let mut back = ipam.clone();
        assert_eq!(back.allocate("gone", s(11), 0), Ok(ip(4)), "its own");
        assert_eq!(ipam.allocate("a", s(11), 99), Ok(ip(5)), "behind the highest known");
        assert_eq!(ipam.allocate("b", s(11), 99), Ok(ip(6)));
        assert_eq!(ipam.allocate("c", s(11), 99), Ok(ip(3)));
        ipam.note_gone(7, |uid| uid != "gone");
        assert!(ipam.allocate("d", s(69), 99).is_err(), "it rests");
        assert_eq!(ipam.allocate("d", s(70), 99), Ok(ip(4)));
    }

    proptest! {
        /// Whatever happens, no address belongs to two Pods, and none is given too early.
        #[test]
        fn never_two(steps in proptest::collection::vec((0u8..4, 0u8..8, 0u64..40), 1..200)) {
            let mut ipam = small();
            let mut now = s(0);
            let mut freed: BTreeMap<Ipv4Addr, (Duration, String)> = BTreeMap::new();
            for (what, pod, delta) in steps {
                now += s(delta);
                let uid = format!("p{pod}");
                match what {
                    0 | 1 => {
                        if let Ok(ip) = ipam.allocate(&uid, now, 1)
                            && let Some((at, before)) = freed.remove(&ip)
                        {
                            prop_assert!(before == uid || now - at >= COOLING);
                        }
                    }
                    2 => {
                        if let Some(ip) = ipam.release(&uid, now) {
                            freed.insert(ip, (now, uid));
                        }
                    }
                    _ => { ipam.note_gone(1, |_| false); }
                }
                let mut seen = std::collections::BTreeSet::new();
                for (_, ip) in ipam.in_use() {
                    prop_assert!(seen.insert(ip));
                }
            }
        }
    }
}
