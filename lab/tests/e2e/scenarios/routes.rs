//! A node whose address is not of the others' subnet, and where one is told of it.

use serde_json::Value;
use std::collections::BTreeMap;

use trellis_lab::{backend::Backend, cluster::api::condition, wait};

use crate::{
    cluster::{Cluster, LIMIT},
    harness::Outcome,
};

const NODE: &str = "n5";
const TAINT: &str = "node.kubernetes.io/network-unavailable";

fn node(cluster: &Cluster, name: &str) -> Value {
    cluster.api.get("Node", "", name).unwrap().unwrap()
}

fn said(node: &Value) -> Value {
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["type"] == "NetworkUnavailable").unwrap_or_default()
}

fn is_tainted(node: &Value) -> bool {
    node["spec"]["taints"].as_array().into_iter().flatten().any(|t| t["key"] == TAINT)
}

/// From one prefix length to another; members of the control plane stay in reach.
fn renumber(cluster: &Cluster, from: u8, to: u8) {
    let address = cluster.lab.topology().node(NODE).unwrap().address;
    let subnet = cluster.lab.topology().subnet;
    let script = format!(
        "dev=$(ip -o -4 addr show | awk '$4 == \"{address}/{from}\" {{ print $2 }}'); set -e\n\
         ip addr add {address}/{to} dev $dev; ip addr del {address}/{from} dev $dev\n\
         ip route replace {subnet} dev $dev src {address}"
    );
    let ran = cluster.lab.run(NODE, &["/bin/bash", "-c", &script], &BTreeMap::new()).unwrap();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

pub fn another_subnet(cluster: &mut Cluster) -> Outcome {
    assert!(!is_tainted(&node(cluster, NODE)), "the positive control");
    let prefix = cluster.lab.topology().subnet.prefix();
    renumber(cluster, prefix, 32);
    let told = wait::until("the condition of a node that no other is reached from", LIMIT, || {
        let now = node(cluster, NODE);
        let unavailable = condition(&now, "NetworkUnavailable") == Some("True");
        if unavailable && is_tainted(&now) { Ok(said(&now)) } else { Err(format!("{}", now["status"]["conditions"])) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let message = told["message"].as_str().unwrap();
    assert_eq!(told["reason"], "NoRouteCreated");
    for other in cluster.lab.topology().nodes.iter().filter(|n| n.name != NODE) {
        assert!(message.contains(&format!("{} ({})", other.name, other.address)), "{message}");
        assert!(!is_tainted(&node(cluster, &other.name)), "{} is well", other.name);
    }
    let described = || {
        let text = cluster.trellis(&["describe", "node", NODE]).ok();
        let told = text.contains("FailedToCreateRoute") && text.contains("NoRouteCreated");
        if told { Ok(()) } else { Err(text) }
    };
    wait::until("the Event, where one looks", LIMIT, described).unwrap_or_else(|e| panic!("{e}"));
    renumber(cluster, 32, prefix);
    wait::until("its return", LIMIT, || {
        let now = node(cluster, NODE);
        let back = said(&now)["reason"] == "RouteCreated" && condition(&now, "NetworkUnavailable") == Some("False");
        if back && !is_tainted(&now) { Ok(()) } else { Err(format!("{}", now["status"]["conditions"])) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    Outcome::Passed
}
