//! The NetworkPolicy decision, twice: [`decide`] says of one connection whether the policies allow
//! it, straight from Kubernetes' words; [`compile()`] turns the policies into what a node's kernel
//! needs for one Pod. A property test holds the two together.
//!
//! A Pod is isolated for a direction once any policy selects it for that direction; then only what
//! some rule of such a policy allows may pass. Policies only ever add. Replies belong to their
//! connection, and a Pod always reaches itself; what a node's own agent sends to its Pods (probes)
//! is netd's to allow.

mod compile;
mod view;

pub use compile::{Allow, Block, Compiler, Peers, PodPolicy, PortRange, Rules, compile};
pub use view::{NamedPort, NamespaceView, Peer, PodView, Policy, PolicyError, Port, Protocol, Rule};

use std::collections::BTreeMap;
use std::net::IpAddr;

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// A Pod, seen at one of its own addresses.
    Pod(&'a PodView, IpAddr),
    /// Anything else: a node, a machine outside.
    Other(IpAddr),
}

impl<'a> End<'a> {
    /// The Pod, if it is one.
    pub fn pod(self) -> Option<&'a PodView> {
        match self {
            End::Pod(p, _) => Some(p),
            End::Other(_) => None,
        }
    }

    /// The address it has in the packet.
    pub fn address(self) -> IpAddr {
        match self {
            End::Pod(_, ip) | End::Other(ip) => ip,
        }
    }
}

/// A new connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// Who opens it.
    pub source: End<'a>,
    /// To whom.
    pub destination: End<'a>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// Namespaces by name.
pub type Namespaces = BTreeMap<String, NamespaceView>;

/// Whether the policies let this connection be made. The reference: slow, and close to the text of
/// Kubernetes' documentation.
pub fn decide(flow: &Flow<'_>, policies: &[Policy], namespaces: &Namespaces) -> bool {
    if let (Some(a), Some(b)) = (flow.source.pod(), flow.destination.pod())
        && a.uid == b.uid
    {
        return true;
    }
    let ingress = flow.destination.pod().is_none_or(|pod| {
        let mine = || policies.iter().filter(|p| p.selects(pod) && p.ingress.is_some());
        mine().next().is_none() || mine().any(|p| allowed(p, p.ingress.as_deref(), flow, flow.source, namespaces))
    });
    let egress = flow.source.pod().is_none_or(|pod| {
        let mine = || policies.iter().filter(|p| p.selects(pod) && p.egress.is_some());
        mine().next().is_none() || mine().any(|p| allowed(p, p.egress.as_deref(), flow, flow.destination, namespaces))
    });
    ingress && egress
}

fn allowed(policy: &Policy, rules: Option<&[Rule]>, flow: &Flow<'_>, peer: End<'_>, namespaces: &Namespaces) -> bool {
    rules.into_iter().flatten().any(|rule| {
        let peer_fits = rule.peers.is_empty() || rule.peers.iter().any(|p| p.fits(peer, &policy.namespace, namespaces));
        let port_fits = rule.ports.is_empty()
            || rule.ports.iter().any(|p| p.fits(flow.protocol, flow.port, flow.destination.pod()));
        peer_fits && port_fits
    })
}

#[cfg(test)]
mod tests;
