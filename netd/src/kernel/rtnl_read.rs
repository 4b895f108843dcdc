//! What there is: dumps of links, addresses, neighbours and routes as our types.

use netlink_packet_core::Parseable;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;

use super::KernelError;
use super::rtnl::{Link, LinkAddress, Neighbour, Route, Rtnl, Target};

impl Rtnl {
    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let verb = "list interfaces";
        let replies = self.dump(verb, RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        replies
            .iter()
            .map(|reply| {
                let message = LinkMessage::parse(&reply.payload)
                    .map_err(|error| KernelError::Decode { verb, what: error.to_string() })?;
                Ok(link(&message))
            })
            .collect()
    }

    /// One interface, by name.
    ///
    /// Asking for a single one makes the kernel finish what a carrier change began (since Linux
    /// 6.10): an interface that answers `operational` really transmits.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        let verb = "get interface";
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.into())];
        let replies = match self.ask(verb, name, RouteNetlinkMessage::GetLink(request)) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENODEV as i32) => return Ok(None),
            other => other?,
        };
        let Some(reply) = replies.first() else { return Ok(None) };
        let message = LinkMessage::parse(&reply.payload)
            .map_err(|error| KernelError::Decode { verb, what: error.to_string() })?;
        Ok(Some(link(&message)))
    }

    /// All IPv4 addresses.
    pub fn addresses(&mut self) -> Result<Vec<LinkAddress>, KernelError> {
        let verb = "list addresses";
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let replies = self.dump(verb, RouteNetlinkMessage::GetAddress(request))?;
        let mut addresses = Vec::new();
        for reply in &replies {
            let message = AddressMessage::parse(&reply.payload)
                .map_err(|error| KernelError::Decode { verb, what: error.to_string() })?;
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            });
            let network = local.and_then(|ip| Ipv4Network::new(ip, message.header.prefix_len).ok());
            addresses.extend(network.map(|network| LinkAddress { index: message.header.index, network }));
        }
        Ok(addresses)
    }

    /// All permanent IPv4 neighbour entries.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, KernelError> {
        let verb = "list neighbours";
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Inet;
        let replies = self.dump(verb, RouteNetlinkMessage::GetNeighbour(request))?;
        let mut neighbours = Vec::new();
        for reply in &replies {
            let message = NeighbourMessage::parse(&reply.payload)
                .map_err(|error| KernelError::Decode { verb, what: error.to_string() })?;
            neighbours.extend(neighbour(&message));
        }
        Ok(neighbours)
    }

    /// All IPv4 routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>, KernelError> {
        let verb = "list routes";
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let replies = self.dump(verb, RouteNetlinkMessage::GetRoute(request))?;
        let mut routes = Vec::new();
        for reply in &replies {
            let message = RouteMessage::parse(&reply.payload)
                .map_err(|error| KernelError::Decode { verb, what: error.to_string() })?;
            if message.header.table == RouteHeader::RT_TABLE_MAIN {
                routes.extend(route(&message));
            }
        }
        Ok(routes)
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut found = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        alias: None,
        operational: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) => found.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::OperState(state) => found.operational = *state == State::Up,
            LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
            _ => {}
        }
    }
    found
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(*ip),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour { index: message.header.ifindex, address: address?, mac: mac? })
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut gateway, mut index, mut source, mut metric) = (None, 0, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            RouteAttribute::Oif(oif) => index = *oif,
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(*ip),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let target = match (message.header.kind, gateway) {
        (RouteType::Unicast, Some(gateway)) => Target::Gateway(gateway, index),
        (RouteType::Unicast, None) => Target::Link(index),
        (RouteType::Unreachable, _) => Target::Unreachable,
        _ => Target::Other,
    };
    let destination = Ipv4Network::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, target, source, metric, protocol: message.header.protocol.into() })
}
