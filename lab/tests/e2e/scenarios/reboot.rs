//! A node that loses its power while the control plane is away.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::{Value, json};
use trellis_lab::{backend::Backend, cluster::up, wait, workload::web};

use crate::{
    cluster::{Cluster, LIMIT},
    harness::Outcome,
};

const NODE: &str = "n5";

/// A page made of everything that comes from a ConfigMap or a Secret.
fn reader() -> Value {
    let page = "echo \"$COLOR $PASSWORD $(cat /settings/color) $(cat /keys/password) $(cat /both/color /both/password)\" \
                > /www/index.html; exec httpd -f -p 8080 -h /www";
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "green"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"password": "s3cret-canary"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "labels": {"app": "reader"}}, "spec": {
            "terminationGracePeriodSeconds": 0, "nodeName": NODE,
            "containers": [{"name": "c", "image": web::IMAGE, "command": ["sh", "-c", page],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}}],
                "envFrom": [{"secretRef": {"name": "keys"}, "prefix": "IGNORED_"}],
                "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, {"name": "keys", "mountPath": "/keys"},
                    {"name": "both", "mountPath": "/both"}]}],
            "volumes": [{"name": "settings", "configMap": {"name": "settings"}},
                {"name": "keys", "secret": {"secretName": "keys"}},
                {"name": "both", "projected": {"sources": [{"configMap": {"name": "settings"}}, {"secret": {"name": "keys"}}]}}]}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "torn", "labels": {"app": "torn"}}, "spec": {
            "terminationGracePeriodSeconds": 0, "nodeName": NODE, "containers": [{"name": "c", "image": web::IMAGE}]}},
    ]})
}

/// What the agent last knew of the Pod's addresses.
fn address(pods: &Path, uid: &str) -> Result<String, String> {
    let path = pods.join(uid).join("state.json");
    let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
    let state: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    state["addresses"][0].as_str().map(str::to_owned).ok_or(text)
}

/// Files below a folder, each with its mode; half-written ones are none.
fn files(folder: &Path) -> Vec<(std::path::PathBuf, u32)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => all.extend(files(&path)),
            Ok(meta) => all.push((path, meta.permissions().mode() & 0o777)),
            Err(_) => {}
        }
    }
    all
}

pub fn without_control_plane(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    let mut manifest = reader();
    let env = &mut manifest["items"][2]["spec"]["containers"][0]["env"];
    let from_secret = json!({"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}});
    env.as_array_mut().unwrap().push(from_secret);
    cluster.apply("reader.json", &manifest.to_string());
    let pod = cluster.wait_ready("default", "app=reader", 1).remove(0);
    let torn = cluster.wait_ready("default", "app=torn", 1).remove(0);
    let page = "green s3cret-canary green s3cret-canary greens3cret-canary";
    assert_eq!(cluster.ask("n4", &pod.address, 8080).unwrap().body.trim(), page);
    let data = cluster.lab.layout().node(NODE).path("data").join("node-agent");
    let objects = data.join("objects");
    let kept = files(&objects);
    assert_eq!(kept.len(), 2, "{kept:?}");
    for (path, mode) in &kept {
        assert_eq!(*mode, 0o600, "{}", path.display());
        let bytes = fs::read(path).unwrap();
        let holds = |needle: &str| bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
        let secret = path.parent().unwrap().parent().unwrap().ends_with("Secret");
        assert!(!holds("s3cret-canary") && !holds("czNjcmV0") && (secret || holds("green")), "{}", path.display());
    }

    let members: Vec<String> = cluster.lab.topology().control_planes().map(|n| n.name.clone()).collect();
    for member in &members {
        cluster.lab.stop_daemon(member, "control-plane").unwrap();
    }
    cluster.lab.kill(NODE).unwrap();
    assert!(cluster.ask("n4", &pod.address, 8080).is_err(), "its power is cut");
    // As a power cut may leave a file that was being written; the other Pod's is whole.
    let pods = data.join("pods");
    let object = pods.join(&torn.uid).join("pod.json");
    let whole = fs::read(&object).unwrap();
    fs::write(&object, &whole[..whole.len() / 2]).unwrap();
    let log = cluster.lab.log(NODE, "node-agent");
    let said = fs::metadata(&log).map_or(0, |m| usize::try_from(m.len()).unwrap());
    cluster.start(NODE);
    let begin = std::time::Instant::now();
    wait::until("the Pod on the node that came back", LIMIT, || {
        let body = cluster.ask("n4", &address(&pods, &pod.uid)?, 8080)?.body;
        if body.trim() == page { Ok(()) } else { Err(body) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    eprintln!("  it answers {:.1} s after the node's start", begin.elapsed().as_secs_f64());
    assert!(cluster.api.status().is_err(), "without the control plane, all the while");
    let text = fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&text[said..]).into_owned();
    assert!(text.contains("the Pod is made again") && text.contains(&torn.uid), "{text}");
    assert!(!text.contains(&format!("default/{}", "torn")), "nobody can start it without its object: {text}");

    for member in &members {
        let node = cluster.lab.topology().node(member).unwrap();
        up::start_daemons(&cluster.lab, node).unwrap();
    }
    wait::until("the control plane's return", LIMIT, || cluster.api.status().map_err(|e| e.to_string()))
        .unwrap_or_else(|e| panic!("{e}"));
    cluster.wait_all_nodes_ready();
    let after = cluster.wait_ready("default", "app=reader", 1).remove(0);
    assert_eq!(after.uid, pod.uid, "it was not replaced");
    wait::until("the Pod whose object was torn", LIMIT, || cluster.ask("n4", &address(&pods, &torn.uid)?, web::PORT))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cluster.wait_ready("default", "app=torn", 1)[0].uid, torn.uid, "it was not replaced");
    let kept: Value = serde_json::from_slice(&fs::read(&object).unwrap()).unwrap();
    assert_eq!(kept["metadata"]["uid"], torn.uid.as_str(), "its object is kept again");
    cluster.trellis(&["delete", "pod/reader", "pod/torn", "configmap/settings", "secret/keys"]).ok();
    wait::until("nothing kept", LIMIT, || {
        let left = files(&objects);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .unwrap_or_else(|e| panic!("{e}"));
    Outcome::Passed
}
