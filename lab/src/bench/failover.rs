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

/// Kills a node that runs the only Pod of a Deployment: every second time the leader's.
pub(super) fn node(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let (mut plain, mut leading) = (Vec::new(), Vec::new());
    for round in 0..bench.failovers {
        bench.progress.now(&format!("node killed, {} of {}", round + 1, bench.failovers));
        let leader = leader_of(bench.api)?;
        let on_leader = round % 2 == 0;
        let victim = if on_leader { leader } else { other(bench, &leader)? };
        bench.api.apply(&deployment(&victim))?;
        let old =
            wait::until("the Pod runs", LIMIT, || running(bench.api, |p| p["spec"]["nodeName"] == victim.as_str()))?;
        let begin = Instant::now();
        bench.lab.kill(&victim)?;
        wait::until("the replacement runs", LIMIT, || {
            running(bench.api, |p| p["metadata"]["uid"] != old["metadata"]["uid"])
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
    let max = seconds.iter().copied().fold(0.0, f64::max);
    bench.report.add(Figure::limit(
        format!("{name}, median of {}", seconds.len()),
        "s",
        seconds.to_vec(),
        Aim::AtMost(aim_max),
    ));
    bench.report.add(Figure::limit(format!("{name}, max"), "s", vec![max], Aim::AtMost(aim_max)));
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

/// Prefers the victim by a label that only weighs until it is dead: the first Pod is bound there
/// by name, its replacement goes wherever there is room.
fn deployment(victim: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": NAME, "namespace": "default" },
        "spec": {
            "replicas": 5,
            "selector": { "matchLabels": { "app": NAME } },
            "template": {
                "metadata": { "labels": { "app": NAME }, "annotations": { "bench.trellis/victim": victim } },
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{ "name": "web", "image": workload::web::IMAGE, "imagePullPolicy": "IfNotPresent" }],
                },
            },
        },
    })
}

/// A Pod that the test takes, once five of the Deployment run that are not on their way out.
fn running(api: &Api, wanted: impl Fn(&Value) -> bool) -> std::result::Result<Value, String> {
    let pods = api.list("Pod", "default", &format!("app={NAME}")).map_err(|e| e.to_string())?;
    let live: Vec<&Value> = pods
        .iter()
        .filter(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null())
        .collect();
    let ready = live.iter().find(|p| wanted(p));
    match ready {
        Some(pod) if live.len() >= 5 => Ok((*pod).clone()),
        _ => Err(format!("{} Pods run", live.len())),
    }
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
        let caught_up = status.members.iter().all(|m| m.reachable);
        if ready == all && caught_up {
            Ok(())
        } else {
            Err(format!("Ready: {ready:?}, members caught up: {caught_up}"))
        }
    })?;
    thread::sleep(wait::PERIOD);
    Ok(())
}
