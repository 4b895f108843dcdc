//! Network policy: what the model says about each Pod of this node, as an nftables table.
//!
//! [`Ruleset::build`] turns compiled policies into sets, chains and two verdict maps;
//! [`plan`](mod@plan) says how to get from what the kernel has to that. Both are pure. The decision itself
//! (which policy selects whom) is `trellis_model::policy`.
//!
//! ```text
//! table inet trellis {
//!   set local   { ipv4_addr }                     every Pod address of this node
//!   map ingress { ipv4_addr : jump in-<hash> }    isolated Pods only
//!   map egress  { ipv4_addr : jump out-<hash> }
//!   chain forward { type filter hook forward;
//!     replies and related pass
//!     a TCP packet without SYN that belongs to no connection is reset  (conntrack would adopt it)
//!     what conntrack calls invalid is dropped
//!     ip saddr vmap @egress; ip daddr vmap @ingress
//!   }
//!   chain in-<hash>  { who may: return; …; drop }
//! }
//! ```
//! Sets of peers and chains are named by a hash of their content and never change: Pods with the
//! same policy share a chain, and an update is new chains, a change of map elements, and the
//! removal of what nobody refers to, in one transaction.
//!
//! Traffic between a Pod and its own node passes the input and output hooks, where there are no
//! rules: a node always reaches its Pods (probes), as in Kubernetes. That an address is not
//! forged is seen to by strict reverse-path filtering on each Pod's interface. The kernel takes the
//! larger of that setting and `conf/all/rp_filter`, which is 2, loose, on some machines (Ubuntu); an
//! interface that has no address itself, as these, is filtered strictly even so.
//!
//! After a restart the kernel may know more than netd's file: [`plan_keeping`] leaves it the policy
//! of the Pods it is told to keep.

mod plan;
mod ranges;

pub use plan::{ActualTable, SetContent, Step, after, plan, plan_keeping, rebuild};
pub use ranges::AddressRanges;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};
use trellis_model::policy::{Allow, Peers, PodPolicy, PortRange, Protocol, Rules};

/// The table's name.
pub const TABLE: &str = "trellis";
/// The set of this node's Pod addresses.
pub const LOCAL: &str = "local";
/// The chain at the forward hook.
pub const FORWARD: &str = "forward";

/// Seen from the Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the Pod.
    Ingress,
    /// From the Pod.
    Egress,
}

impl Direction {
    /// Both, in the order in which a packet meets them.
    pub const BOTH: [Direction; 2] = [Direction::Egress, Direction::Ingress];

    /// The verdict map of this direction.
    pub fn map(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The field in which the Pod itself stands.
    fn own(self) -> &'static str {
        match self {
            Self::Ingress => "daddr",
            Self::Egress => "saddr",
        }
    }

    fn peer(self) -> &'static str {
        match self {
            Self::Ingress => "saddr",
            Self::Egress => "daddr",
        }
    }
}

/// One rule. Its text is nft's, and is the dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Replies and what belongs to a connection pass.
    Established,
    /// A TCP packet that neither opens a connection nor belongs to one is reset.
    ResetStray(Direction),
    /// What conntrack cannot make sense of is dropped.
    DropInvalid(Direction),
    /// To the Pod's own chain, if it is isolated.
    Dispatch(Direction),
    /// This may pass; the packet goes on behind the dispatch.
    Allow {
        /// Which end the peer is.
        direction: Direction,
        /// A set of addresses; None: anybody.
        peers: Option<String>,
        /// None: every port of every protocol.
        ports: Option<PortRange>,
    },
    /// Everything else may not.
    Deny,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Established => f.write_str("ct state established,related accept"),
            Self::ResetStray(d) => {
                write!(f, "ip {} @{LOCAL} tcp flags & syn == 0 ct state new reject with tcp reset", d.own())
            }
            Self::DropInvalid(d) => write!(f, "ip {} @{LOCAL} ct state invalid drop", d.own()),
            Self::Dispatch(d) => write!(f, "ip {} vmap @{}", d.own(), d.map()),
            Self::Allow { direction, peers, ports } => {
                if let Some(set) = peers {
                    write!(f, "ip {} @{set} ", direction.peer())?;
                }
                if let Some(range) = ports {
                    write!(f, "{} dport {}-{} ", protocol_name(range.protocol), range.first, range.last)?;
                }
                f.write_str("return")
            }
            Self::Deny => f.write_str("drop"),
        }
    }
}

impl Rule {
    /// A short name of the rule's content, kept in the kernel beside it.
    pub fn tag(&self) -> String {
        short_hash(&self.to_string())
    }
}

/// Everything that should be in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// This node's Pod addresses.
    pub local: BTreeSet<Ipv4Addr>,
    /// Sets of peers by name.
    pub sets: BTreeMap<String, AddressRanges>,
    /// Chains by name, the base chain included.
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// Verdict maps by name: Pod address to chain.
    pub maps: BTreeMap<String, BTreeMap<Ipv4Addr, String>>,
}

impl Ruleset {
    /// The table for these Pods, each with its compiled policy.
    pub fn build<'p>(pods: impl IntoIterator<Item = (Ipv4Addr, &'p PodPolicy)>) -> Self {
        let mut ruleset = Self::default();
        let mut forward = vec![Rule::Established];
        forward.extend(Direction::BOTH.map(Rule::ResetStray));
        forward.extend(Direction::BOTH.map(Rule::DropInvalid));
        forward.extend(Direction::BOTH.map(Rule::Dispatch));
        ruleset.chains.insert(FORWARD.into(), forward);
        for direction in Direction::BOTH {
            ruleset.maps.insert(direction.map().into(), BTreeMap::new());
        }
        for (address, policy) in pods {
            ruleset.local.insert(address);
            ruleset.isolate(address, Direction::Ingress, &policy.ingress);
            ruleset.isolate(address, Direction::Egress, &policy.egress);
        }
        ruleset
    }

    /// With all Pods of this node, those that nothing is known of as well.
    pub fn with_local(mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.local.extend(addresses);
        self
    }

    fn isolate(&mut self, address: Ipv4Addr, direction: Direction, rules: &Rules) {
        if !rules.isolated {
            return;
        }
        let mut chain = Vec::new();
        for allow in &rules.allow {
            self.allow(direction, allow, &mut chain);
        }
        chain.push(Rule::Deny);
        let text: String = chain.iter().map(|rule| format!("{rule}\n")).collect();
        let prefix = if direction == Direction::Ingress { "in" } else { "out" };
        let name = format!("{prefix}-{}", short_hash(&text));
        self.chains.insert(name.clone(), chain);
        self.maps.entry(direction.map().into()).or_default().insert(address, name);
    }

    fn allow(&mut self, direction: Direction, allow: &Allow, chain: &mut Vec<Rule>) {
        let peers = match &allow.peers {
            Peers::Any => None,
            Peers::Set { addresses, blocks } => {
                let ranges = AddressRanges::new(addresses, blocks);
                if ranges.is_empty() {
                    return;
                }
                let name = format!("peers-{}", short_hash(&ranges.to_string()));
                self.sets.insert(name.clone(), ranges);
                Some(name)
            }
        };
        if allow.ports.is_empty() {
            chain.push(Rule::Allow { direction, peers, ports: None });
            return;
        }
        for range in &allow.ports {
            chain.push(Rule::Allow { direction, peers: peers.clone(), ports: Some(*range) });
        }
    }
}

/// A connection as conntrack has it: who opened it, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without.
    pub port: u16,
}

/// May this connection go on? The same decision as the table's, for connections that began
/// before it; `nodes` are the own node's addresses, which reach every Pod here.
pub fn permits(connection: &Connection, policies: &BTreeMap<Ipv4Addr, PodPolicy>, nodes: &BTreeSet<Ipv4Addr>) -> bool {
    if nodes.contains(&connection.source) || nodes.contains(&connection.destination) {
        return true;
    }
    let egress = policies
        .get(&connection.source)
        .is_none_or(|policy| passes(&policy.egress, connection.destination, connection));
    let ingress = policies
        .get(&connection.destination)
        .is_none_or(|policy| passes(&policy.ingress, connection.source, connection));
    egress && ingress
}

fn passes(rules: &Rules, peer: Ipv4Addr, connection: &Connection) -> bool {
    match Protocol::ALL.into_iter().find(|protocol| protocol.number() == connection.protocol) {
        Some(protocol) => rules.allows(IpAddr::V4(peer), protocol, connection.port),
        // ICMP and the like have no ports: only rules without ports speak of them.
        None => {
            !rules.isolated
                || rules.allow.iter().any(|allow| allow.ports.is_empty() && allow.peers.contains(IpAddr::V4(peer)))
        }
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// 16 hexadecimal digits: 64 bits of SHA-256. A name needs no more; content is compared as well.
fn short_hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
