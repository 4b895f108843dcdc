#![allow(clippy::unwrap_used)]
use super::*;
use serde_json::json;
use trellis_gossip::{MemberView, NodeIdentity};

fn node(name: &str, cidr: &str, ip: &str, ready: &str) -> Incoming {
    let json = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    });
    Incoming { namespace: String::new(), name: name.into(), json: serde_json::to_vec(&json).unwrap() }
}

fn member(name: &str, cidr: &str, ip: &str, liveness: Liveness) -> MemberView {
    MemberView {
        identity: NodeIdentity {
            name: name.into(),
            address: format!("{ip}:7946").parse().unwrap(),
            pod_cidr: Some(cidr.parse().unwrap()),
            version: String::new(),
            epoch: 1,
            api_addresses: Vec::new(),
        },
        liveness,
        incarnation: 1,
    }
}

fn routes(cluster: &Cluster, members: Vec<MemberView>, fresh: bool) -> Vec<String> {
    let view = View { members, healthy: true };
    cluster
        .node_routes("n1", &view, fresh)
        .into_iter()
        .map(|(cidr, hop)| match hop {
            Hop::Node(ip) => format!("{cidr} via {ip}"),
            Hop::Nowhere => format!("{cidr} unreachable"),
            Hop::Interface(name) => format!("{cidr} dev {name}"),
        })
        .collect()
}

fn two_nodes() -> Cluster {
    let mut cluster = Cluster::default();
    let objects =
        [node("n1", "10.244.1.0/24", "172.30.0.11", "True"), node("n2", "10.244.2.0/24", "172.30.0.12", "True")];
    assert!(cluster.reset(Kind::Node, 5, &objects).is_empty());
    cluster
}

#[test]
fn routes_follow_api_and_liveness() {
    let cluster = two_nodes();
    let alive = || member("n2", "10.244.2.0/24", "172.30.0.12", Liveness::Alive);
    let dead = || member("n2", "10.244.2.0/24", "172.30.0.12", Liveness::Dead);
    assert_eq!(routes(&cluster, vec![], true), ["10.244.2.0/24 via 172.30.0.12"]);
    assert_eq!(routes(&cluster, vec![alive()], true), ["10.244.2.0/24 via 172.30.0.12"]);
    assert_eq!(
        routes(&cluster, vec![dead()], true),
        ["10.244.2.0/24 via 172.30.0.12"],
        "dead by gossip, alive by lease: netd may be restarting"
    );
    assert_eq!(routes(&cluster, vec![dead()], false), ["10.244.2.0/24 unreachable"], "gossip alone decides");
    let mut unready = two_nodes();
    unready.upsert(Kind::Node, &node("n2", "10.244.2.0/24", "172.30.0.12", "Unknown")).unwrap();
    assert_eq!(routes(&unready, vec![dead()], true), ["10.244.2.0/24 unreachable"]);
    assert_eq!(routes(&unready, vec![alive()], true), ["10.244.2.0/24 via 172.30.0.12"]);
}

#[test]
fn gossip_never_contradicts_the_api() {
    let cluster = two_nodes();
    let liar = member("n2", "10.244.9.0/24", "172.30.0.99", Liveness::Alive);
    assert_eq!(routes(&cluster, vec![liar], false), ["10.244.2.0/24 via 172.30.0.12"]);
    let thief = member("n9", "10.244.2.0/25", "172.30.0.99", Liveness::Alive);
    assert_eq!(routes(&cluster, vec![thief], false), ["10.244.2.0/24 via 172.30.0.12"]);
    let of_us = member("n9", "10.244.1.0/24", "172.30.0.99", Liveness::Alive);
    assert_eq!(routes(&cluster, vec![of_us], false), ["10.244.2.0/24 via 172.30.0.12"]);
    // Who is no Node has no route, whatever network it claims and whatever it calls itself.
    for cidr in ["10.244.3.0/24", "192.168.1.0/24", "8.8.8.8/32", "0.0.0.0/0", "172.30.0.0/25"] {
        for name in ["n3", "zz"] {
            let claimant = member(name, cidr, "172.30.0.13", Liveness::Alive);
            assert_eq!(routes(&cluster, vec![claimant], false), ["10.244.2.0/24 via 172.30.0.12"], "{cidr}");
        }
    }
    // The positive control: the API shows it.
    let mut known = two_nodes();
    known.upsert(Kind::Node, &node("n3", "10.244.3.0/24", "172.30.0.13", "True")).unwrap();
    assert_eq!(routes(&known, vec![], false), ["10.244.2.0/24 via 172.30.0.12", "10.244.3.0/24 via 172.30.0.13"]);
}

#[test]
fn only_what_is_new_is_stored_again() {
    let mut cluster = two_nodes();
    let mut before = cluster.changes();
    let mut changes = |cluster: &Cluster| std::mem::replace(&mut before, cluster.changes()) != cluster.changes();
    cluster.upsert(Kind::Node, &node("n2", "10.244.2.0/24", "172.30.0.12", "True")).unwrap();
    cluster.seen(77);
    assert!(!changes(&cluster), "a heartbeat, a bookmark");
    cluster.upsert(Kind::Node, &node("n2", "10.244.2.0/24", "172.30.0.12", "False")).unwrap();
    assert!(changes(&cluster));
    cluster.remove(Kind::Node, &node("n2", "10.244.2.0/24", "172.30.0.12", "False")).unwrap();
    assert!(changes(&cluster));
}

#[test]
fn nothing_is_known_before_every_kind_is_listed() {
    let mut cluster = two_nodes();
    cluster.seen(7);
    assert!(!cluster.is_complete());
    assert_eq!(cluster.revision(), 0, "what was never listed cannot be known by what comes after");
    for kind in [Kind::Namespace, Kind::NetworkPolicy, Kind::Pod] {
        assert!(cluster.reset(kind, 9, &[]).is_empty());
    }
    assert!(cluster.is_complete());
    assert_eq!(cluster.revision(), 7, "the Nodes are known up to there");
    cluster.seen(40);
    assert_eq!(cluster.revision(), 40);
    cluster.seen(12);
    assert_eq!(cluster.revision(), 40, "never back");
}

#[test]
fn survives_the_disk() {
    let mut cluster = two_nodes();
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": "default"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    });
    let object =
        Incoming { namespace: "default".into(), name: "deny".into(), json: serde_json::to_vec(&policy).unwrap() };
    cluster.upsert(Kind::NetworkPolicy, &object).unwrap();
    let mut read: Cluster = serde_json::from_str(&serde_json::to_string(&cluster).unwrap()).unwrap();
    assert!(read.restored().is_empty());
    assert_eq!(read.policies(), cluster.policies());
    assert_eq!(read.nodes, cluster.nodes);
    assert!(!read.is_complete());
    for kind in Kind::ALL {
        read.reset(kind, 9, &[]);
    }
    assert!(read.is_complete());
    assert_eq!(read.revision(), 9);
}
