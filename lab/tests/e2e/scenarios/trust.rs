//! Who may do what with which key, and what lies on disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::Engine;
use serde_json::json;
use trellis_lab::backend::Backend;
use trellis_proto::client::{ClusterContext, Contexts};

use crate::{
    cluster::{Cluster, LIMIT, Ran, run},
    harness::Outcome,
};

/// `trellis ARGS` with the key that a daemon of a node has.
fn as_daemon(cluster: &Cluster, node: &str, daemon: &str, args: &[&str]) -> Ran {
    let pki = cluster.lab.layout().node(node).path("etc").join("pki");
    let read = |name: String| fs::read_to_string(pki.join(name)).unwrap();
    let context = ClusterContext {
        endpoints: vec![cluster.lab.api_endpoint("n1")],
        ca: read("ca.crt".to_owned()),
        certificate: read(format!("{daemon}.crt")),
        key: read(format!("{daemon}.key")),
        namespace: "default".to_owned(),
    };
    let mut contexts = Contexts { current: "daemon".to_owned(), ..Contexts::default() };
    contexts.contexts.insert("daemon".to_owned(), context);
    let file = cluster.folder().join(format!("{node}-{daemon}.json"));
    contexts.store(&file).unwrap();
    let mut command = std::process::Command::new(cluster.program("trellis"));
    run(command.args(args).env("TRELLIS_CONFIG", file).stdin(Stdio::null()), LIMIT)
}

pub fn roles(cluster: &mut Cluster) -> Outcome {
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "private"}, "stringData": {"a": "b"}});
    cluster.apply("private.json", &secret.to_string());
    cluster.trellis(&["get", "secret", "private"]).ok();
    // What each may do is its positive control.
    assert_eq!(as_daemon(cluster, "n4", "agent", &["get", "node", "n4"]).code, 0);
    assert_eq!(as_daemon(cluster, "n4", "netd", &["get", "nodes"]).code, 0);
    for (daemon, args) in [
        ("agent", &["get", "secret", "private"][..]),
        ("agent", &["get", "secrets"]),
        ("agent", &["delete", "node", "n5"]),
        ("agent", &["cordon", "n5"]),
        ("agent", &["cluster", "token", "create"]),
        ("netd", &["get", "secret", "private"]),
        ("netd", &["get", "configmaps"]),
        ("netd", &["get", "pods", "-A"]),
        ("netd", &["delete", "node", "n4"]),
        ("netd", &["cluster", "token", "create"]),
    ] {
        let ran = as_daemon(cluster, "n4", daemon, args);
        assert_ne!(ran.code, 0, "{daemon} {args:?}: {}", ran.stdout);
        assert!(ran.stderr.to_lowercase().contains("forbidden"), "{daemon} {args:?}: {}", ran.stderr);
    }
    cluster.trellis(&["delete", "secret", "private"]).ok();
    Outcome::Passed
}

/// Every file below a folder, raw and (where it is compressed as a whole) unpacked.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            if let Ok(plain) = zstd::decode_all(&bytes[..]) {
                found.push((path.clone(), plain));
            }
            let mut plain = Vec::new();
            if std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain).is_ok() {
                found.push((path.clone(), plain));
            }
            found.push((path, bytes));
        }
    }
    found
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle.as_bytes())
}

pub fn secrets(cluster: &mut Cluster) -> Outcome {
    let canary = format!("canary-{}-in-a-secret", std::process::id());
    let encoded = base64::engine::general_purpose::STANDARD.encode(&canary);
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "canary"}, "stringData": {"a": canary}});
    cluster.apply("canary-secret.json", &secret.to_string());
    let read = cluster.trellis(&["get", "secret", "canary", "-o", "json"]).ok();
    assert!(read.contains(&encoded), "the administrator reads it: {read}");
    let holding = |cluster: &Cluster, needle: &str| {
        let members = cluster.lab.topology().control_planes();
        let folders = members.map(|m| cluster.lab.layout().node(&m.name).path("data").join("control-plane"));
        let files = folders.flat_map(|folder| contents(&folder));
        files.filter(|(_, bytes)| holds(bytes, needle)).map(|(path, _)| path).collect::<Vec<_>>()
    };
    for needle in [&canary, &encoded] {
        let files = holding(cluster, needle);
        assert!(files.is_empty(), "{files:?} hold the Secret");
    }
    // The same text where it may be read: so would the Secret have been found.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "canary"},
        "data": {"plain": canary, "encoded": encoded}});
    cluster.apply("canary-map.json", &map.to_string());
    for needle in [&canary, &encoded] {
        let files = holding(cluster, needle);
        assert!(files.len() >= 2, "the control: {needle} lies on a majority's disks: {files:?}");
    }
    cluster.trellis(&["delete", "secret/canary", "configmap/canary"]).ok();
    Outcome::Passed
}
