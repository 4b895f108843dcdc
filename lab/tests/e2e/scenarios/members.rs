//! The members of the control plane: who they are, who leaves, who returns, and what of that a
//! client notices.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use trellis_lab::{backend::Backend, wait};
use trellis_proto::client::Contexts;

use super::streams::{Running, lines_of};
use crate::{
    cluster::{Cluster, LIMIT, Ran, run},
    harness::Outcome,
};

/// Contexts that know these members only, in this order.
fn through(cluster: &Cluster, members: &[&str]) -> PathBuf {
    let mut only = Contexts::load(&cluster.lab.layout().contexts()).unwrap();
    for context in only.contexts.values_mut() {
        context.endpoints = members.iter().map(|m| cluster.lab.api_endpoint(m)).collect();
    }
    let file = cluster.folder().join(format!("through-{}.json", members.join("-")));
    only.store(&file).unwrap();
    file
}

fn trellis(cluster: &Cluster, members: &[&str], args: &[&str]) -> Ran {
    let mut command = Command::new(cluster.program("trellis"));
    run(command.args(args).env("TRELLIS_CONFIG", through(cluster, members)).stdin(Stdio::null()), LIMIT)
}

fn control_planes(cluster: &Cluster) -> Vec<String> {
    cluster.lab.topology().control_planes().map(|n| n.name.clone()).collect()
}

/// The leader that every one of these members names, with figures for all.
fn agreed_leader(cluster: &Cluster, members: &[String]) -> Result<String, String> {
    let mut leaders = Vec::new();
    for member in members {
        let ran = trellis(cluster, &[member], &["cluster", "members", "-o", "json"]);
        let told: serde_json::Value = serde_json::from_str(&ran.stdout).map_err(|e| format!("{e}: {ran:?}"))?;
        let all = told["members"].as_array().cloned().unwrap_or_default();
        if !all.iter().all(|m| m["matchedLogIndex"].as_u64() > Some(0)) {
            return Err(format!("{member} does not tell how far all are: {}", ran.stdout));
        }
        let leader = all.iter().find(|m| m["role"] == "leader" && m["id"] == told["leaderId"]);
        let leader = leader.and_then(|m| m["name"].as_str()).ok_or_else(|| format!("{member}: {}", ran.stdout))?;
        leaders.push(leader.to_owned());
    }
    leaders.dedup();
    match leaders.as_slice() {
        [one] => Ok(one.clone()),
        other => Err(format!("they name {other:?}")),
    }
}

pub fn removed_and_back(cluster: &mut Cluster) -> Outcome {
    let members = control_planes(cluster);
    let leader = wait::until("a leader that all name", LIMIT, || agreed_leader(cluster, &members))
        .unwrap_or_else(|e| panic!("{e}"));
    let victim = members.iter().find(|m| **m != leader).unwrap().clone();
    let rest: Vec<&str> = members.iter().filter(|m| **m != victim).map(String::as_str).collect();
    let refused = |ran: Ran, why: &str| {
        assert!(ran.code != 0 && ran.stderr.contains(why), "expected {why:?}: {ran:?}");
    };
    refused(cluster.trellis(&["cluster", "remove", "ghost"]), "there is no member \"ghost\"");
    refused(cluster.trellis(&["cluster", "add", "ghost"]), "no machine has joined as control-plane member \"ghost\"");
    let again = cluster.trellis(&["cluster", "add", &victim]);
    assert!(again.code == 0 && again.stderr.contains("is a member already"), "{again:?}");
    refused(cluster.trellis(&["cluster", "add", &victim, "--peer-address", "172.30.0.99:2380"]), "is a member already");

    // Through itself: whoever removes a member may well be connected to it.
    let removed = trellis(cluster, &[&victim], &["cluster", "remove", &victim]);
    assert!(removed.code == 0 && removed.stderr.contains("stop trellis-control-plane there"), "{removed:?}");
    assert!(!removed.stdout.contains(&victim), "{removed:?}");
    refused(trellis(cluster, &rest, &["cluster", "remove", &victim]), "there is no member");
    // Its daemon is told by nobody, and finds out.
    let log = cluster.lab.log(&victim, "control-plane");
    wait::until_true("the removed member says what to do", LIMIT, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.contains("this machine was removed from the control plane") && text.contains("trellis cluster join")
    })
    .unwrap();
    let stale = trellis(cluster, &[&victim], &["get", "nodes"]);
    assert_eq!(stale.code, 5, "it serves nothing: {stale:?}");
    trellis(cluster, &rest, &["get", "nodes"]).ok();
    assert_eq!(cluster.api.status().unwrap().members.len(), 2);

    // The machine is wiped, and joins as a new one.
    cluster.lab.wipe(&victim).unwrap();
    cluster.start(&victim);
    cluster.wait_all_nodes_ready();
    wait::until("three voters that all members tell of", LIMIT, || {
        let voters = cluster.api.status().map_err(|e| e.to_string())?.members;
        let there = voters.len() == 3 && voters.iter().all(|m| m.reachable() && m.role != "learner");
        if there { agreed_leader(cluster, &members) } else { Err(format!("{voters:?}")) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    Outcome::Passed
}

pub fn cut_off_leader(cluster: &mut Cluster) -> Outcome {
    let members = control_planes(cluster);
    let old = wait::until("a leader that all name", LIMIT, || agreed_leader(cluster, &members))
        .unwrap_or_else(|e| panic!("{e}"));
    let rest: Vec<String> = members.iter().filter(|m| **m != old).cloned().collect();
    cluster.lab.partition(&[vec![old.clone()]]).unwrap();
    // At once, and for as long as it lasts.
    let alone = || trellis(cluster, &[&old], &["cluster", "members"]);
    let elected = || {
        let told = alone();
        assert!(told.code == 0 && !told.stdout.contains("leader "), "{told:?}");
        assert!(told.stderr.contains("no leader was found"), "{told:?}");
        let status = trellis(cluster, &[&rest[0]], &["cluster", "status"]);
        let named = rest.iter().find(|m| status.stdout.contains(&format!("Leader:    {m} ")));
        named.cloned().ok_or_else(|| format!("{status:?}"))
    };
    let new = wait::until("a new leader", LIMIT, elected).unwrap_or_else(|e| panic!("{e}"));
    assert_ne!(new, old);
    let told = alone();
    assert!(told.stdout.lines().filter(|l| l.contains(" - ")).count() == 2, "of the others it knows nothing: {told:?}");
    // Who knows of the others as well asks on: the one that is cut off, though it answers, is not believed.
    let told = trellis(cluster, &[&old, &rest[0], &rest[1]], &["cluster", "members"]);
    assert!(told.stdout.contains("leader ") && told.stderr.is_empty(), "{told:?}");
    cluster.lab.heal().unwrap();
    cluster.wait_all_nodes_ready();
    wait::until("a leader that all name again", LIMIT, || agreed_leader(cluster, &members))
        .unwrap_or_else(|e| panic!("{e}"));
    Outcome::Passed
}

const TICKER: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"ticker","labels":{"app":"ticker"}},
"spec":{"terminationGracePeriodSeconds":0,"nodeName":"n4","containers":[{"name":"c","image":"trellis.local/demo/web:1",
"command":["sh","-c","i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done"]}]}}"#;

pub fn followed_log(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("ticker.json", TICKER);
    cluster.wait_ready("default", "app=ticker", 1);
    let mut command = Command::new(cluster.program("trellis"));
    let command = command.args(["logs", "-f", "ticker"]).env("TRELLIS_CONFIG", through(cluster, &["n2", "n3", "n1"]));
    let mut following = Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(following.0.stdout.take().unwrap());
    let mut last = 0;
    let mut until = |count: u64| {
        while last < count {
            let line = lines.recv_timeout(LIMIT).unwrap_or_else(|e| panic!("after tick {last}: {e}"));
            let tick: u64 =
                line.strip_prefix("tick ").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
            assert_eq!(tick, last + 1, "a line was lost or came twice");
            last = tick;
        }
        last
    };
    let seen = until(20);
    cluster.lab.kill("n2").unwrap();
    // More than what may have been on its way: these came through another member.
    let seen = until(seen + 100);
    cluster.start("n2");
    cluster.wait_all_nodes_ready();
    until(seen + 20);
    Outcome::Passed
}
