//! rtnetlink as the lab needs it: links, addresses, routes of namespaces that it made itself.
//!
//! The project's rule that only netd speaks netlink is about the product: the lab plays the
//! switch and the machines' hardware, shares no code with netd on purpose, and keeps its netlink
//! here and beside its faults. Everything is done on a thread inside the namespace concerned (see
//! [`crate::netns`]).

use std::{net::Ipv4Addr, os::fd::AsRawFd};

use futures::TryStreamExt;
use ipnetwork::Ipv4Network;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};

use crate::{Error, Result};

pub(crate) fn connect() -> Result<Handle> {
    let (connection, handle, _) = new_connection().map_err(Error::io("open a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

pub(crate) async fn get(net: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match net.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(found) => Ok(found),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -(nix::libc::ENODEV) => Ok(None),
        Err(e) => Err(Error::netlink(format!("look up interface {name}"))(e)),
    }
}

pub(crate) async fn index_of(net: &Handle, name: &str) -> Result<Option<u32>> {
    Ok(get(net, name).await?.map(|link| link.header.index))
}

pub(crate) async fn must_index(net: &Handle, name: &str) -> Result<u32> {
    let missing = || Error::Lacking {
        what: format!("interface {name} is not there"),
        how: "`trellis-lab down` and `up` build the underlay anew".to_owned(),
    };
    index_of(net, name).await?.ok_or_else(missing)
}

pub(crate) async fn up_by_name(net: &Handle, name: &str) -> Result<()> {
    let index = must_index(net, name).await?;
    let message = LinkUnspec::new_with_index(index).up().build();
    net.link().set(message).execute().await.map_err(Error::netlink(format!("set {name} up")))
}

pub(crate) async fn add_bridge(net: &Handle, name: &str) -> Result<()> {
    // No spanning tree: a port forwards at once. No snooping: the underlay carries whatever comes.
    let bridge = LinkBridge::new(name).up().build();
    net.link().add(bridge).execute().await.map_err(Error::netlink(format!("make bridge {name}")))
}

pub(crate) async fn set_controller(net: &Handle, port: &str, bridge: Option<&str>) -> Result<()> {
    let Some(index) = index_of(net, port).await? else {
        // A node that is off has no port: nothing to silence or to move.
        return Ok(());
    };
    let builder = LinkUnspec::new_with_index(index);
    let message = match bridge {
        Some(bridge) => builder.controller(must_index(net, bridge).await?).build(),
        None => builder.nocontroller().build(),
    };
    let what = format!("plug {port} into {}", bridge.unwrap_or("nothing"));
    net.link().set(message).execute().await.map_err(Error::netlink(what))
}

/// Makes a veth pair: `name` here, `peer` in the other namespace. Both are down.
pub(crate) async fn add_veth(
    net: &Handle,
    name: &str,
    peer: &str,
    peer_ns: &impl AsRawFd,
    peer_mac: Option<[u8; 6]>,
) -> Result<()> {
    let mut other = LinkMessage::default();
    other.attributes = vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(peer_ns.as_raw_fd())];
    other.attributes.extend(peer_mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    let pair = LinkVeth::new(name, "unused").set_info_data(InfoData::Veth(InfoVeth::Peer(other))).build();
    net.link().add(pair).execute().await.map_err(Error::netlink(format!("make veth {name}")))
}

/// Gives an interface an address.
pub(crate) async fn add_address(net: &Handle, name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
    let index = must_index(net, name).await?;
    let added = net.address().add(index, address.into(), prefix).execute().await;
    added.map_err(Error::netlink(format!("give {name} the address {address}")))
}

/// A route by a gateway.
pub(crate) async fn add_route(net: &Handle, to: Ipv4Network, via: Ipv4Addr) -> Result<()> {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.network(), to.prefix()).gateway(via);
    let added = net.route().add(builder.build()).execute().await;
    added.map_err(Error::netlink(format!("make the route to {to} via {via}")))
}
