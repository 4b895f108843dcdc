//! What Kubernetes users expect of Deployments, volumes, scheduling and node maintenance.

use serde_json::json;
use trellis_lab::{wait, workload::web};

use crate::{
    cluster::{Cluster, LIMIT},
    harness::Outcome,
};

pub fn rollouts(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 2).to_string());
    let before = cluster.wait_ready("default", "app=web", 2);
    let said = cluster.trellis(&["rollout", "status", "deployment/web"]).ok();
    assert!(said.contains("successfully rolled out"), "{said}");
    cluster.trellis(&["scale", "deployment", "web", "--replicas=4"]).ok();
    cluster.wait_ready("default", "app=web", 4);
    cluster.trellis(&["rollout", "restart", "deployment/web"]).ok();
    cluster.trellis(&["rollout", "status", "deployment/web"]).ok();
    let after = cluster.wait_ready("default", "app=web", 4);
    assert!(after.iter().all(|p| before.iter().all(|b| b.uid != p.uid)), "every Pod is a new one");
    let unchanged = cluster.apply("web4.json", &web::deployment("web", 4).to_string());
    assert!(unchanged.contains("unchanged") || unchanged.contains("configured"), "{unchanged}");
    let table = cluster.trellis(&["get", "deployments"]).ok();
    assert!(table.starts_with("NAME") && table.contains("4/4"), "{table}");
    let json = cluster.trellis(&["get", "pods", "-l", "app=web", "-o", "json"]).ok();
    let list: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().map(Vec::len)), (Some("List"), Some(4)));
    Outcome::Passed
}

pub fn volumes(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    let manifest = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "green"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"password": "s3cret"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader", "labels": {"app": "reader"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "initContainers": [{"name": "first", "image": web::IMAGE, "command": ["sh", "-c", "echo made > /shared/by-init"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}],
            "containers": [{"name": "c", "image": web::IMAGE, "command": ["sleep", "100000"],
                "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}}],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}, {"name": "settings", "mountPath": "/settings"},
                    {"name": "keys", "mountPath": "/keys", "readOnly": true}]}],
            "volumes": [{"name": "shared", "emptyDir": {}}, {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "keys", "secret": {"secretName": "keys"}}]}},
    ]});
    cluster.apply("reader.json", &manifest.to_string());
    cluster.wait_ready("default", "app=reader", 1);
    let script = "echo $COLOR $PASSWORD $(cat /shared/by-init) $(cat /settings/color) $(cat /keys/password)";
    let said = cluster.trellis(&["exec", "reader", "--", "sh", "-c", script]).ok();
    assert_eq!(said.trim(), "green s3cret made green s3cret");
    cluster.trellis(&["delete", "pod/reader", "configmap/settings", "secret/keys"]).ok();
    Outcome::Passed
}

pub fn pending(cluster: &mut Cluster) -> Outcome {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "huge"}, "spec": {"containers": [
        {"name": "c", "image": web::IMAGE, "resources": {"requests": {"memory": "9Ti"}}}]}});
    cluster.apply("huge.json", &pod.to_string());
    let why = wait::until("the reason of its pending", LIMIT, || {
        let pod = cluster.api.get("Pod", "default", "huge").map_err(|e| e.to_string())?.unwrap_or_default();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let scheduled = conditions.into_iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
        scheduled.and_then(|c| c["message"].as_str().map(str::to_owned)).ok_or_else(|| pod.to_string())
    })
    .unwrap_or_else(|e| panic!("{e}"));
    assert!(why.contains("0/5 nodes are available") && why.contains("5 Insufficient memory"), "{why}");
    wait::until_true("the Event", LIMIT, || cluster.trellis(&["events"]).stdout.contains("FailedScheduling")).unwrap();
    Outcome::Passed
}

pub fn drain(cluster: &mut Cluster) -> Outcome {
    cluster.import_web_image();
    cluster.apply("web.json", &web::deployment("web", 5).to_string());
    cluster.wait_ready("default", "app=web", 5);
    cluster.trellis(&["drain", "n4", "--ignore-daemonsets"]).ok();
    let moved = wait::until("five Pods beside n4", LIMIT, || {
        let pods = cluster.ready_pods("default", "app=web");
        let fine = pods.len() == 5 && pods.iter().all(|p| p.node != "n4");
        if fine { Ok(()) } else { Err(cluster.describe("default", "app=web")) }
    });
    let uncordoned = cluster.trellis(&["uncordon", "n4"]);
    moved.unwrap_or_else(|e| panic!("{e}"));
    assert!(uncordoned.ok().contains("uncordoned"));
    Outcome::Passed
}
