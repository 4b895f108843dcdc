//! What people read when a container does not run, and what probes and the node's network do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trellis_lab::{backend::Backend, wait, workload::web};

use crate::{
    cluster::{Cluster, LIMIT},
    harness::Outcome,
};

fn pod(name: &str, container: Value) -> Value {
    let mut c = json!({"name": "c", "image": web::IMAGE});
    c.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "restartPolicy": "Never", "containers": [c]}})
}

/// The Pod once `holds` is true of it.
#[track_caller]
fn until(cluster: &Cluster, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let found = wait::until(&format!("{name} {what}"), LIMIT, || {
        let pod = cluster.api.get("Pod", "default", name).map_err(|e| e.to_string())?.unwrap_or_default();
        if holds(&pod) { Ok(pod) } else { Err(pod["status"].to_string()) }
    });
    found.unwrap_or_else(|e| panic!("{e}"))
}

fn state(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]
}

pub fn reasons(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("missing.json", &pod("missing", json!({"command": ["nothing", "here"]})).to_string());
    cluster.apply("ends.json", &pod("ends", json!({"command": ["sh", "-c", "sleep 1; exit 3"]})).to_string());
    let waits = json!({"command": ["sleep", "1000"], "envFrom": [{"configMapRef": {"name": "late"}}]});
    cluster.apply("waits.json", &pod("waits", waits).to_string());
    cluster.apply("runs.json", &pod("runs", json!({"command": ["sleep", "1000"]})).to_string());

    let failed = until(cluster, "missing", "failed", |p| p["status"]["phase"] == "Failed");
    let ended = &state(&failed)["terminated"];
    assert_eq!(ended["reason"], "StartError", "{ended}");
    assert_eq!(ended["exitCode"], 128, "{ended}");
    assert_eq!(ended["message"], "exec: \"nothing\": executable file not found in $PATH");

    let finished = until(cluster, "ends", "failed", |p| p["status"]["phase"] == "Failed");
    until(cluster, "ends", "cleaned up", |p| {
        let conditions = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "PodReadyToStartContainers" && c["status"] == "False")
    });
    let after = cluster.api.get("Pod", "default", "ends").unwrap().unwrap();
    assert!(after["status"]["podIP"].is_string(), "a finished Pod shows the address it had: {}", after["status"]);
    assert_eq!(after["status"]["podIP"], finished["status"]["podIP"]);
    assert_eq!(after["status"]["podIPs"][0]["ip"], after["status"]["podIP"]);
    let said = cluster.trellis(&["exec", "ends", "--", "true"]);
    assert!(said.code != 0 && said.stderr.contains("terminated (Error, exit code 3)"), "{said:?}");
    assert!(!said.stderr.contains("Internal"), "{said:?}");

    // While its ConfigMap is missing, the reason never changes, however often it is tried again.
    let reason = |p: &Value| state(p)["waiting"]["reason"].as_str().unwrap_or_default().to_owned();
    let pod_of = |name: &str| cluster.api.get("Pod", "default", name).unwrap().unwrap();
    until(cluster, "waits", "in CreateContainerConfigError", |p| reason(p) == "CreateContainerConfigError");
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) {
        let now = pod_of("waits");
        assert_eq!(reason(&now), "CreateContainerConfigError", "{}", now["status"]);
        assert_eq!(state(&now)["waiting"]["message"], "configmap \"late\" not found");
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = cluster.trellis(&["exec", "waits", "--", "true"]);
    assert!(said.code != 0 && said.stderr.contains("waiting (CreateContainerConfigError)"), "{said:?}");
    let late = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": {"A": "b"}});
    cluster.apply("late.json", &late.to_string());
    until(cluster, "waits", "running", |p| !state(p)["running"].is_null());

    let said = cluster.trellis(&["exec", "runs", "--", "nothing", "here"]);
    assert_eq!(said.code, 127, "{said:?}");
    assert!(said.stderr.contains("exec: \"nothing\": executable file not found in $PATH"), "{said:?}");
    let said = cluster.trellis(&["exec", "runs", "--", "/etc/passwd"]);
    assert_eq!(said.code, 126, "{said:?}");
    assert_eq!(cluster.trellis(&["exec", "runs", "--", "sh", "-c", "exit 5"]).code, 5);
    cluster.trellis(&["delete", "configmap/late"]).ok();
    Outcome::Passed
}

pub fn probes(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    let quick = |mut probe: Value| {
        probe["periodSeconds"] = json!(1);
        probe["failureThreshold"] = json!(1);
        probe
    };
    let mut probed = pod(
        "probed",
        json!({
            "command": ["sh", "-c", "echo up > /www/index.html; httpd -p 8080 -h /www; while :; do sleep 1; done"],
            "startupProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 30},
            "readinessProbe": quick(json!({"exec": {"command": ["ls", "/tmp/ready"]}})),
            "livenessProbe": quick(json!({"tcpSocket": {"port": 8080}})),
        }),
    );
    probed["spec"]["restartPolicy"] = json!("Always");
    let mut sick = pod(
        "sick",
        json!({
            "command": ["sleep", "1000"],
            "livenessProbe": quick(json!({"exec": {"command": ["sh", "-c", "test ! -e /tmp/bad"]}})),
        }),
    );
    sick["spec"]["restartPolicy"] = json!("Always");
    cluster.apply("probed.json", &probed.to_string());
    cluster.apply("sick.json", &sick.to_string());
    let status = |p: &Value| p["status"]["containerStatuses"][0].clone();
    let ready = |p: &Value| status(p)["ready"] == true;
    let touch = |pod: &str, script: &str| cluster.trellis(&["exec", pod, "--", "sh", "-c", script]).ok();
    let started = until(cluster, "probed", "started", |p| status(p)["started"] == true);
    assert!(!ready(&started), "{}", started["status"]);
    touch("probed", "touch /tmp/ready");
    until(cluster, "probed", "ready", ready);
    touch("probed", "busybox rm /tmp/ready");
    let unready = until(cluster, "probed", "not ready", |p| !ready(p));
    assert_eq!(status(&unready)["restartCount"], 0, "an unready container is not restarted");
    touch("probed", "busybox killall httpd");
    until(cluster, "probed", "restarted", |p| status(p)["restartCount"] == 1 && status(p)["started"] == true);
    until(cluster, "sick", "running", ready);
    touch("sick", "touch /tmp/bad");
    // It is asked to go, and killed: PID 1 of sleep ignores SIGTERM.
    let restarted = until(cluster, "sick", "restarted", |p| status(p)["restartCount"] == 1 && ready(p));
    assert_eq!(status(&restarted)["lastState"]["terminated"]["exitCode"], 137);
    let told = || cluster.trellis(&["events"]).stdout;
    wait::until_true("the Events", LIMIT, || {
        let all = told();
        all.contains("Liveness probe failed") && all.contains("Readiness probe failed")
    })
    .unwrap();
    Outcome::Passed
}

/// As in Kubernetes' own example: the containers see and may trace each other. Process 1 there is nobody's, not
/// the shim, whose root is the node's.
pub fn shared_processes(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    let tracer = json!({"runAsUser": 0, "capabilities": {"add": ["SYS_PTRACE"]}});
    let mut shared = pod("shared", json!({"command": ["sleep", "4251"], "securityContext": tracer}));
    shared["spec"]["shareProcessNamespace"] = json!(true);
    let other = json!({"name": "other", "image": web::IMAGE, "command": ["sleep", "4252"], "securityContext": {"runAsUser": 0}});
    shared["spec"]["containers"].as_array_mut().unwrap().push(other);
    cluster.apply("shared.json", &shared.to_string());
    cluster.wait_ready("default", "app=shared", 1);
    let run = |script: &str| cluster.trellis(&["exec", "shared", "-c", "c", "--", "sh", "-c", script]);
    let seen = run("ps; cat /proc/1/comm").ok();
    assert!(seen.contains("sleep 4251") && seen.contains("sleep 4252"), "{seen}");
    assert!(seen.lines().last() == Some("trellis-pause"), "{seen}");
    // What tracing is good for: the other container's files, of its process…
    let own = run("for p in /proc/[0-9]*; do grep -q 4252 $p/cmdline && ls $p/root/bin/busybox; done").stdout;
    assert!(own.contains("/root/bin/busybox"), "{own}");
    // … and behind the first process lies nothing.
    let first = run("ls /proc/1/root/ /proc/1/fd/ 2>&1").stdout;
    assert!(!["etc", "usr", "var", "socket"].iter().any(|n| first.lines().any(|l| l.contains(n))), "{first}");
    cluster.trellis(&["delete", "pod", "shared"]).ok();
    Outcome::Passed
}

pub fn host_network(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    let mut host = pod(
        "host",
        json!({"command": ["sh", "-c", "hostname > /www/index.html; exec httpd -f -p 8088 -h /www"],
            "ports": [{"containerPort": 8088}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 8088}, "periodSeconds": 1}}),
    );
    host["spec"]["hostNetwork"] = json!(true);
    host["spec"]["nodeName"] = json!("n4");
    cluster.apply("host.json", &host.to_string());
    let found = cluster.wait_ready("default", "app=host", 1).remove(0);
    let object = cluster.api.get("Pod", "default", "host").unwrap().unwrap();
    let node = cluster.lab.topology().node("n4").unwrap().address.to_string();
    assert_eq!((found.address.as_str(), &object["status"]["hostIP"]), (node.as_str(), &json!(node)));
    for from in ["n1", "n4"] {
        let page = wait::until("an answer on the node's address", LIMIT, || cluster.ask(from, &node, 8088));
        assert_eq!(page.unwrap_or_else(|e| panic!("{e}")).body.trim(), "n4", "the node's own hostname");
    }
    let said = cluster.trellis(&["exec", "host", "--", "ip", "addr"]).ok();
    assert!(said.contains(&node), "it sees the node's links: {said}");
    let (_forward, port) = super::streams::port_forward(cluster, "pod/host", 8088);
    assert!(super::streams::http_through(port).contains("n4"));
    // The node's network outlives it, and the port is free again.
    cluster.trellis(&["delete", "pod", "host"]).ok();
    wait::until_true("a closed port", LIMIT, || cluster.ask("n1", &node, 8088).is_err()).unwrap();
    cluster.wait_all_nodes_ready();
    Outcome::Passed
}
