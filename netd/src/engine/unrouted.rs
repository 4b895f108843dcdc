//! Nodes that no route leads to: told in the log, and to the control plane, which says it of the
//! Node, where an administrator looks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Engine;

/// What is told of at most this many; who has more knows enough.
const MAX_PEERS: usize = 64;

/// Which nodes' Pods cannot be reached from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unrouted {
    /// The network of this node's own underlay address; `None` while no interface has it.
    pub network: Option<Ipv4Network>,
    /// Name to underlay address; at most 64.
    pub peers: BTreeMap<String, Ipv4Addr>,
}

impl Engine {
    /// `off_link`: pod CIDRs, and the addresses of the nodes that have them.
    pub(super) fn tell_unrouted(&mut self, network: Option<Ipv4Network>, off_link: BTreeMap<Ipv4Network, Ipv4Addr>) {
        for (cidr, address) in &off_link {
            if self.off_link.get(cidr) != Some(address) {
                tracing::error!(%cidr, node = %address, own = %self.config.advertise,
                    "a node's address is not on this node's own network: its Pods cannot be reached from here, and \
                     senders are told so. Packets are routed, not wrapped, so all nodes need addresses of one subnet: \
                     see --advertise-address of `trellis cluster init` and `join`");
            }
        }
        for (cidr, address) in self.off_link.iter().filter(|(cidr, _)| !off_link.contains_key(cidr)) {
            tracing::info!(%cidr, node = %address, "a node that could not be reached is on our network, or gone");
        }
        let named = off_link.iter().map(|(cidr, address)| {
            let name = self.cluster.node_of(*cidr);
            (name.unwrap_or_else(|| cidr.to_string()), *address)
        });
        let now = Unrouted { network, peers: named.take(MAX_PEERS).collect() };
        self.off_link = off_link;
        self.unrouted_out.send_if_modified(|told| {
            let changed = *told != now;
            *told = now;
            changed
        });
    }
}
