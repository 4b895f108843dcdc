//! Power cuts and partitions, and what the cluster makes of them.

use std::{collections::BTreeSet, time::Instant};

use serde_json::json;
use trellis_lab::{backend::Backend, wait, workload::web};

use crate::{
    cluster::{Cluster, LIMIT, Pod},
    harness::Outcome,
};

fn leader(cluster: &Cluster) -> String {
    let named = || {
        let status = cluster.api.status().map_err(|e| e.to_string())?;
        let leader = status.members.iter().find(|m| m.id == status.leader_id && m.reachable());
        leader.map(|m| m.name.clone()).ok_or_else(|| format!("{status:?}"))
    };
    wait::until("a leader", LIMIT, named).unwrap_or_else(|e| panic!("{e}"))
}

fn write(cluster: &Cluster, name: &str) -> Result<(), String> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
    cluster.api.apply(&map).map_err(|e| e.to_string())
}

fn uids(pods: &[Pod]) -> BTreeSet<&str> {
    pods.iter().map(|p| p.uid.as_str()).collect()
}

pub fn leader_dies(cluster: &mut Cluster) -> Outcome {
    write(cluster, "before").unwrap();
    let victim = leader(cluster);
    let begin = Instant::now();
    cluster.lab.kill(&victim).unwrap();
    wait::until("a write after the leader's death", LIMIT, || write(cluster, "after"))
        .unwrap_or_else(|e| panic!("{e}"));
    eprintln!("  writes again {:.2} s after the leader's power cut", begin.elapsed().as_secs_f64());
    assert!(cluster.api.get("ConfigMap", "default", "before").unwrap().is_some(), "an acknowledged write is there");
    assert_ne!(leader(cluster), victim);
    cluster.start(&victim);
    cluster.wait_all_nodes_ready();
    Outcome::Passed
}

pub fn partitioned(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 5).to_string());
    let before = cluster.wait_ready("default", "app=web", 5);
    cluster.lab.partition(&[vec!["n5".to_owned()]]).unwrap();
    let replaced = wait::until("a replacement for the Pod on n5", LIMIT, || {
        let pods: Vec<Pod> = cluster.ready_pods("default", "app=web").into_iter().filter(|p| p.node != "n5").collect();
        if pods.len() == 5 { Ok(pods) } else { Err(cluster.describe("default", "app=web")) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    let missing: Vec<_> = before.iter().filter(|p| p.node != "n5" && !replaced.contains(p)).collect();
    assert!(missing.is_empty(), "these were on the other side and are gone all the same: {missing:?}");
    let lost = before.iter().find(|p| p.node == "n5").unwrap();
    assert!(cluster.ask("n5", &lost.address, web::PORT).is_ok(), "on its own side of the partition it runs on");
    cluster.lab.heal().unwrap();
    cluster.wait_all_nodes_ready();
    let after = cluster.wait_ready("default", "app=web", 5);
    assert_eq!(uids(&after), uids(&replaced));
    wait::until_true("the end of the Pod left on n5", LIMIT, || cluster.ask("n5", &lost.address, web::PORT).is_err())
        .unwrap();
    Outcome::Passed
}

pub fn most_are_lost(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 5).to_string());
    let before = cluster.wait_ready("default", "app=web", 5);
    // Two members of three keep the quorum; three nodes of five are lost to them.
    cluster.lab.partition(&[vec!["n1".to_owned(), "n2".to_owned()]]).unwrap();
    wait::until("the loss being known", LIMIT, || {
        let ready = cluster.api.ready_nodes().map_err(|e| e.to_string())?;
        if ready == ["n1", "n2"] { Ok(()) } else { Err(format!("Ready: {ready:?}")) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    // Long enough that it would have been: an ordinary eviction takes less than three seconds.
    let evicted = wait::until_true("an eviction", std::time::Duration::from_secs(6), || {
        let pods = cluster.api.list("Pod", "default", "app=web").unwrap_or_default();
        pods.len() != 5 || pods.iter().any(|p| !p["metadata"]["deletionTimestamp"].is_null())
    });
    assert!(evicted.is_err(), "{}", cluster.describe("default", "app=web"));
    cluster.lab.heal().unwrap();
    cluster.wait_all_nodes_ready();
    let after = cluster.wait_ready("default", "app=web", 5);
    assert_eq!(uids(&after), uids(&before), "nobody was replaced");
    Outcome::Passed
}

pub fn wiped_member(cluster: &mut Cluster) -> Outcome {
    write(cluster, "before-wipe").unwrap();
    let lead = leader(cluster);
    let victim = cluster.lab.topology().control_planes().map(|n| n.name.clone()).find(|n| *n != lead).unwrap();
    cluster.lab.wipe(&victim).unwrap();
    write(cluster, "while-wiped").unwrap();
    cluster.start(&victim);
    cluster.wait_all_nodes_ready();
    let caught_up = || {
        let status = cluster.api.status().map_err(|e| e.to_string())?;
        let member = status.members.iter().find(|m| m.name == victim);
        // A learner becomes a voter only when it has caught up. Whichever member is asked tells
        // what the leader knows.
        let there = member.is_some_and(|m| m.reachable() && m.role == "follower" && m.matched_log_index() > 0);
        if there { Ok(()) } else { Err(format!("{:?}", status.members)) }
    };
    wait::until("the member's return as a voter", LIMIT, caught_up).unwrap_or_else(|e| panic!("{e}"));
    let status = cluster.api.status().unwrap();
    assert_eq!(status.members.len(), 3, "{:?}", status.members);
    // The others may fail now: it counts.
    let other = cluster.lab.topology().control_planes().map(|n| n.name.clone()).find(|n| *n != victim).unwrap();
    cluster.lab.kill(&other).unwrap();
    wait::until("a write with the wiped member's vote", LIMIT, || write(cluster, "with-its-vote"))
        .unwrap_or_else(|e| panic!("{e}"));
    cluster.start(&other);
    cluster.wait_all_nodes_ready();
    Outcome::Passed
}
