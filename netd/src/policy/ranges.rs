//! Sets of IPv4 addresses as sorted, disjoint ranges: what nftables' interval sets take.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use trellis_model::policy::Block;

/// Sorted, disjoint, not adjacent, both ends inclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRanges {
    ranges: Vec<(u32, u32)>,
    /// Single addresses only: a hash set serves, and an element can be one key.
    single: bool,
}

impl AddressRanges {
    /// The union of addresses and blocks; IPv6 is left out (the pod network is IPv4).
    pub fn new(addresses: &BTreeSet<IpAddr>, blocks: &[Block]) -> Self {
        let singles = addresses.iter().filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some((u32::from(*ip), u32::from(*ip))),
            IpAddr::V6(_) => None,
        });
        if blocks.is_empty() {
            return Self { ranges: singles.collect(), single: true };
        }
        let mut ranges: Vec<(u32, u32)> = singles.collect();
        for block in blocks {
            let IpNetwork::V4(cidr) = block.cidr else { continue };
            let mut holes: Vec<(u32, u32)> = block
                .except
                .iter()
                .filter_map(|hole| match hole {
                    IpNetwork::V4(hole) => Some(bounds(*hole)),
                    IpNetwork::V6(_) => None,
                })
                .collect();
            holes.sort_unstable();
            subtract(bounds(cidr), &holes, &mut ranges);
        }
        Self { ranges: merge(ranges), single: false }
    }

    /// From what a set in the kernel holds.
    pub fn from_ranges(ranges: Vec<(u32, u32)>, single: bool) -> Self {
        Self { ranges: if single { sorted(ranges) } else { merge(ranges) }, single }
    }

    /// The ranges.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    /// Is a plain set of addresses enough?
    pub fn is_single(&self) -> bool {
        self.single
    }

    /// No address at all?
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

impl fmt::Display for AddressRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.single { "addresses" } else { "ranges" })?;
        for (first, last) in &self.ranges {
            write!(f, " {}-{}", Ipv4Addr::from(*first), Ipv4Addr::from(*last))?;
        }
        Ok(())
    }
}

fn bounds(network: Ipv4Network) -> (u32, u32) {
    (u32::from(network.network()), u32::from(network.broadcast()))
}

fn sorted(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    ranges
}

/// Pushes what remains of `range` without the sorted `holes`.
fn subtract(range: (u32, u32), holes: &[(u32, u32)], out: &mut Vec<(u32, u32)>) {
    let (mut first, last) = (u64::from(range.0), u64::from(range.1));
    for hole in holes {
        let (begin, end) = (u64::from(hole.0), u64::from(hole.1));
        if end < first || begin > last {
            continue;
        }
        if begin > first {
            out.push((first as u32, (begin - 1) as u32));
        }
        first = end + 1;
    }
    if first <= last {
        out.push((first as u32, last as u32));
    }
}

fn merge(ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in sorted(ranges) {
        match merged.last_mut() {
            Some(before) if u64::from(first) <= u64::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}
