//! Policies turned into addresses and ports, for one Pod.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::Namespaces;
use super::view::{Peer, PodView, Policy, Port, Protocol, Rule};

/// Everything that one Pod's node must enforce for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPolicy {
    /// Connections to the Pod.
    pub ingress: Rules,
    /// Connections from the Pod.
    pub egress: Rules,
}

/// One direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// false: everything may pass, and `allow` is empty.
    pub isolated: bool,
    /// What may pass; any one suffices.
    pub allow: Vec<Allow>,
}

/// Connections with any of the peers, on any of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Who.
    pub peers: Peers,
    /// Destination ports, sorted, without overlap; empty: every port and every protocol.
    pub ports: Vec<PortRange>,
}

/// The other ends of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everybody.
    Any,
    /// These addresses of Pods, and these blocks.
    Set {
        /// Pod addresses.
        addresses: BTreeSet<IpAddr>,
        /// Blocks of addresses.
        blocks: Vec<Block>,
    },
}

/// A block of addresses with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Allowed.
    pub cidr: IpNetwork,
    /// But not these.
    pub except: Vec<IpNetwork>,
}

/// Ports `first..=last` of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// Its protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl Peers {
    /// Whether the address is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match self {
            Peers::Any => true,
            Peers::Set { addresses, blocks } => {
                addresses.contains(&ip)
                    || blocks.iter().any(|b| b.cidr.contains(ip) && !b.except.iter().any(|e| e.contains(ip)))
            }
        }
    }
}

impl Rules {
    /// Whether a new connection with that peer may pass in this direction.
    pub fn allows(&self, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        !self.isolated
            || self.allow.iter().any(|a| {
                a.peers.contains(peer)
                    && (a.ports.is_empty()
                        || a.ports.iter().any(|r| r.protocol == protocol && (r.first..=r.last).contains(&port)))
            })
    }
}

/// What the policies mean for `pod`, given all Pods and Namespaces. Independent of the order of
/// `pods`; `allow` follows the order of `policies`.
pub fn compile<'p>(
    pod: &PodView,
    policies: &[Policy],
    pods: impl IntoIterator<Item = &'p PodView> + Clone,
    namespaces: &Namespaces,
) -> PodPolicy {
    Compiler::new(policies, pods, namespaces).compile(pod)
}

/// The same for many Pods: who the peers of a rule are is the same for all Pods that its policy
/// selects, and is looked up once. Cost of the first Pod of a policy: O(rules · Pods of the
/// cluster); of a further one: O(policies + what its rules hold).
pub struct Compiler<'a, I> {
    policies: &'a [Policy],
    pods: I,
    namespaces: &'a Namespaces,
    /// For each policy, once it was needed.
    prepared: Vec<Option<Prepared>>,
}

/// What a policy says that is the same for every Pod it selects.
struct Prepared {
    /// The peers of each ingress rule.
    ingress: Vec<Peers>,
    egress: Rules,
}

impl<'a, 'p, I: IntoIterator<Item = &'p PodView> + Clone> Compiler<'a, I> {
    /// Nothing is computed yet.
    pub fn new(policies: &'a [Policy], pods: I, namespaces: &'a Namespaces) -> Self {
        Self { policies, pods, namespaces, prepared: policies.iter().map(|_| None).collect() }
    }

    /// See [`compile`].
    pub fn compile(&mut self, pod: &PodView) -> PodPolicy {
        let mut out = PodPolicy::default();
        for (policy, slot) in self.policies.iter().zip(&mut self.prepared).filter(|(p, _)| p.selects(pod)) {
            let prepared = slot.get_or_insert_with(|| prepare(policy, &self.pods, self.namespaces));
            if let Some(rules) = &policy.ingress {
                out.ingress.isolated = true;
                for (rule, peers) in rules.iter().zip(&prepared.ingress) {
                    let ports = resolve(&rule.ports, Some(pod));
                    if rule.ports.is_empty() || !ports.is_empty() {
                        out.ingress.push(peers.clone(), ports);
                    }
                }
            }
            if policy.egress.is_some() {
                out.egress.isolated = true;
                out.egress.allow.extend(prepared.egress.allow.iter().cloned());
            }
        }
        out
    }
}

fn prepare<'p>(
    policy: &Policy,
    pods: &(impl IntoIterator<Item = &'p PodView> + Clone),
    namespaces: &Namespaces,
) -> Prepared {
    let peers = |rule: &Rule| peers_of(rule, &policy.namespace, pods.clone(), namespaces);
    let ingress = policy.ingress.iter().flatten().map(peers).collect();
    let mut egress = Rules::default();
    for rule in policy.egress.iter().flatten() {
        compile_egress(&mut egress, rule, policy, pods.clone(), namespaces);
    }
    Prepared { ingress, egress }
}

/// A named port means another number at each destination: those rules become one entry for each
/// set of numbers that destinations give the names.
fn compile_egress<'p>(
    out: &mut Rules,
    rule: &Rule,
    policy: &Policy,
    pods: impl IntoIterator<Item = &'p PodView> + Clone,
    namespaces: &Namespaces,
) {
    let fixed = resolve(&rule.ports, None);
    if rule.ports.is_empty() || !fixed.is_empty() {
        let peers = peers_of(rule, &policy.namespace, pods.clone(), namespaces);
        out.push(peers, fixed);
    }
    let named: Vec<Port> = rule.ports.iter().filter(|p| matches!(p, Port::Named(..))).cloned().collect();
    if named.is_empty() {
        return;
    }
    let mut by_ports: Vec<(Vec<PortRange>, BTreeSet<IpAddr>)> = Vec::new();
    for peer in pods {
        let ports = resolve(&named, Some(peer));
        if ports.is_empty() || peer.host_network {
            continue;
        }
        let fits = |ip: IpAddr| {
            rule.peers.is_empty()
                || rule.peers.iter().any(|p| p.fits(super::End::Pod(peer, ip), &policy.namespace, namespaces))
        };
        let addresses: Vec<IpAddr> = peer.addresses.iter().copied().filter(|ip| fits(*ip)).collect();
        match by_ports.iter_mut().find(|(p, _)| *p == ports) {
            Some((_, set)) => set.extend(addresses),
            None => by_ports.push((ports, addresses.into_iter().collect())),
        }
    }
    by_ports.sort();
    for (ports, addresses) in by_ports {
        out.push(Peers::Set { addresses, blocks: Vec::new() }, ports);
    }
}

impl Rules {
    fn push(&mut self, peers: Peers, ports: Vec<PortRange>) {
        let empty = matches!(&peers, Peers::Set { addresses, blocks } if addresses.is_empty() && blocks.is_empty());
        if !empty {
            self.allow.push(Allow { peers, ports });
        }
    }
}

fn peers_of<'p>(
    rule: &Rule,
    home: &str,
    pods: impl IntoIterator<Item = &'p PodView>,
    namespaces: &Namespaces,
) -> Peers {
    if rule.peers.is_empty() {
        return Peers::Any;
    }
    let mut addresses = BTreeSet::new();
    if rule.peers.iter().any(|p| matches!(p, Peer::Pods { .. })) {
        for pod in pods {
            if rule.peers.iter().any(|p| p.selects(pod, home, namespaces)) {
                addresses.extend(pod.addresses.iter().copied());
            }
        }
    }
    let mut blocks = Vec::new();
    for peer in &rule.peers {
        if let Peer::Block { cidr, except } = peer {
            blocks.push(Block { cidr: *cidr, except: except.clone() });
        }
    }
    Peers::Set { addresses, blocks }
}

/// Numbers for the ports: names resolve at `destination`, and to nothing without one. Sorted and
/// merged.
fn resolve(ports: &[Port], destination: Option<&PodView>) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = ports
        .iter()
        .filter_map(|p| match p {
            Port::Any(protocol) => Some(PortRange { protocol: *protocol, first: 0, last: u16::MAX }),
            Port::Range(protocol, first, last) => Some(PortRange { protocol: *protocol, first: *first, last: *last }),
            Port::Named(protocol, name) => destination.and_then(|d| d.port_named(name, *protocol)).map(|n| PortRange {
                protocol: *protocol,
                first: n,
                last: n,
            }),
        })
        .collect();
    ranges.sort();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for r in ranges {
        match merged.last_mut() {
            Some(l) if l.protocol == r.protocol && u32::from(r.first) <= u32::from(l.last) + 1 => {
                l.last = l.last.max(r.last);
            }
            _ => merged.push(r),
        }
    }
    merged
}
