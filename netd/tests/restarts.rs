//! Engines that end and begin again: what they find, keep, and leave alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{Netns, TestNode, cannot_run, eventually, node_object, pod_object, policy_object, round_trip};
use trellis_netd::cluster::{Incoming, Kind};
use trellis_netd::engine::{Event, TICK_PERIOD};
use trellis_netd::kernel::nft::Nft;
use trellis_netd::links::host_interface;

const S: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn a_restart_adopts_everything_and_breaks_no_connection() {
    if cannot_run("a_restart_adopts_everything_and_breaks_no_connection") {
        return;
    }
    let (mut n1, n2) = TestNode::two();
    let (a, a_ip) = n1.attach("a", json!({"app": "web"}));
    let (b, _) = n2.attach("b", json!({}));
    let (c, c_ip) = n1.attach("c", json!({}));
    a.echo(80);
    let allow = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.244.2.0/24"}}]}]});
    n1.change(Kind::NetworkPolicy, 9, policy_object("p", allow));
    n1.settled(9);
    let mut open = b.connect(a_ip, 80).unwrap();
    round_trip(&mut open).unwrap();
    let links = n1.netns.rtnl(|rtnl| rtnl.links().unwrap());
    let table = n1.netns.run(|| Nft::open().unwrap().read().unwrap().unwrap());

    n1.stop();
    round_trip(&mut open).expect("without netd");
    assert!(!c.reaches(a_ip, 80) && b.reaches(a_ip, 80), "policy holds without netd");
    n1.start();
    // No control plane: everything comes from disk and kernel.
    eventually("two pods known", S(20), || n1.status().attached.len() == 2);
    round_trip(&mut open).expect("with netd again");
    let status = n1.status();
    assert!(status.attached.iter().all(|pod| !pod.netns_held));
    assert_eq!(status.pod_cidr.unwrap().to_string(), "10.244.1.0/24");
    assert_eq!(n1.netns.rtnl(|rtnl| rtnl.links().unwrap()), links, "no link was touched");
    assert_eq!(n1.netns.run(|| Nft::open().unwrap().read().unwrap().unwrap()), table);
    assert_eq!(status.repairs, 0);
    n1.hand_over("a", &a);
    n1.hand_over("c", &c);
    assert_eq!(n1.try_attach("a").unwrap().address, a_ip);
    assert_eq!(n1.try_attach("c").unwrap().address, c_ip);
    assert!(b.reaches(a_ip, 80) && !c.reaches(a_ip, 80));
    round_trip(&mut open).unwrap();
}

/// Numbered datagrams from one Pod to another and back, one every 2 ms.
struct Flow {
    ended: Arc<AtomicBool>,
    sender: JoinHandle<(u64, BTreeSet<u64>)>,
}

impl Flow {
    fn begin(from: &Netns, to: &Netns, address: Ipv4Addr, port: u16) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&ended);
        to.run(move || {
            let socket = udp((Ipv4Addr::UNSPECIFIED, port));
            std::thread::spawn(move || {
                let mut number = [0; 8];
                // As long as the sender listens.
                while !done.load(Relaxed) || Arc::strong_count(&done) > 1 {
                    if let Ok((_, from)) = socket.recv_from(&mut number) {
                        // What cannot be sent is missing at the other end.
                        let _ = socket.send_to(&number, from);
                    }
                }
            });
        });
        let stop = Arc::clone(&ended);
        let (begun, established) = std::sync::mpsc::sync_channel(1);
        let sender = from.run(move || {
            let socket = udp((Ipv4Addr::UNSPECIFIED, 0));
            socket.connect((address, port)).unwrap();
            std::thread::spawn(move || {
                let (mut sent, mut back, mut number) = (0_u64, BTreeSet::new(), [0; 8]);
                socket.set_nonblocking(true).unwrap();
                while !stop.load(Relaxed) {
                    let _ = socket.send(&sent.to_be_bytes());
                    sent += 1;
                    std::thread::sleep(Duration::from_millis(2));
                    while socket.recv(&mut number).is_ok() {
                        back.insert(u64::from_be_bytes(number));
                    }
                    if !back.is_empty() {
                        let _ = begun.try_send(());
                    }
                }
                socket.set_nonblocking(false).unwrap();
                let deadline = Instant::now() + S(2);
                while (back.len() as u64) < sent && Instant::now() < deadline {
                    if socket.recv(&mut number).is_ok() {
                        back.insert(u64::from_be_bytes(number));
                    }
                }
                (sent, back)
            })
        });
        established.recv_timeout(S(5)).expect("the flow is answered");
        Self { ended, sender }
    }

    /// How many were sent, and which of them never came back.
    fn end(self) -> (u64, Vec<u64>) {
        self.ended.store(true, Relaxed);
        let (sent, back) = self.sender.join().unwrap();
        (sent, (0..sent).filter(|number| !back.contains(number)).collect())
    }
}

/// A socket whose buffer holds all that may come while its reader waits for a processor.
fn udp(bind: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = UdpSocket::bind(bind).unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

#[test]
fn a_restart_loses_no_packet_of_an_established_flow() {
    if cannot_run("a_restart_loses_no_packet_of_an_established_flow") {
        return;
    }
    let (mut n1, mut n2) = TestNode::two();
    let (a, a_ip) = n1.attach("a", json!({"app": "web"}));
    let (b, b_ip) = n2.attach("b", json!({}));
    let rule = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.244.2.0/24"}}],
                     "ports": [{"protocol": "UDP", "port": 9100}, {"protocol": "UDP", "port": 9101}]}]});
    let shown = || {
        vec![
            pod_object("a", "default", json!({"app": "web"}), Some(a_ip)),
            pod_object("b", "default", json!({}), Some(b_ip)),
        ]
    };
    for node in [&n1, &n2] {
        node.change(Kind::NetworkPolicy, 9, policy_object("p", rule.clone()));
        node.settled(9);
    }
    let flow = Flow::begin(&b, &a, a_ip, 9100);
    for (clean, revision) in [(true, 20), (false, 30)] {
        for (node, uid, pod) in [(&mut n1, "a", &a), (&mut n2, "b", &b)] {
            if clean {
                node.stop()
            } else {
                node.die()
            }
            node.start();
            assert_eq!(node.status().attached.len(), 1, "after the first plan");
            // The control plane answers again, then the agent.
            listed(node, vec![policy_object("p", rule.clone())], shown());
            node.hand_over(uid, pod);
            node.try_attach(uid).unwrap();
            node.send(Event::Bookmark { revision });
            node.settled(revision);
            // What follows a start: the first ticks as well.
            std::thread::sleep(2 * TICK_PERIOD);
        }
    }
    let (sent, lost) = flow.end();
    eprintln!("{sent} datagrams");
    assert!(sent > 500, "{sent}");
    assert!(lost.is_empty(), "{} of {sent} lost: {lost:?}", lost.len());
    // The positive control: with the Pod's route away for a moment, some are seen to be lost.
    let flow = Flow::begin(&b, &a, a_ip, 9101);
    n1.stop();
    n1.netns.rtnl(move |rtnl| {
        let route = rtnl.routes().unwrap().into_iter().find(|route| route.destination == a_ip.into()).unwrap();
        rtnl.delete_route(&route).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    n1.start();
    let (sent, lost) = flow.end();
    assert!(!lost.is_empty() && (lost.len() as u64) < sent, "{} of {sent} lost", lost.len());
}

/// What netd's file had before the last changes, and a death: netd knows less than the kernel does.
#[test]
fn a_death_before_the_disk_takes_no_policy_out_of_the_kernel() {
    if cannot_run("a_death_before_the_disk_takes_no_policy_out_of_the_kernel") {
        return;
    }
    let (mut n1, _n2) = TestNode::two();
    let (server, ip) = n1.attach("server", json!({"app": "web"}));
    let (client, _) = n1.attach("client", json!({}));
    let file = n1.folder.path().join("cluster.json");
    n1.stop();
    let older = std::fs::read(&file).unwrap();
    n1.start();
    let list = |n1: &TestNode, policies, pods| {
        n1.list(Kind::Node, support::NODES.iter().map(|(n, ip, cidr)| node_object(n, ip, cidr)).collect());
        n1.list(Kind::Namespace, vec![support::namespace_object("default")]);
        n1.list(Kind::NetworkPolicy, policies);
        n1.list(Kind::Pod, pods);
    };
    let known = || {
        vec![
            pod_object("server", "default", json!({"app": "web"}), None),
            pod_object("client", "default", json!({}), None),
        ]
    };
    list(&n1, vec![], known());
    n1.hand_over("server", &server);
    n1.hand_over("client", &client);
    let (late, late_ip) = n1.attach("late", json!({"app": "web"}));
    for pod in [&server, &late] {
        pod.echo(80);
    }
    assert!(client.reaches(ip, 80) && client.reaches(late_ip, 80), "positive control");
    let deny = || {
        let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]});
        policy_object("deny", spec)
    };
    n1.change(Kind::NetworkPolicy, 10, deny());
    n1.settled(10);
    assert!(!client.reaches(ip, 80) && !client.reaches(late_ip, 80));
    let table = |n1: &TestNode| n1.netns.run(|| Nft::open().unwrap().read().unwrap().unwrap());
    let before = table(&n1);

    n1.die();
    std::fs::write(&file, &older).unwrap();
    n1.start();
    assert_eq!(n1.status().attached.len(), 3, "answered after the first plan");
    assert_eq!(table(&n1), before, "what is known from before adds nothing and takes nothing");
    assert!(!client.reaches(ip, 80), "the policy that the file does not have");
    assert!(!client.reaches(late_ip, 80), "the Pod that the file does not have");
    assert!(n1.netns.reaches(late_ip, 80), "positive control: it is there");
    // One kind after the other is listed; the policy is still the last to go, with all of them.
    n1.list(Kind::NetworkPolicy, vec![]);
    assert_eq!(n1.status().attached.len(), 3);
    assert!(!client.reaches(ip, 80) && !client.reaches(late_ip, 80), "what was listed alone changes nothing");
    // It was deleted while netd was away. Of the Pod that is not shown nothing is known, so it stays.
    list(&n1, vec![], known());
    eventually("the deleted policy is gone", S(20), || client.reaches(ip, 80));
    assert!(!client.reaches(late_ip, 80), "a Pod that nothing is known of");
    let late_shown = || pod_object("late", "default", json!({"app": "web"}), None);
    n1.change(Kind::Pod, 12, late_shown());
    n1.settled(12);
    assert!(client.reaches(late_ip, 80));
}

#[test]
fn a_clean_end_stores_the_last_change() {
    if cannot_run("a_clean_end_stores_the_last_change") {
        return;
    }
    let (mut n1, _n2) = TestNode::two();
    let (_a, _) = n1.attach("a", json!({}));
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    n1.change(Kind::NetworkPolicy, 10, policy_object("deny", deny));
    n1.settled(10);
    n1.stop();
    let store = trellis_netd::store::Store::open(n1.folder.path()).unwrap();
    let mut stored = store.load_cluster().unwrap().unwrap();
    assert!(stored.restored().is_empty());
    assert_eq!((stored.policies().len(), stored.revision()), (1, 10));
    assert!(stored.local.contains_key("a"));
}

#[test]
fn what_a_death_before_the_disk_left_in_the_kernel_is_removed() {
    if cannot_run("what_a_death_before_the_disk_left_in_the_kernel_is_removed") {
        return;
    }
    let (mut n1, _n2) = TestNode::two();
    let (a, a_ip) = n1.attach("a", json!({}));
    let file = n1.folder.path().join("ipam.json");
    let before = std::fs::read(&file).unwrap();
    let (b, _) = n1.attach("b", json!({}));
    let has = |n1: &TestNode, uid| {
        n1.netns.rtnl(|rtnl| rtnl.links().unwrap()).iter().any(|link| link.name == host_interface(uid))
    };
    assert!(has(&n1, "b"));
    n1.stop();
    // As if it was killed after the kernel's work, before the file was written: nobody was answered.
    std::fs::write(&file, before).unwrap();
    n1.start();
    eventually("b's interface is gone", S(20), || !has(&n1, "b"));
    assert!(has(&n1, "a"), "one that is known stays");
    n1.hand_over("a", &a);
    n1.hand_over("b", &b);
    assert_eq!(n1.try_attach("a").unwrap().address, a_ip);
    n1.try_attach("b").unwrap();
    a.echo(80);
    assert!(b.reaches(a_ip, 80));
}

#[test]
fn interfaces_of_others_are_left_alone_whatever_they_begin_with() {
    if cannot_run("interfaces_of_others_are_left_alone_whatever_they_begin_with") {
        return;
    }
    const OTHERS: [&str; 2] = ["trl0", "trl-0123456789"];
    let (mut n1, _n2) = TestNode::two();
    n1.stop();
    let netns = n1.netns.fd();
    let [first, second] = OTHERS;
    n1.netns.rtnl(move |rtnl| {
        rtnl.add_veth(first, [2, 0, 0, 0, 9, 1], second, [2, 0, 0, 0, 9, 2], netns.as_fd(), 1500).unwrap();
        for name in OTHERS {
            let index = rtnl.link(name).unwrap().unwrap().index;
            rtnl.set_link(index, true, None, Some("somebody-else")).unwrap();
        }
        // The positive control: what looks like ours and belongs to no allocation goes.
        let ours = host_interface("nobody");
        rtnl.add_veth("other-side", [2, 0, 0, 0, 9, 3], &ours, [2, 0, 0, 0, 9, 4], netns.as_fd(), 1500).unwrap();
    });
    let setting = |name: &'static str| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    for name in OTHERS {
        n1.netns.run(move || std::fs::write(setting(name), "0").unwrap());
    }
    n1.start();
    let links =
        || -> Vec<String> { n1.netns.rtnl(|rtnl| rtnl.links().unwrap()).into_iter().map(|link| link.name).collect() };
    eventually("a half-made interface is gone", S(20), || !links().contains(&host_interface("nobody")));
    // A Pod's own setting is put right, so the others were looked at as well.
    let (_a, _) = n1.attach("a", json!({}));
    let of_a = format!("/proc/sys/net/ipv4/conf/{}/rp_filter", host_interface("a"));
    let (broken, read) = (of_a.clone(), of_a);
    n1.netns.run(move || std::fs::write(broken, "0").unwrap());
    eventually("the Pod's setting", S(20), || {
        let read = read.clone();
        n1.netns.run(move || std::fs::read_to_string(read).unwrap().trim() == "1")
    });
    for name in OTHERS {
        assert!(links().iter().any(|link| link == name), "{name} is somebody else's: {:?}", links());
        assert_eq!(n1.netns.run(move || std::fs::read_to_string(setting(name)).unwrap()).trim(), "0", "{name}");
    }
}

/// Everything that the control plane tells a node when it answers again.
fn listed(node: &TestNode, policies: Vec<Incoming>, pods: Vec<Incoming>) {
    node.list(Kind::Node, support::NODES.iter().map(|(n, ip, cidr)| node_object(n, ip, cidr)).collect());
    node.list(Kind::Namespace, vec![support::namespace_object("default")]);
    node.list(Kind::NetworkPolicy, policies);
    node.list(Kind::Pod, pods);
}

#[test]
fn without_the_allocations_file_a_freed_address_rests_all_the_same() {
    if cannot_run("without_the_allocations_file_a_freed_address_rests_all_the_same") {
        return;
    }
    let (mut n1, _n2) = TestNode::two();
    let (a, a_ip) = n1.attach("a", json!({}));
    let (_b, b_ip) = n1.attach("b", json!({}));
    let shown =
        || vec![pod_object("a", "default", json!({}), Some(a_ip)), pod_object("b", "default", json!({}), Some(b_ip))];
    // Once with what is known from before, once with nothing but what is listed.
    for (late, lost) in [("c", &["ipam.json"][..]), ("d", &["ipam.json", "cluster.json"])] {
        listed(&n1, vec![], shown());
        n1.detach("b");
        n1.stop();
        for name in lost {
            std::fs::remove_file(n1.folder.path().join(name)).unwrap();
        }
        n1.start();
        n1.list(Kind::Node, support::NODES.iter().map(|(n, ip, cidr)| node_object(n, ip, cidr)).collect());
        eventually("the pod CIDR is known", S(20), || n1.status().pod_cidr.is_some());
        listed(&n1, vec![], shown());
        n1.hand_over("a", &a);
        assert_eq!(n1.try_attach("a").unwrap().address, a_ip, "adopted");
        let (_new, ip) = n1.attach(late, json!({}));
        assert_ne!(ip, b_ip, "freed a moment ago, {lost:?} lost");
        n1.detach(late);
        // The Pod itself gets it back.
        let b = Netns::new();
        n1.hand_over("b", &b);
        assert_eq!(n1.try_attach("b").unwrap().address, b_ip);
    }
}
