//! Engines that end and begin again: what they find, keep, and leave alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{os::fd::AsFd, time::Duration};

use serde_json::json;
use support::{TestNode, cannot_run, eventually, node_object, pod_object, policy_object, round_trip};
use trellis_netd::cluster::Kind;
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
