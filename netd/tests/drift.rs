//! What somebody else changes in the kernel is put right again; and a node of another subnet.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{fs, net::Ipv4Addr, process::Command, time::Duration};

use serde_json::json;
use support::{TestNode, cannot_run, eventually, node_object, policy_object};
use trellis_netd::{
    cluster::Kind,
    kernel::rtnl::{Neighbour, Route, Target},
    links::host_interface,
};

const LIMIT: Duration = Duration::from_secs(5);
const WRONG_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

#[test]
fn neighbours_routes_and_settings_come_back_within_five_seconds() {
    if cannot_run("neighbours_routes_and_settings_come_back_within_five_seconds") {
        return;
    }
    let (n1, n2) = TestNode::two();
    let (a, a_ip) = n1.attach("a", json!({}));
    let (b, b_ip) = n2.attach("b", json!({}));
    b.echo(80);
    assert!(a.reaches(b_ip, 80));
    let mut repairs = n1.status().repairs;
    assert_eq!(repairs, 0);
    let mut broken = |what: &str, breaks: &dyn Fn()| {
        breaks();
        assert!(!a.reaches(b_ip, 80), "{what}: the positive control");
        let took = eventually(what, LIMIT, || n1.status().repairs > repairs && a.reaches(b_ip, 80));
        repairs = n1.status().repairs;
        eprintln!("{what}: repaired in {took:?}");
    };
    let host_side = host_interface("a");
    let name = host_side.clone();
    broken("a Pod's hardware address on the node", &|| {
        let name = name.clone();
        n1.netns.rtnl(move |rtnl| {
            let index = rtnl.link(&name).unwrap().unwrap().index;
            rtnl.set_neighbour(Neighbour { index, address: a_ip, mac: WRONG_MAC }).unwrap();
        });
    });
    broken("the gateway's hardware address in the Pod", &|| {
        a.rtnl(|rtnl| {
            let index = rtnl.link("eth0").unwrap().unwrap().index;
            let gateway: Ipv4Addr = "10.244.1.1".parse().unwrap();
            rtnl.set_neighbour(Neighbour { index, address: gateway, mac: WRONG_MAC }).unwrap();
        });
    });
    broken("the default route in the Pod", &|| {
        a.rtnl(|rtnl| {
            let default = rtnl.routes().unwrap().into_iter().find(|r| r.destination.prefix() == 0).unwrap();
            rtnl.delete_route(&default).unwrap();
        });
    });
    broken("a node's route led astray", &|| {
        n1.netns.rtnl(|rtnl| {
            let mut route: Route =
                rtnl.routes().unwrap().into_iter().find(|r| r.destination.to_string() == "10.244.2.0/24").unwrap();
            let Target::Gateway(_, index) = route.target else { panic!("{route:?}") };
            route.target = Target::Gateway("172.30.0.99".parse().unwrap(), index);
            rtnl.set_route(&route).unwrap();
        });
    });
    // What nobody is hindered by at once is put right all the same.
    let changed = |what: &str, setting: String, wrong: &'static str| {
        let path = format!("/proc/sys/net/ipv4/{setting}");
        let read = |path: String| n1.netns.run(move || fs::read_to_string(path).unwrap());
        let right = read(path.clone());
        let at = path.clone();
        n1.netns.run(move || fs::write(at, wrong).unwrap());
        assert_ne!(read(path.clone()), right, "{what}: the positive control");
        eventually(what, LIMIT, || read(path.clone()) == right);
    };
    changed("forwarding", "ip_forward".into(), "0");
    changed("the guard against forged sources", format!("conf/{host_side}/rp_filter"), "0");
    let name = host_side.clone();
    let mtu = || {
        let name = name.clone();
        n1.netns.rtnl(move |rtnl| rtnl.link(&name).unwrap().unwrap().mtu)
    };
    let right = mtu();
    n1.netns.rtnl(move |rtnl| {
        let index = rtnl.link(&host_side).unwrap().unwrap().index;
        rtnl.set_link(index, false, Some(1000), None).unwrap();
    });
    eventually("the MTU", LIMIT, || mtu() == right);
    assert!(a.reaches(b_ip, 80));
}

#[test]
fn a_rule_that_somebody_slips_in_lasts_seconds() {
    if cannot_run("a_rule_that_somebody_slips_in_lasts_seconds") {
        return;
    }
    let (n1, n2) = TestNode::two();
    let (a, a_ip) = n1.attach("a", json!({"app": "web"}));
    let (b, _) = n2.attach("b", json!({}));
    a.echo(80);
    assert!(b.reaches(a_ip, 80), "the positive control");
    let deny = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]});
    n1.change(Kind::NetworkPolicy, 5, policy_object("deny", deny));
    n1.settled(5);
    assert!(!b.reaches(a_ip, 80));
    let slipped =
        n1.netns.run(|| Command::new("nft").args(["insert", "rule", "inet", "trellis", "forward", "accept"]).status());
    if !slipped.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a_rule_that_somebody_slips_in_lasts_seconds: nft is not installed");
        return;
    }
    let before = n1.status().repairs;
    eventually("the rule's end", LIMIT, || n1.status().repairs > before && !b.reaches(a_ip, 80));
}

#[test]
fn pods_of_a_node_on_another_subnet_are_unreachable_at_once() {
    if cannot_run("pods_of_a_node_on_another_subnet_are_unreachable_at_once") {
        return;
    }
    let (n1, n2) = TestNode::two();
    let (a, _) = n1.attach("a", json!({}));
    let (b, b_ip) = n2.attach("b", json!({}));
    b.echo(80);
    assert!(a.reaches(b_ip, 80), "the positive control");
    n1.change(Kind::Node, 4, node_object("n3", "192.168.9.13", "10.244.3.0/24"));
    n1.settled(4);
    let begin = std::time::Instant::now();
    let refused = a.connect("10.244.3.2".parse().unwrap(), 80).unwrap_err();
    use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable};
    assert!(matches!(refused.kind(), HostUnreachable | NetworkUnreachable), "{refused:?}");
    assert!(begin.elapsed() < Duration::from_millis(500), "told, not left waiting");
    // It gets an address of our subnet: the route is made.
    n1.change(Kind::Node, 6, node_object("n3", "172.30.0.13", "10.244.3.0/24"));
    n1.settled(6);
    let routed = n1.netns.rtnl(|rtnl| rtnl.routes().unwrap());
    let route = routed.iter().find(|r| r.destination.to_string() == "10.244.3.0/24").unwrap();
    assert!(matches!(route.target, Target::Gateway(gateway, _) if gateway.to_string() == "172.30.0.13"), "{route:?}");
    assert!(a.reaches(b_ip, 80));
}
