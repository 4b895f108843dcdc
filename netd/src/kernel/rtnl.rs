//! Links, addresses, neighbours and routes over rtnetlink.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use ipnetwork::Ipv4Network;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::SockProtocol;

use super::KernelError;
use super::socket::{NetlinkSocket, Reply, frame};

/// Routes of ours carry this protocol number (unassigned in Linux' rtnetlink.h): only these are
/// ever changed or removed.
pub const ROUTE_PROTOCOL: u8 = 84;

/// A hardware address.
pub type Mac = [u8; 6];

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// ifindex
    pub index: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Bytes.
    pub mtu: u32,
    /// Hardware address, if it has an Ethernet one.
    pub mac: Option<Mac>,
    /// ifalias
    pub alias: Option<String>,
    /// Up, and with a carrier: the other side is up as well.
    pub operational: bool,
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// ifindex
    pub index: u32,
    /// Address and prefix length.
    pub network: Ipv4Network,
}

/// A permanent neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// ifindex
    pub index: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// Where packets to it go.
    pub mac: Mac,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Network,
    /// How.
    pub target: Target,
    /// Source address of the node's own packets.
    pub source: Option<Ipv4Addr>,
    /// Lower wins; 0 is the default.
    pub metric: u32,
    /// Who made it.
    pub protocol: u8,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Out of an interface, to a neighbour there.
    Link(u32),
    /// To a gateway; the interface is found by the gateway's address unless given.
    Gateway(Ipv4Addr, u32),
    /// Nowhere, and senders are told.
    Unreachable,
    /// Something netd never makes.
    Other,
}

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Rtnl {
    socket: NetlinkSocket,
}

impl Rtnl {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { socket: NetlinkSocket::open(SockProtocol::NetlinkRoute, 0)? })
    }

    /// Takes over one that was opened in another namespace.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { socket: NetlinkSocket::from_fd(fd) }
    }

    /// Makes a veth pair: `name` in this socket's namespace, `peer` in the namespace of `peer_netns`.
    /// Neither is set up: IFF_UP on the peer in the same message fails.
    pub fn add_veth(
        &mut self,
        name: &str,
        mac: Mac,
        peer: &str,
        peer_mac: Mac,
        peer_netns: BorrowedFd<'_>,
        mtu: u32,
    ) -> Result<(), KernelError> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(peer_mac.to_vec()),
            LinkAttribute::NetNsFd(peer_netns.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        let request = RouteNetlinkMessage::NewLink(message);
        self.change("add veth", || format!("{name} with peer {peer}"), request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets an interface up, and its MTU and alias where given.
    pub fn set_link(&mut self, index: u32, up: bool, mtu: Option<u32>, alias: Option<&str>) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.into())));
        self.change("set", || format!("interface {index}"), RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Removes an interface; one that is gone already is fine.
    pub fn delete_link(&mut self, name: &str) -> Result<(), KernelError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        let done = self.change("delete", || format!("interface {name}"), RouteNetlinkMessage::DelLink(message), 0);
        ignore(done, &[nix::errno::Errno::ENODEV])
    }

    /// Gives an interface an address; having it already is fine.
    pub fn add_address(&mut self, index: u32, network: Ipv4Network) -> Result<(), KernelError> {
        let request = RouteNetlinkMessage::NewAddress(address_message(index, network));
        let what = || format!("address {network} to interface {index}");
        self.change("add", what, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away; not having it is fine.
    pub fn delete_address(&mut self, index: u32, network: Ipv4Network) -> Result<(), KernelError> {
        let request = RouteNetlinkMessage::DelAddress(address_message(index, network));
        let done = self.change("delete", || format!("address {network} of interface {index}"), request, 0);
        ignore(done, &[nix::errno::Errno::EADDRNOTAVAIL, nix::errno::Errno::ENODEV])
    }

    /// Makes a permanent neighbour entry, replacing what is there.
    pub fn set_neighbour(&mut self, neighbour: Neighbour) -> Result<(), KernelError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = neighbour.index;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(neighbour.address)),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.to_vec()),
        ];
        let what = || format!("neighbour {} on interface {}", neighbour.address, neighbour.index);
        self.change("set", what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Makes a route, replacing the one to the same destination with the same metric.
    pub fn set_route(&mut self, route: &Route) -> Result<(), KernelError> {
        let request = RouteNetlinkMessage::NewRoute(route_message(route));
        self.change("set", || format!("route to {}", route.destination), request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route; one that is gone already is fine.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), KernelError> {
        let request = RouteNetlinkMessage::DelRoute(route_message(route));
        let done = self.change("delete", || format!("route to {}", route.destination), request, 0);
        ignore(done, &[nix::errno::Errno::ESRCH, nix::errno::Errno::ENODEV])
    }

    fn change(
        &mut self,
        verb: &'static str,
        object: impl Fn() -> String,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), KernelError> {
        let mut bytes = encode(&request, NLM_F_REQUEST | NLM_F_ACK | flags);
        match self.socket.request(&mut bytes, false) {
            Ok(_) => Ok(()),
            Err(source) => Err(KernelError::Refused { verb, object: object(), source }),
        }
    }

    pub(super) fn ask(
        &mut self,
        verb: &'static str,
        object: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<Reply>, KernelError> {
        let mut bytes = encode(&request, NLM_F_REQUEST | NLM_F_ACK);
        self.socket.request(&mut bytes, false).map_err(|source| KernelError::Refused {
            verb,
            object: object.into(),
            source,
        })
    }

    pub(super) fn dump(&mut self, verb: &'static str, request: RouteNetlinkMessage) -> Result<Vec<Reply>, KernelError> {
        let mut bytes = encode(&request, NLM_F_REQUEST | netlink_packet_core::NLM_F_DUMP);
        self.socket.request(&mut bytes, true).map_err(|source| KernelError::Refused {
            verb,
            object: String::new(),
            source,
        })
    }
}

fn encode(message: &RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    frame(message.message_type(), flags, &payload)
}

fn ignore(done: Result<(), KernelError>, errnos: &[nix::errno::Errno]) -> Result<(), KernelError> {
    match done {
        Err(error) if errnos.iter().any(|errno| error.errno() == Some(*errno as i32)) => Ok(()),
        other => other,
    }
}

fn address_message(index: u32, network: Ipv4Network) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = network.prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(network.ip().into()), AddressAttribute::Address(network.ip().into())];
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = route.destination.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    let attributes = &mut message.attributes;
    if route.destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::Inet(route.destination.network())));
    }
    match route.target {
        Target::Link(index) => {
            message.header.scope = RouteScope::Link;
            attributes.push(RouteAttribute::Oif(index));
        }
        Target::Gateway(gateway, index) => {
            attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
            if index != 0 {
                attributes.push(RouteAttribute::Oif(index));
            }
        }
        Target::Unreachable | Target::Other => message.header.kind = RouteType::Unreachable,
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}
