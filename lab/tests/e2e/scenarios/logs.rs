//! What `logs` shows over rotation and time.

use std::process::Stdio;

use serde_json::json;
use trellis_lab::{wait, workload::web};

use super::streams::{Running, lines_of};
use crate::{
    cluster::{Cluster, LIMIT},
    harness::Outcome,
};

/// About 16 MB as they lie on disk: the log is rotated at 10 MiB.
const LINES: u32 = 300_000;

pub fn since_and_rotation(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    let wait_for = |file: &str| format!("while ! test -e /tmp/{file}; do sleep 0.1; done;");
    let script = format!(
        "echo old; {} echo new; {} busybox seq 1 {LINES}; echo end; sleep 100000",
        wait_for("new"),
        wait_for("many")
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "writer", "labels": {"app": "writer"}},
        "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": web::IMAGE, "command": ["sh", "-c", script]}]}});
    cluster.apply("writer.json", &pod.to_string());
    cluster.wait_ready("default", "app=writer", 1);
    let logs = |args: &[&str]| cluster.trellis(&[&["logs", "writer"][..], args].concat()).ok();
    let touch = |file: &str| cluster.trellis(&["exec", "writer", "--", "touch", &format!("/tmp/{file}")]).ok();
    wait::until_true("the first line", LIMIT, || logs(&[]) == "old\n").unwrap();
    wait::until_true("the first line being older than a second", LIMIT, || logs(&["--since=1s"]).is_empty()).unwrap();
    touch("new");
    wait::until_true("the second line", LIMIT, || logs(&["--since=1s"]) == "new\n").unwrap();
    assert_eq!(logs(&["--since=10m"]), "old\nnew\n");

    let mut follow = cluster.trellis_command(&["logs", "-f", "writer"]);
    let mut following = Running(follow.stdout(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(following.0.stdout.take().unwrap());
    let next = || lines.recv_timeout(LIMIT).unwrap();
    assert_eq!((next(), next()), ("old".to_owned(), "new".to_owned()));
    touch("many");
    for number in 1..=LINES {
        assert_eq!(next(), number.to_string(), "no line is missing or doubled");
    }
    assert_eq!(next(), "end");
    // The log was rotated meanwhile, and the tail reaches over it.
    let folder = cluster.lab.layout();
    let node = cluster.api.get("Pod", "default", "writer").unwrap().unwrap();
    let (node, uid) = (node["spec"]["nodeName"].clone(), node["metadata"]["uid"].clone());
    let pods = folder.node(node.as_str().unwrap()).path("data").join("node-agent/pods");
    let files = std::fs::read_dir(pods.join(uid.as_str().unwrap()).join("logs/c")).unwrap().count();
    assert!(files >= 2, "{files} files: the control, it was rotated");
    assert_eq!(logs(&["--tail=2"]), format!("{LINES}\nend\n"));
    let all = logs(&[]);
    assert_eq!(all.lines().count(), usize::try_from(LINES).unwrap() + 3);
    Outcome::Passed
}
