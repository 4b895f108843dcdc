//! The lab's own verbs, through its program.

use serde_json::Value;
use trellis_lab::wait;

use crate::{
    cluster::{Cluster, LIMIT, lab_command, run},
    harness::Outcome,
};

/// What `status -o json` says of a node.
fn node(cluster: &Cluster, name: &str) -> Value {
    let status: Value = serde_json::from_str(&cluster.lab_command(&["status", "-o", "json"]).ok()).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|n| n["name"] == name).unwrap_or_else(|| panic!("no {name}: {status}")).clone()
}

/// Waits until `status` says of a node what is wanted.
#[track_caller]
fn awaits(cluster: &Cluster, name: &str, power: &str, ready: &str) {
    let waited = wait::until(&format!("{name} {power}, Ready {ready}"), LIMIT, || {
        let node = node(cluster, name);
        if node["power"] == power && node["ready"] == ready { Ok(()) } else { Err(node.to_string()) }
    });
    waited.unwrap_or_else(|e| panic!("{e}"));
}

pub fn through_the_program(cluster: &mut Cluster) -> Outcome {
    cluster.wait_all_nodes_ready();
    let status: Value = serde_json::from_str(&cluster.lab_command(&["status", "-o", "json"]).ok()).unwrap();
    assert_eq!(status["lab"], cluster.name.as_str());
    assert_eq!(status["context"], format!("lab-{}", cluster.name));
    assert!(status["leader"].as_str().is_some_and(|l| ["n1", "n2", "n3"].contains(&l)), "{status}");
    for (i, node) in status["nodes"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&node["power"], &node["ready"]), (&"on".into(), &"True".into()), "{node}");
        assert_eq!(node["control_plane"], i < 3, "{node}");
        assert_eq!(node["address"], format!("172.30.0.{}", 11 + i), "{node}");
        let daemons: Vec<&str> =
            node["daemons"].as_array().unwrap().iter().filter_map(|d| d["name"].as_str()).collect();
        let wanted: &[&str] = if i < 3 { &["netd", "control-plane", "node-agent"] } else { &["netd", "node-agent"] };
        assert!(daemons.len() >= wanted.len() && wanted.iter().all(|d| daemons.contains(d)), "{node}");
    }
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(5), "{status}");
    let table = cluster.lab_command(&["status"]).ok();
    assert!(table.contains("NODE ") && table.lines().filter(|l| l.contains(" on ")).count() == 5, "{table}");

    for daemon in ["netd", "node-agent", "init"] {
        let ran = cluster.lab_command(&["logs", "n5", daemon]);
        let log = std::fs::read_to_string(trellis_lab::backend::Backend::log(&cluster.lab, "n5", daemon)).unwrap();
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(log.starts_with(&ran.stdout) && (daemon == "init" || !ran.stdout.is_empty()), "{daemon}: {ran:?}");
    }
    for args in [&["logs", "n5", "nonsense"][..], &["logs", "n9", "netd"], &["kill", "n9"]] {
        let ran = cluster.lab_command(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(args[1]) || ran.stderr.contains(args[2]), "{args:?}: {ran:?}");
    }

    cluster.lab_command(&["pause", "n5"]).ok();
    assert_eq!(node(cluster, "n5")["power"], "paused");
    assert_eq!(node(cluster, "n5")["daemons"], Value::Array(Vec::new()), "who stands still does not answer");
    cluster.lab_command(&["resume", "n5"]).ok();
    awaits(cluster, "n5", "on", "True");
    cluster.lab_command(&["kill", "n5"]).ok();
    assert_eq!(node(cluster, "n5")["power"], "off");
    let paused = cluster.lab_command(&["pause", "n5"]);
    assert_eq!(paused.code, 1, "{paused:?}");
    assert!(paused.stderr.contains("trellis-lab start n5"), "{paused:?}");
    awaits(cluster, "n5", "off", "Unknown");
    let data = cluster.lab.layout().node("n5").path("data");
    let written = || std::fs::read_dir(&data).unwrap().count();
    assert!(written() > 0, "its disk outlives a power cut");
    cluster.lab_command(&["start", "n5"]).ok();
    awaits(cluster, "n5", "on", "True");
    cluster.lab_command(&["wipe", "n5"]).ok();
    assert_eq!((node(cluster, "n5")["power"].as_str(), written()), (Some("off"), 0), "its disk is empty");
    cluster.lab_command(&["start", "n5"]).ok();
    awaits(cluster, "n5", "on", "True");
    assert!(written() > 0, "it joined anew");
    cluster.wait_all_nodes_ready();
    Outcome::Passed
}

/// What `demo` tells after the power cut, in this order.
const TOLD: [&str; 5] = ["suspected: ", "known: ", "rebound: ", "running: ", "answering: "];

pub fn demo(cluster: &mut Cluster) -> Outcome {
    let ran = run(lab_command(&cluster.name, cluster.folder()).arg("demo"), LIMIT * 3);
    let said = ran.ok();
    let (before, after) = said.split_once(" loses its power").unwrap_or_else(|| panic!("nobody was killed: {said}"));
    let victim = before.rsplit(' ').next().unwrap();
    assert_eq!(before.matches(" asks ").count(), 3, "each Pod was asked: {said}");
    assert!(after.contains(&format!("$ trellis-lab kill {victim}\n")), "{said}");
    assert_eq!(node(cluster, victim)["power"], "off", "{said}");
    // A line of the timeline begins with when it was.
    let timed = |line: &str| {
        let (seconds, what) = line.trim_start().split_once(" s  ")?;
        seconds.parse::<f64>().ok().map(|_| what.to_owned())
    };
    let events: Vec<String> = after.lines().filter_map(timed).collect();
    let first = |what: &str| {
        let at = events.iter().position(|e| e.starts_with(what));
        at.unwrap_or_else(|| panic!("nothing was {what:?}: {said}"))
    };
    let order: Vec<usize> = TOLD.iter().map(|what| first(what)).collect();
    assert!(order.is_sorted(), "{order:?}: {said}");
    first("known to all 4 others");
    let agreed = &events[first("the control plane agrees: ")];
    assert!(agreed.contains(&format!("{victim} is ")), "{agreed}");
    let elsewhere = |what: &str| events.iter().filter(|e| e.starts_with(what)).all(|e| !e.ends_with(victim));
    assert!(elsewhere("rebound: ") && elsewhere("running: "), "{said}");
    let answers = events.iter().filter(|e| e.starts_with("answering: pod ")).count();
    let ready = events.iter().filter(|e| e.starts_with("running: ")).count();
    assert_eq!(answers, ready, "each new Pod answers: {said}");
    Outcome::Passed
}
