//! The underlay: the network that the nodes' machines are plugged into.
//!
//! One network namespace holds a bridge and a port for each node; the port's other end is the
//! node's `eth0`. The namespace has no address and no way out, so nothing in it can reach the
//! machine's own network. It is held by one idle process; everything done to it is done by
//! netlink from a thread that enters it.
//!
//! Faults move ports: a silenced port belongs to no bridge (the node's link stays up, its packets
//! go nowhere, and no FIN tells of it); a partition is a bridge for each group. What is dropped
//! one way or by chance is the switch's filter (see [`super::state`]).

use std::{fs::File, net::Ipv4Addr, os::fd::OwnedFd, time::Duration};

use netlink_packet_route::link::LinkAttribute;
use rtnetlink::Handle;

use super::{filter, netem, state::Rule};
use crate::{
    Error, Result,
    netlink::{add_address, add_bridge, add_veth, connect, get, index_of, set_controller, up_by_name},
    netns,
};

/// The switch that everybody is plugged into while nothing is broken.
const MAIN_BRIDGE: &str = "br0";
/// Bridges of partitions are called so, with a number.
const GROUP_BRIDGE: &str = "brp";
/// The nodes' interface.
pub const NODE_INTERFACE: &str = "eth0";

/// The underlay of one lab, by the process that holds its namespace.
#[derive(Clone, Copy, Debug)]
pub struct Underlay {
    pid: i32,
}

/// One node's place at the switch.
#[derive(Clone, Copy, Debug)]
pub struct Plug {
    /// The node's index in the topology, which names its port.
    pub index: usize,
    /// The node's address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// Its side of a partition; none for the main one.
    pub group: Option<usize>,
}

impl Underlay {
    /// The underlay held by that process.
    #[must_use]
    pub fn held_by(pid: i32) -> Self {
        Self { pid }
    }

    /// Makes the switch.
    pub fn create(self) -> Result<()> {
        netns::inside_async(self.pid, || async {
            let net = connect()?;
            up_by_name(&net, "lo").await?;
            add_bridge(&net, MAIN_BRIDGE).await
        })
    }

    /// Plugs a node in: makes its `eth0`, addressed and up, and its port on its group's bridge.
    pub fn plug(self, node_pid: i32, plug: Plug) -> Result<()> {
        let path = format!("/proc/{node_pid}/ns/net");
        let node_ns: OwnedFd = File::open(&path).map_err(Error::io(path))?.into();
        netns::inside_async(self.pid, move || async move {
            let net = connect()?;
            let port = port_name(plug.index);
            if let Some(stale) = index_of(&net, &port).await? {
                net.link().del(stale).execute().await.map_err(Error::netlink(format!("remove stale port {port}")))?;
            }
            add_veth(&net, &port, NODE_INTERFACE, &node_ns, Some(mac_of(plug.address))).await?;
            let bridge = plug.group.map_or_else(|| MAIN_BRIDGE.to_owned(), group_bridge);
            ensure_bridge(&net, &bridge).await?;
            set_controller(&net, &port, Some(&bridge)).await?;
            up_by_name(&net, &port).await
        })?;
        netns::inside_async(node_pid, move || async move {
            let net = connect()?;
            up_by_name(&net, "lo").await?;
            add_address(&net, NODE_INTERFACE, plug.address, plug.prefix).await?;
            up_by_name(&net, NODE_INTERFACE).await
        })
    }

    /// Drops everything from and to a node, whose link stays up.
    pub fn silence(self, index: usize) -> Result<()> {
        netns::inside_async(self.pid, move || async move {
            let net = connect()?;
            set_controller(&net, &port_name(index), None).await
        })
    }

    /// Splits the nodes: each group on a switch of its own. Nodes in no group stay together on
    /// the main one.
    pub fn partition(self, groups: Vec<Vec<usize>>) -> Result<()> {
        netns::inside_async(self.pid, move || async move {
            let net = connect()?;
            for (number, group) in groups.iter().enumerate() {
                let bridge = group_bridge(number);
                ensure_bridge(&net, &bridge).await?;
                for index in group {
                    set_controller(&net, &port_name(*index), Some(&bridge)).await?;
                }
            }
            Ok(())
        })
    }

    /// Everybody back on the main bridge. `ports` are the nodes that are switched on.
    pub fn heal(self, ports: Vec<usize>) -> Result<()> {
        netns::inside_async(self.pid, move || async move {
            let net = connect()?;
            for index in ports {
                set_controller(&net, &port_name(index), Some(MAIN_BRIDGE)).await?;
            }
            for number in 0.. {
                let bridge = group_bridge(number);
                let Some(index) = index_of(&net, &bridge).await? else { break };
                net.link().del(index).execute().await.map_err(Error::netlink(format!("remove {bridge}")))?;
            }
            Ok(())
        })
    }

    /// Makes the switch do as the rules say, and nothing else.
    pub fn filter(self, rules: Vec<Rule>) -> Result<()> {
        netns::inside(self.pid, move || filter::apply(&rules))
    }

    /// Holds up what goes to a node, and what comes from it where it is on (`node_pid`).
    pub fn delay(self, index: usize, node_pid: Option<i32>, by: Duration) -> Result<()> {
        netns::inside_async(self.pid, move || async move { netem::apply(&port_name(index), by).await })?;
        match node_pid {
            Some(pid) => netns::inside_async(pid, move || async move { netem::apply(NODE_INTERFACE, by).await }),
            None => Ok(()),
        }
    }

    /// Which switch a node's port is on: 0 the main one, 1.. a partition's; none when silenced.
    pub fn switch_of(self, index: usize) -> Result<Option<usize>> {
        netns::inside_async(self.pid, move || async move {
            let net = connect()?;
            let Some(port) = get(&net, &port_name(index)).await? else { return Ok(None) };
            let controller = port.attributes.iter().find_map(|a| match a {
                LinkAttribute::Controller(index) => Some(*index),
                _ => None,
            });
            let Some(controller) = controller.filter(|c| *c != 0) else { return Ok(None) };
            if index_of(&net, MAIN_BRIDGE).await? == Some(controller) {
                return Ok(Some(0));
            }
            for number in 0.. {
                match index_of(&net, &group_bridge(number)).await? {
                    Some(found) if found == controller => return Ok(Some(number + 1)),
                    Some(_) => {}
                    None => break,
                }
            }
            Ok(None)
        })
    }
}

/// The switch of a partition's group.
fn group_bridge(number: usize) -> String {
    format!("{GROUP_BRIDGE}{number}")
}

async fn ensure_bridge(net: &Handle, name: &str) -> Result<()> {
    match index_of(net, name).await? {
        Some(_) => Ok(()),
        None => add_bridge(net, name).await,
    }
}

/// The node's port at the switch.
pub(super) fn port_name(index: usize) -> String {
    format!("port{index}")
}

/// Made from the address, so that a node that comes back has the MAC its peers remember, as a
/// machine with the same network card has.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x74, a, b, c, d]
}
