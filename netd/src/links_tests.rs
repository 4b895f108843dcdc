#![allow(clippy::unwrap_used)]
use super::*;
use crate::kernel::rtnl::ROUTE_PROTOCOL;
use proptest::prelude::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);

fn pod(n: u8) -> PodLink {
    PodLink { uid: format!("uid-{n}"), address: Ipv4Addr::new(10, 244, 1, n) }
}

fn interface(index: u32, name: &str, mtu: u32) -> Link {
    Link { index, name: name.into(), up: false, mtu, mac: None, alias: None, operational: false }
}

#[test]
fn only_our_interfaces_are_taken_for_ours() {
    for other in [
        "lo",
        "eth0",
        "trl",
        "trl0",
        "trl-0123456789",
        "trlxyz456789abc",
        "trl0123456789AB",
        "trunk0",
        "tr0123456789abc",
    ] {
        assert!(!is_host_interface(other), "{other}");
    }
    assert!(is_host_interface("trl0123456789ab"));
    assert!(is_host_interface(&host_interface("uid")));
}

/// A model of two namespaces' worth of kernel.
struct Kernel {
    actual: ActualLinks,
    next: u32,
    mtu: u32,
}

impl Kernel {
    fn new(held: &[u8]) -> Self {
        let pods = held.iter().map(|n| (pod(*n).uid, PodSide::default())).collect();
        Self { actual: ActualLinks { pods, ..ActualLinks::default() }, next: 10, mtu: 1500 }
    }

    fn side(&mut self, uid: &str) -> (&mut PodSide, u32) {
        let side = self.actual.pods.get_mut(uid).unwrap();
        let index = side.link.as_ref().map_or(0, |link| link.index);
        (side, index)
    }

    fn execute(&mut self, step: &Step) {
        let mtu = self.mtu;
        let route = |destination: &str, target| Route {
            destination: destination.parse().unwrap(),
            target,
            source: None,
            metric: 0,
            protocol: ROUTE_PROTOCOL,
        };
        match step {
            Step::Delete(name) => drop(self.actual.host.remove(name).unwrap()),
            Step::GatewayAddress(ip) => self.actual.loopback.push((*ip).into()),
            Step::Create(pod) => {
                let name = host_interface(&pod.uid);
                self.next += 1;
                let host = interface(self.next, &name, mtu);
                assert!(self.actual.host.insert(name, host).is_none());
                *self.side(&pod.uid).0 = PodSide {
                    link: Some(interface(2, POD_INTERFACE, mtu)),
                    ..PodSide { loopback_up: true, ..PodSide::default() }
                };
            }
            Step::PodLoopback(uid) => self.side(uid).0.loopback_up = true,
            Step::PodAddress(pod) => self.side(&pod.uid).0.addresses.push(pod.address.into()),
            Step::PodUp(uid) => {
                let link = self.side(uid).0.link.as_mut().unwrap();
                link.up = true;
                link.mtu = mtu;
            }
            Step::PodNeighbour(uid) => {
                let (side, index) = self.side(uid);
                side.neighbours.push(Neighbour { index, address: GATEWAY, mac: HOST_MAC });
            }
            Step::PodGatewayRoute(uid) => {
                let (side, index) = self.side(uid);
                assert!(side.link.as_ref().unwrap().up, "a route needs a link that is up");
                side.routes.push(route("10.244.1.1/32", Target::Link(index)));
            }
            Step::PodDefaultRoute(uid) => {
                let (side, index) = self.side(uid);
                assert!(side.routes.iter().any(|r| r.destination.prefix() == 32), "the gateway must be known");
                side.routes.push(route("0.0.0.0/0", Target::Gateway(GATEWAY, index)));
            }
            Step::HostUp(pod) => {
                let link = self.actual.host.get_mut(&host_interface(&pod.uid)).unwrap();
                (link.up, link.mtu, link.alias) = (true, mtu, Some(pod.uid.clone()));
            }
            Step::HostNeighbour(pod) => {
                let index = self.actual.host[&host_interface(&pod.uid)].index;
                self.actual.neighbours.push(Neighbour { index, address: pod.address, mac: pod_mac(pod.address) });
            }
        }
    }
}

fn desired(pods: &[u8], gone: &[u8]) -> DesiredLinks {
    DesiredLinks {
        pods: pods.iter().map(|n| pod(*n)).collect(),
        gateway: Some(GATEWAY),
        mtu: 1500,
        gone: gone.iter().map(|n| host_interface(&pod(*n).uid)).collect(),
    }
}

#[test]
fn a_new_pod_takes_these_steps() {
    let steps = plan(&desired(&[7], &[]), &Kernel::new(&[7]).actual);
    let name = host_interface("uid-7");
    assert_eq!(name.len(), 15);
    assert_eq!(
        steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "add address 10.244.1.1/32 to lo".to_owned(),
            format!("add veth {name} for pod uid-7 (10.244.1.7)"),
            "pod uid-7: set lo up".into(),
            "pod uid-7: add address 10.244.1.7/32 to eth0".into(),
            "pod uid-7: set eth0 up".into(),
            "pod uid-7: set the gateway's hardware address".into(),
            "pod uid-7: set the route to the gateway".into(),
            "pod uid-7: set the default route".into(),
            format!("set {name} up"),
            format!("set the hardware address of 10.244.1.7 on {name}"),
        ]
    );
}

#[test]
fn a_pod_that_nobody_handed_over_waits() {
    let mut kernel = Kernel::new(&[]);
    kernel.actual.loopback.push(GATEWAY.into());
    assert_eq!(plan(&desired(&[7], &[]), &kernel.actual), vec![]);
}

proptest! {
    /// From any state, also after anything was taken away, one plan leads to where planning again
    /// yields nothing.
    #[test]
    fn planning_again_yields_nothing(
        first in proptest::collection::btree_set(2u8..8, 0..5),
        second in proptest::collection::btree_set(2u8..8, 0..5),
        damage in proptest::collection::vec((2u8..8, 0u8..8), 0..6),
    ) {
        let mut kernel = Kernel::new(&[2, 3, 4, 5, 6, 7]);
        let first: Vec<u8> = first.into_iter().collect();
        let second: Vec<u8> = second.into_iter().collect();
        let wanted = desired(&first, &[]);
        for step in plan(&wanted, &kernel.actual) {
            kernel.execute(&step);
        }
        prop_assert_eq!(plan(&wanted, &kernel.actual), vec![]);
        for (n, what) in damage {
            let name = host_interface(&pod(n).uid);
            let Some(link) = kernel.actual.host.get_mut(&name) else { continue };
            let side = kernel.actual.pods.get_mut(&pod(n).uid).unwrap();
            match what {
                0 => { kernel.actual.host.remove(&name); side.link = None; }
                1 => link.up = false,
                2 => kernel.actual.neighbours.clear(),
                3 => side.addresses.clear(),
                4 => side.routes.clear(),
                5 => side.loopback_up = false,
                6 => side.link.as_mut().into_iter().for_each(|link| link.mtu = 9000),
                _ => kernel.actual.loopback.clear(),
            }
        }
        let gone: Vec<u8> = first.iter().copied().filter(|n| !second.contains(n)).collect();
        let wanted = desired(&second, &gone);
        for step in plan(&wanted, &kernel.actual) {
            kernel.execute(&step);
        }
        prop_assert_eq!(plan(&wanted, &kernel.actual), vec![]);
    }
}
