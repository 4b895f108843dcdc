//! Daemons die; Pods do not notice.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::json;
use trellis_lab::{backend::Backend, wait, workload::web};

use super::wires::Verdicts;
use crate::{
    cluster::{Cluster, LIMIT, SILENCE},
    harness::Outcome,
};

const SIGKILL: i32 = 9;

fn ticker(node: &str) -> String {
    let script = "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.02; done";
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ticker", "labels": {"app": "ticker"}},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeName": node, "containers": [
            {"name": "c", "image": web::IMAGE, "command": ["sh", "-c", script]}]}})
    .to_string()
}

/// The numbers in the ticker's log.
fn ticks(cluster: &Cluster) -> Vec<u32> {
    let ran = cluster.trellis(&["logs", "ticker"]);
    ran.stdout.lines().filter_map(|l| l.strip_prefix("tick ")?.parse().ok()).collect()
}

pub fn die(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 5).to_string());
    let pods = cluster.wait_ready("default", "app=web", 5);
    let target = pods.iter().find(|p| p.node == "n4").unwrap().clone();
    cluster.apply("ticker.json", &ticker("n4"));
    cluster.wait_ready("default", "app=ticker", 1);
    let container = |c: &Cluster| {
        let pod = c.api.get("Pod", "default", "ticker").unwrap().unwrap();
        let status = &pod["status"]["containerStatuses"][0];
        (status["containerID"].to_string(), status["restartCount"].as_u64())
    };
    let before = container(cluster);

    // All the while, another node asks the Pod on n4.
    let (stop, failures, asked) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let asker = {
        let (stop, failures, asked) = (Arc::clone(&stop), Arc::clone(&failures), Arc::clone(&asked));
        let (lab, address) = (cluster.lab.clone(), target.address.clone());
        thread::spawn(move || {
            let address = std::net::SocketAddr::new(address.parse().unwrap(), web::PORT);
            while !stop.load(Ordering::Relaxed) {
                asked.fetch_add(1, Ordering::Relaxed);
                if let Err(e) = lab.http_get("n5", address, "/", SILENCE) {
                    eprintln!("  while daemons died: {e}");
                    failures.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(10));
            }
        })
    };
    for daemon in ["node-agent", "netd", "node-agent", "netd"] {
        let pid = |c: &Cluster| {
            let all = c.lab.daemons("n4").unwrap();
            all.into_iter().find(|d| d.name == daemon).and_then(|d| d.pid)
        };
        let old = pid(cluster);
        let seen = ticks(cluster).len();
        cluster.lab.signal_daemon("n4", daemon, SIGKILL).unwrap();
        wait::until_true("the daemon's return", LIMIT, || pid(cluster).is_some() && pid(cluster) != old).unwrap();
        wait::until_true("a growing log", LIMIT, || ticks(cluster).len() > seen + 20).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    asker.join().unwrap();
    let (failed, all) = (failures.load(Ordering::Relaxed), asked.load(Ordering::Relaxed));
    assert!(all > 20, "the positive control: {all} requests");
    assert_eq!(failed, 0, "of {all} requests");
    let seen = ticks(cluster);
    let expected: Vec<u32> = (1..=u32::try_from(seen.len()).unwrap()).collect();
    assert_eq!(seen, expected, "no line is missing or doubled");
    assert_eq!(container(cluster), before, "the container ran on");
    cluster.wait_all_nodes_ready();
    // What came about while the agent was away happens.
    cluster.trellis(&["delete", "pod", "ticker", "--wait=false"]).ok();
    wait::until_true("the ticker's end", LIMIT, || cluster.api.get("Pod", "default", "ticker").unwrap().is_none())
        .unwrap();
    Outcome::Passed
}

pub fn no_control_plane(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 5).to_string());
    let pods = cluster.wait_ready("default", "app=web", 5);
    let members: Vec<String> = cluster.lab.topology().control_planes().map(|n| n.name.clone()).collect();
    for member in &members {
        cluster.lab.stop_daemon(member, "control-plane").unwrap();
    }
    assert!(cluster.api.status().is_err(), "the control plane is gone");
    // A restarted netd and agent find everything again without it.
    cluster.lab.signal_daemon("n4", "netd", SIGKILL).unwrap();
    cluster.lab.signal_daemon("n4", "node-agent", SIGKILL).unwrap();
    for pod in &pods {
        for from in ["n1", "n4", "n5"] {
            wait::until(&format!("{} answers {from}", pod.name), LIMIT, || cluster.ask(from, &pod.address, web::PORT))
                .unwrap_or_else(|e| panic!("{e}"));
        }
    }
    // Who lives and who does not the nodes find out among themselves.
    let verdicts = Verdicts::from_now(cluster);
    cluster.lab.kill("n5").unwrap();
    wait::until("all others know of n5's death", LIMIT, || {
        let dead = verdicts.dead();
        let by: BTreeSet<&str> = dead.iter().filter(|(_, of)| of == "n5").map(|(by, _)| by.as_str()).collect();
        if by == BTreeSet::from(["n1", "n2", "n3", "n4"]) { Ok(()) } else { Err(format!("{dead:?}")) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert!(verdicts.dead().iter().all(|(_, of)| of == "n5"), "nobody else: {:?}", verdicts.dead());
    assert!(cluster.api.status().is_err(), "without the control plane, all the while");
    cluster.start("n5");
    for member in &members {
        let node = cluster.lab.topology().node(member).unwrap();
        trellis_lab::cluster::up::start_daemons(&cluster.lab, node).unwrap();
    }
    wait::until("the control plane's return", LIMIT, || cluster.api.status().map_err(|e| e.to_string()))
        .unwrap_or_else(|e| panic!("{e}"));
    cluster.wait_all_nodes_ready();
    let after: BTreeSet<String> = cluster.wait_ready("default", "app=web", 5).into_iter().map(|p| p.uid).collect();
    // Of the node that had lost its power the members may have heard before it was back.
    let replaced: Vec<_> = pods.iter().filter(|p| p.node != "n5" && !after.contains(&p.uid)).collect();
    assert!(replaced.is_empty(), "{replaced:?}");
    Outcome::Passed
}
