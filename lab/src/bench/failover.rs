//! How long a death goes unrepaired: the leader's, and a node's with its Pods.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Bench,
    report::{Aim, Figure},
};
use crate::{
    Error, Result,
    backend::Backend,
    cluster::{Api, up},
    wait, workload,
};

const LIMIT: Duration = Duration::from_secs(120);
const NAME: &str = "survivor";
/// One a node.
const REPLICAS: usize = 5;

/// Kills the leader's node and writes until a write is acknowledged again.
pub(super) fn leader(bench: &mut Bench<'_>) -> Result<()> {
    let mut seconds = Vec::new();
    for round in 0..bench.failovers {
        bench.progress.now(&format!("leader killed, {} of {}", round + 1, bench.failovers));
        let leader = leader_of(bench.api)?;
        let begin = Instant::now();
        bench.lab.kill(&leader)?;
        wait::until("a write after the leader's death", LIMIT, || {
            let name = format!("failover{round}");
            let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": {} });
            bench.api.apply(&map).map_err(|e| e.to_string())
        })?;
        seconds.push(begin.elapsed().as_secs_f64());
        revive(bench, &leader)?;
    }
    add(bench, "leader killed to next write", &seconds, 1.5);
    Ok(())
}

/// Kills a node that runs one of five Pods: every second time the leader's.
pub(super) fn node(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let (mut plain, mut leading) = (Vec::new(), Vec::new());
    for round in 0..bench.failovers {
        bench.progress.now(&format!("node killed, {} of {}", round + 1, bench.failovers));
        let leader = leader_of(bench.api)?;
        let on_leader = round % 2 == 0;
        let victim = if on_leader { leader } else { other(bench, &leader)? };
        bench.api.apply(&deployment())?;
        wait::until("a Pod runs on the victim", LIMIT, || {
            let nodes = running_nodes(bench.api)?;
            if nodes.len() >= REPLICAS && nodes.contains(&victim) { Ok(()) } else { Err(format!("Pods on {nodes:?}")) }
        })?;
        let begin = Instant::now();
        bench.lab.kill(&victim)?;
        wait::until("as many Pods run on the others", LIMIT, || {
            let nodes = running_nodes(bench.api)?;
            let elsewhere = nodes.iter().filter(|n| **n != victim).count();
            if elsewhere >= REPLICAS { Ok(()) } else { Err(format!("Pods on {nodes:?}")) }
        })?;
        if on_leader { &mut leading } else { &mut plain }.push(begin.elapsed().as_secs_f64());
        revive(bench, &victim)?;
        bench.api.delete("Deployment", "default", NAME, Some(0))?;
        gone(bench.api)?;
    }
    add(bench, "node killed to replacement Running", &plain, 5.0);
    add(bench, "leader's node killed to replacement Running", &leading, 5.0);
    Ok(())
}

fn add(bench: &mut Bench<'_>, name: &str, seconds: &[f64], aim_max: f64) {
    bench.report.add(Figure::limit(
        format!("{name}, median of {}", seconds.len()),
        "s",
        seconds.to_vec(),
        Aim::AtMost(aim_max),
    ));
    bench.report.add(Figure::limit(format!("{name}, max"), "s", seconds.to_vec(), Aim::AtMost(aim_max)).at(1.0));
}

fn leader_of(api: &Api) -> Result<String> {
    wait::until("a leader", LIMIT, || {
        let status = api.status().map_err(|e| e.to_string())?;
        let leader = status.members.iter().find(|m| m.id == status.leader_id);
        leader.map(|m| m.name.clone()).ok_or_else(|| "no leader".to_owned())
    })
}

fn other(bench: &Bench<'_>, leader: &str) -> Result<String> {
    let other = bench.lab.topology().nodes.iter().rev().find(|n| n.name != leader);
    other.map(|n| n.name.clone()).ok_or_else(|| Error::Topology("one node only".to_owned()))
}

/// Spread by the scheduler, one Pod a node: whichever node is killed, one Pod is lost.
fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": NAME, "namespace": "default" },
        "spec": {
            "replicas": REPLICAS,
            "selector": { "matchLabels": { "app": NAME } },
            "template": {
                "metadata": { "labels": { "app": NAME } },
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{ "name": "web", "image": workload::web::IMAGE, "imagePullPolicy": "IfNotPresent" }],
                },
            },
        },
    })
}

/// The nodes of the Deployment's Pods that run and are not on their way out, a name a Pod.
fn running_nodes(api: &Api) -> std::result::Result<Vec<String>, String> {
    let pods = api.list("Pod", "default", &format!("app={NAME}")).map_err(|e| e.to_string())?;
    let live =
        pods.iter().filter(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null());
    Ok(live.filter_map(|p| p["spec"]["nodeName"].as_str().map(str::to_owned)).collect())
}

fn gone(api: &Api) -> Result<()> {
    wait::until("the Deployment's Pods are gone", LIMIT, || {
        let pods = api.list("Pod", "default", &format!("app={NAME}")).map_err(|e| e.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(format!("{} are left", pods.len())) }
    })
}

/// Powers the node on and waits until the cluster is whole again.
fn revive(bench: &Bench<'_>, node: &str) -> Result<()> {
    up::restart(bench.lab, bench.lab.layout(), node)?;
    let all: BTreeSet<String> = bench.lab.topology().nodes.iter().map(|n| n.name.clone()).collect();
    wait::until("all nodes Ready again", LIMIT, || {
        let ready: BTreeSet<String> = bench.api.ready_nodes().map_err(|e| e.to_string())?.into_iter().collect();
        let status = bench.api.status().map_err(|e| e.to_string())?;
        let caught_up = status.members.iter().all(|m| m.reachable());
        if ready == all && caught_up {
            Ok(())
        } else {
            Err(format!("Ready: {ready:?}, members caught up: {caught_up}"))
        }
    })?;
    thread::sleep(wait::PERIOD);
    Ok(())
}
