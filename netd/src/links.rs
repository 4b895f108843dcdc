//! Each Pod's veth pair: what should be, and the steps from what is. Pure.
//!
//! ```text
//!   Pod's netns                              node's netns
//!   eth0  10.244.1.7/32  ───── veth ─────  trl0123456789ab   (route 10.244.1.7/32, see `routes`)
//!   default via 10.244.1.1, on link          ee:ee:ee:ee:ee:ee
//!   10.244.1.1 is at ee:…:ee, for good       10.244.1.7 is at 0a:58:0a:f4:01:07, for good
//! ```
//! No bridge, no ARP: both sides know each other's hardware address. The gateway is the node's
//! first pod address, which also stands on its loopback interface so that it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use sha2::{Digest, Sha256};

use crate::kernel::rtnl::{Link, Mac, Neighbour, Route, Target};

/// The Pod's interface.
pub const POD_INTERFACE: &str = "eth0";
/// All host sides begin so; whether an interface is one, [`is_host_interface`] says.
const HOST_PREFIX: &str = "trl";
/// The digits that follow.
const HOST_DIGITS: usize = 12;
/// Hardware address of every host side: they never meet on one link.
pub const HOST_MAC: Mac = [0xee; 6];

/// Name of the host side: 15 characters are the kernel's limit.
pub fn host_interface(pod_uid: &str) -> String {
    let hash = Sha256::digest(pod_uid.as_bytes());
    let digits: String = hash.iter().take(HOST_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
    format!("{HOST_PREFIX}{digits}")
}

/// Is it the host side of a Pod's pair? By the prefix and the twelve hexadecimal digits that follow
/// it: nobody else's interface is taken for ours, whatever it begins with.
pub fn is_host_interface(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX).is_some_and(|digits| {
        digits.len() == HOST_DIGITS && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Hardware address of a Pod: locally administered, made from its address.
pub fn pod_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// One Pod as it should be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The Pod.
    pub uid: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// What should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredLinks {
    /// All attached Pods.
    pub pods: Vec<PodLink>,
    /// Pods' gateway; None while the node has no pod CIDR.
    pub gateway: Option<Ipv4Addr>,
    /// The underlay's MTU: packets are routed, not wrapped.
    pub mtu: u32,
    /// Interfaces of Pods that were detached.
    pub gone: BTreeSet<String>,
}

/// What is, on the node's side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActualLinks {
    /// All interfaces by name.
    pub host: BTreeMap<String, Link>,
    /// All permanent neighbour entries.
    pub neighbours: Vec<Neighbour>,
    /// Addresses on the loopback interface.
    pub loopback: Vec<Ipv4Network>,
    /// What was looked at inside Pods; a Pod that is not here was not looked at.
    pub pods: BTreeMap<String, PodSide>,
}

/// What is, inside a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSide {
    /// eth0, if there is one.
    pub link: Option<Link>,
    /// Is the loopback interface up?
    pub loopback_up: bool,
    /// Addresses of eth0.
    pub addresses: Vec<Ipv4Network>,
    /// Permanent neighbours on eth0.
    pub neighbours: Vec<Neighbour>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Remove a detached Pod's interface, and with it its other side.
    Delete(String),
    /// Give the gateway's address to the loopback interface.
    GatewayAddress(Ipv4Addr),
    /// Make the pair.
    Create(PodLink),
    /// Set lo up inside the Pod.
    PodLoopback(String),
    /// Give eth0 its address.
    PodAddress(PodLink),
    /// Set eth0 up, with its MTU.
    PodUp(String),
    /// Tell the Pod where its gateway is.
    PodNeighbour(String),
    /// A route to the gateway itself.
    PodGatewayRoute(String),
    /// The default route.
    PodDefaultRoute(String),
    /// Set the host side up, with its MTU and settings.
    HostUp(PodLink),
    /// Tell the node where the Pod is.
    HostNeighbour(PodLink),
}

impl Step {
    /// The Pod that it is about.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Delete(_) | Self::GatewayAddress(_) => None,
            Self::Create(pod) | Self::PodAddress(pod) | Self::HostUp(pod) | Self::HostNeighbour(pod) => Some(&pod.uid),
            Self::PodLoopback(uid)
            | Self::PodUp(uid)
            | Self::PodNeighbour(uid)
            | Self::PodGatewayRoute(uid)
            | Self::PodDefaultRoute(uid) => Some(uid),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete(name) => write!(f, "delete interface {name}"),
            Self::GatewayAddress(ip) => write!(f, "add address {ip}/32 to lo"),
            Self::Create(pod) => {
                write!(f, "add veth {} for pod {} ({})", host_interface(&pod.uid), pod.uid, pod.address)
            }
            Self::PodLoopback(uid) => write!(f, "pod {uid}: set lo up"),
            Self::PodAddress(pod) => write!(f, "pod {}: add address {}/32 to eth0", pod.uid, pod.address),
            Self::PodUp(uid) => write!(f, "pod {uid}: set eth0 up"),
            Self::PodNeighbour(uid) => write!(f, "pod {uid}: set the gateway's hardware address"),
            Self::PodGatewayRoute(uid) => write!(f, "pod {uid}: set the route to the gateway"),
            Self::PodDefaultRoute(uid) => write!(f, "pod {uid}: set the default route"),
            Self::HostUp(pod) => write!(f, "set {} up", host_interface(&pod.uid)),
            Self::HostNeighbour(pod) => {
                write!(f, "set the hardware address of {} on {}", pod.address, host_interface(&pod.uid))
            }
        }
    }
}

/// What to do; empty when all is as it should be.
pub fn plan(desired: &DesiredLinks, actual: &ActualLinks) -> Vec<Step> {
    let mut steps: Vec<Step> = desired
        .gone
        .iter()
        .filter(|name| actual.host.contains_key(*name))
        .map(|name| Step::Delete(name.clone()))
        .collect();
    if let Some(gateway) = desired.gateway
        && !actual.loopback.iter().any(|network| network.ip() == gateway)
    {
        steps.push(Step::GatewayAddress(gateway));
    }
    for pod in &desired.pods {
        plan_pod(pod, desired, actual, &mut steps);
    }
    steps
}

fn plan_pod(pod: &PodLink, desired: &DesiredLinks, actual: &ActualLinks, steps: &mut Vec<Step>) {
    let host = actual.host.get(&host_interface(&pod.uid));
    let empty = PodSide::default();
    let (inside, looked_at) = match actual.pods.get(&pod.uid) {
        Some(side) => (side, true),
        None => (&empty, false),
    };
    let Some(gateway) = desired.gateway else { return };
    let create = host.is_none();
    if create && !looked_at {
        // The pair can only be made through the Pod's own socket, which nobody handed over yet.
        return;
    }
    if create {
        steps.push(Step::Create(pod.clone()));
    }
    if looked_at {
        let inside = if create { &empty } else { inside };
        plan_inside(pod, gateway, desired.mtu, inside, steps);
    }
    if !host.is_some_and(|link| link.up && link.mtu == desired.mtu && link.alias.as_deref() == Some(pod.uid.as_str())) {
        steps.push(Step::HostUp(pod.clone()));
    }
    let known = host.is_some_and(|link| {
        let wanted = Neighbour { index: link.index, address: pod.address, mac: pod_mac(pod.address) };
        actual.neighbours.contains(&wanted)
    });
    if !known {
        steps.push(Step::HostNeighbour(pod.clone()));
    }
}

fn plan_inside(pod: &PodLink, gateway: Ipv4Addr, mtu: u32, inside: &PodSide, steps: &mut Vec<Step>) {
    let uid = || pod.uid.clone();
    if !inside.loopback_up {
        steps.push(Step::PodLoopback(uid()));
    }
    if !inside.addresses.iter().any(|network| network.ip() == pod.address && network.prefix() == 32) {
        steps.push(Step::PodAddress(pod.clone()));
    }
    let index = inside.link.as_ref().map(|link| link.index);
    if !inside.link.as_ref().is_some_and(|link| link.up && link.mtu == mtu) {
        steps.push(Step::PodUp(uid()));
    }
    let knows =
        index.is_some_and(|index| inside.neighbours.contains(&Neighbour { index, address: gateway, mac: HOST_MAC }));
    if !knows {
        steps.push(Step::PodNeighbour(uid()));
    }
    let routed = |prefix: u8, target: Target| {
        inside.routes.iter().any(|route| {
            route.destination.prefix() == prefix
                && route.target == target
                && (prefix == 0 || route.destination.ip() == gateway)
        })
    };
    if !index.is_some_and(|index| routed(32, Target::Link(index))) {
        steps.push(Step::PodGatewayRoute(uid()));
    }
    if !index.is_some_and(|index| routed(0, Target::Gateway(gateway, index))) {
        steps.push(Step::PodDefaultRoute(uid()));
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
