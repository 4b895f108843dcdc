//! Agents and shims that are killed, and what outlives them.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use common::{Node, USR1_IMAGE, container, control_plane::key, gone, kill, running};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_misses_no_exit_code_and_disturbs_nothing() {
    let Some(mut node) = Node::start("killed").await else { return };
    node.import_busybox().await;
    let uid = node.api.bind("on", json!({"restartPolicy": "Never", "containers": [
        container("stays", "while :; do echo tick; sleep 0.1; done"), container("ends", "sleep 1.5; echo bye; exit 42")]}));
    let mut calm = container("a", "exec sleep 600");
    calm["readinessProbe"] = json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 2, "periodSeconds": 600});
    let calm_uid = node.api.bind("calm", json!({"containers": [calm]}));
    let mut usr1 = container("a", "trap 'exit 0' USR1; while :; do sleep 0.1; done");
    usr1["image"] = json!(USR1_IMAGE);
    let usr1_uid = node.api.bind("usr1", json!({"containers": [usr1]}));
    node.api.until("usr1", "running", running).await;
    let before = node.api.until("on", "running", running).await;
    node.api.until("calm", "running", running).await;
    let calm_before = node.api.history("calm").len();
    node.kill_agent();
    // As if netd had not acknowledged it: what follows is seen to be over.
    node.netd.pods.lock().unwrap().get_mut(&calm_uid).unwrap().1 = false;
    // It ends while nobody looks: seen by its log's end, not by the agent.
    let log = node.data().join("pods").join(&uid).join("logs/ends/0.log");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("bye") {
        assert!(Instant::now() < deadline, "it never ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.start_agent();
    let after = node
        .api
        .until("on", "aware of the exit", |p| {
            p["status"]["containerStatuses"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["state"]["terminated"]["exitCode"] == 42)
        })
        .await;
    let id = |pod: &Value, name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().unwrap().clone();
        all.into_iter().find(|c| c["name"] == name).unwrap()["containerID"].clone()
    };
    assert_eq!(id(&before, "stays"), id(&after, "stays"));
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    node.api.until("calm", "attached again", |_| node.netd.pods.lock().unwrap()[&calm_uid].1).await;
    for state in &node.api.history("calm")[calm_before - 1..] {
        assert!(running(state), "it was not ready for a while: {:#}", state["status"]);
    }
    node.kill_agent();
    node.api.remove(&key("Pod", "on"));
    node.start_agent();
    gone(&node, "on", &uid).await;
    node.api.terminate("calm", 0);
    gone(&node, "calm", &calm_uid).await;
    // Its image's signal is known to an agent that did not start it: SIGTERM would be in vain for longer
    // than is waited here.
    node.api.terminate("usr1", 600);
    gone(&node, "usr1", &usr1_uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_only_a_dead_shim_had_seen_is_told() {
    let Some(mut node) = Node::start("lastwords").await else { return };
    node.import_busybox().await;
    let script = "while [ ! -e /go/now ]; do sleep 0.05; done; echo last words > /dev/termination-log; exit 42";
    let mut ends = container("ends", script);
    ends["volumeMounts"] = json!([{"name": "go", "mountPath": "/go"}]);
    let uid = node.api.bind(
        "alone",
        json!({"restartPolicy": "Never", "containers": [ends, container("stays", "exec sleep 600")],
            "volumes": [{"name": "go", "emptyDir": {}}]}),
    );
    node.api.until("alone", "running", running).await;
    let shim = node.shim_pid(&uid);
    node.kill_agent();
    std::fs::write(node.data().join("pods").join(&uid).join("volumes/go/now"), "").unwrap();
    let state = node.run().join("shims").join(&uid).join("state.json");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&state).unwrap().contains("\"code\":42") {
        assert!(Instant::now() < deadline, "the shim has not written it down");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kill(shim);
    node.start_agent();
    let pod = node.api.until("alone", "failed", |p| p["status"]["phase"] == "Failed").await;
    let ended = |name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().unwrap().clone();
        all.into_iter().find(|c| c["name"] == name).unwrap()["state"]["terminated"].clone()
    };
    assert_eq!((&ended("ends")["exitCode"], &ended("ends")["message"]), (&json!(42), &json!("last words\n")));
    assert!(ended("ends")["containerID"].is_string() && ended("ends")["startedAt"].is_string(), "{pod:#}");
    assert_eq!(ended("stays")["reason"], "ContainerStatusUnknown");
    node.api.terminate("alone", 0);
    gone(&node, "alone", &uid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_asked_to_end_leaves_its_pods_alone() {
    let Some(mut node) = Node::start("asked").await else { return };
    node.import_busybox().await;
    let uid =
        node.api.bind("asked", json!({"containers": [container("a", "while :; do echo tick; sleep 0.05; done")]}));
    let before = node.api.until("asked", "running", running).await;
    let shim = node.shim_pid(&uid);
    node.ask_agent_to_end();
    let log = node.data().join("pods").join(&uid).join("logs/a/0.log");
    let length = || std::fs::metadata(&log).unwrap().len();
    let (then, deadline) = (length(), Instant::now() + Duration::from_secs(10));
    while length() == then {
        assert!(Instant::now() < deadline, "it does not run on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let states = node.api.history("asked").len();
    node.start_agent();
    let adopted = |_: &Value| node.agent_log().contains("adopted");
    node.api.until("asked", "adopted", adopted).await;
    node.api.until("asked", "running", running).await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    for state in &node.api.history("asked")[states - 1..] {
        assert_eq!((id(state), &state["status"]["phase"]), (id(&before), &json!("Running")), "{:#}", state["status"]);
    }
    assert_eq!(node.shim_pid(&uid), shim);
    node.api.terminate("asked", 0);
    gone(&node, "asked", &uid).await;
}

/// Figures that look random and are the same in every run (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Pods of different kinds: with volumes in memory and on disk, with an init container, soon over.
fn some_pod(kind: u64) -> Value {
    match kind {
        0 => json!({"containers": [container("a", "exec sleep 600"), container("b", "sleep 0.2; exit 1")]}),
        1 => json!({"restartPolicy": "Never", "containers": [container("a", "sleep 0.3; exit 3")]}),
        2 => json!({"restartPolicy": "OnFailure", "initContainers": [container("i", "sleep 0.2")],
            "containers": [container("a", "trap 'exit 0' TERM; while :; do sleep 0.1; done")]}),
        _ => {
            let mut c = container("a", "exec sleep 600");
            c["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}, {"name": "m", "mountPath": "/m"},
                {"name": "d", "mountPath": "/d"}]);
            json!({"containers": [c], "volumes": [{"name": "s", "secret": {"secretName": "s"}},
                {"name": "m", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]})
        }
    }
}

/// Whatever was killed when: after a Pod is gone nothing of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_pods_whatever_was_killed_when() {
    const KILLS: u32 = 20;
    const PODS_AT_ONCE: usize = 5;
    let Some(mut node) = Node::start("churn").await else { return };
    node.import_busybox().await;
    let secret = json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"k": "czNjcmV0"}});
    node.api.put(&key("Secret", "s"), secret);
    let mut dice = Dice(0x7e11_15c0_ffee);
    let (mut all, mut killed, began) = (Vec::new(), (0, 0), Instant::now());
    while killed.0 + killed.1 < KILLS && began.elapsed() < Duration::from_secs(60) {
        let there: Vec<(String, String)> = all
            .iter()
            .filter(|(name, _): &&(String, String)| node.api.get(&key("Pod", name)).is_some())
            .cloned()
            .collect();
        let one = |dice: &mut Dice| there.get(dice.below(there.len().max(1) as u64) as usize).cloned();
        match dice.below(8) {
            0..3 if there.len() < PODS_AT_ONCE => {
                let name = format!("c{:03}", all.len());
                let uid = node.api.bind(&name, some_pod(dice.below(4)));
                all.push((name, uid));
            }
            0..4 => {
                if let Some((name, _)) = one(&mut dice) {
                    node.api.try_terminate(&name, i64::try_from(dice.below(2)).unwrap());
                }
            }
            4 => drop(one(&mut dice).and_then(|(name, _)| node.api.remove(&key("Pod", &name)))),
            5 => {
                node.kill_agent();
                tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
                node.start_agent();
                killed.0 += 1;
            }
            _ => {
                if let Some(pid) = one(&mut dice).and_then(|(_, uid)| node.try_shim_pid(&uid)) {
                    kill(pid);
                    killed.1 += 1;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(dice.below(250))).await;
    }
    eprintln!("{} Pods, {killed:?} agents and shims killed in {:?}", all.len(), began.elapsed());
    assert!(killed.0 >= 3 && killed.1 >= 3 && all.len() >= 8, "{killed:?}, {} Pods: hardly a churn", all.len());
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let mut left = Vec::new();
        for (name, uid) in &all {
            if let Some(pod) = node.api.get(&key("Pod", name)) {
                left.push(format!("object {name}"));
                if pod["metadata"]["deletionTimestamp"].is_null() {
                    node.api.try_terminate(name, 1);
                }
            }
            left.extend(node.traces(uid));
        }
        left.extend(node.held_namespaces());
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "left: {left:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
