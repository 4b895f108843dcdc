//! Golden tests of the spec: what a Pod and an image say, what the runtime is told.
#![allow(clippy::unwrap_used, missing_docs)]
use super::{env::*, *};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"},
                     "annotations": {"note": "n"}},
        "spec": spec
    }))
    .unwrap()
}

fn image(config: Value) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": config
    }))
    .unwrap()
}

fn facts() -> Facts {
    Facts {
        node_name: "n1".into(),
        host_ip: "172.30.0.11".into(),
        pod_ips: vec!["10.244.1.7".into()],
        allocatable_cpu_milli: 2000,
        allocatable_memory_bytes: 1 << 30,
    }
}

fn refs() -> Refs {
    let cm: ConfigMap = serde_json::from_value(json!({"data": {"color": "red", "size": "xl"}})).unwrap();
    let secret: Secret = serde_json::from_value(json!({"data": {"password": "aHVudGVyMg==", "blob": "/w=="}})).unwrap();
    Refs {
        config_maps: BTreeMap::from([("cfg".to_owned(), Arc::new(cm))]),
        secrets: BTreeMap::from([("sec".to_owned(), Arc::new(secret))]),
    }
}

fn built(spec: Value, config: Value) -> Result<Value, SpecError> {
    let pod = pod(spec);
    let c = pod.spec.as_ref().unwrap().containers[0].clone();
    let image = image(config);
    let env = resolve(&pod, &c, &refs(), &facts())?;
    let db = user::UserDb {
        passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/false\n".into(),
        group: "root:x:0:\nwww:x:33:\nmedia:x:44:www,other\n".into(),
    };
    let image_user = image.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
    let user = user::resolve(&db, &image_user, &pod, &c)?;
    let input = Input {
        pod: &pod,
        container: &c,
        image: &image,
        env,
        user,
        mounts: vec![],
        hostname: "web-1".into(),
        node_memory_bytes: 8 << 30,
    };
    Ok(serde_json::to_value(build(input)?).unwrap())
}

fn one(container: Value) -> Value {
    let mut c = json!({"name": "c", "image": "i"});
    c.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    json!({"containers": [c]})
}

#[test]
fn command_and_args_follow_kubernetes_table() {
    let config = json!({"Entrypoint": ["/ep"], "Cmd": ["cmd"]});
    for (container, want) in [
        (json!({}), json!(["/ep", "cmd"])),
        (json!({"args": ["a"]}), json!(["/ep", "a"])),
        (json!({"command": ["/c"]}), json!(["/c"])),
        (json!({"command": ["/c"], "args": ["a"]}), json!(["/c", "a"])),
        (
            json!({"args": ["$(X)", "$$(X)", "$(NO)"], "env": [{"name": "X", "value": "v"}]}),
            json!(["/ep", "v", "$(X)", "$(NO)"]),
        ),
    ] {
        assert_eq!(built(one(container), config.clone()).unwrap()["process"]["args"], want);
    }
    assert_eq!(built(one(json!({})), json!({})), Err(SpecError::NoCommand("c".into())));
}

#[test]
fn env_comes_from_everywhere_in_order() {
    let container = json!({
        "command": ["x"],
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cfg"}}, {"secretRef": {"name": "gone", "optional": true}}],
        "env": [
            {"name": "A", "value": "one"},
            {"name": "B", "value": "$(A)-$(P_color)-$(IMG)"},
            {"name": "A", "value": "two"},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "size"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "password"}}},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
            {"name": "OPT", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "none", "optional": true}}}
        ],
        "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}
    });
    let spec = built(one(container), json!({"Env": ["IMG=i", "PATH=/bin", "HOME=/h"]})).unwrap();
    let env: Vec<&str> = spec["process"]["env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    for want in [
        "PATH=/bin",
        "HOSTNAME=web-1",
        "IMG=i",
        "HOME=/h",
        "P_color=red",
        "P_size=xl",
        "A=two",
        "B=one-red-$(IMG)",
        "C=xl",
        "S=hunter2",
        "N=web",
        "IP=10.244.1.7",
        "CPU=2",
        "MEM=100",
    ] {
        assert!(env.contains(&want), "{want} not in {env:?}");
    }
    assert!(!env.iter().any(|e| e.starts_with("OPT=")));
    assert_eq!(env.iter().filter(|e| e.starts_with("A=")).count(), 1);
}

#[test]
fn missing_references_are_named() {
    let env = |source: Value| one(json!({"command": ["x"], "env": [{"name": "V", "valueFrom": source}]}));
    let fail = |source: Value| built(env(source), json!({})).unwrap_err().to_string();
    assert_eq!(fail(json!({"configMapKeyRef": {"name": "no", "key": "k"}})), "configmap \"no\" not found");
    assert_eq!(fail(json!({"secretKeyRef": {"name": "sec", "key": "k"}})), "couldn't find key k in Secret shop/sec");
    assert!(fail(json!({"secretKeyRef": {"name": "sec", "key": "blob"}})).contains("not UTF-8"));
    assert!(fail(json!({"fieldRef": {"fieldPath": "spec.magic"}})).contains("spec.magic"));
}

#[test]
fn users_come_from_spec_and_image() {
    let user = |spec: Value, image: &str| {
        built(spec, json!({"User": image, "Cmd": ["x"]})).map(|s| s["process"]["user"].clone())
    };
    let plain = one(json!({}));
    assert_eq!(user(plain.clone(), "www").unwrap(), json!({"uid": 33, "gid": 33, "additionalGids": [33, 44]}));
    assert_eq!(user(plain.clone(), "www:media").unwrap(), json!({"uid": 33, "gid": 44, "additionalGids": [44]}));
    assert_eq!(user(plain.clone(), "1000:2000").unwrap(), json!({"uid": 1000, "gid": 2000, "additionalGids": [2000]}));
    assert_eq!(user(plain.clone(), "").unwrap()["uid"], 0);
    assert_eq!(user(plain, "nobody-here"), Err(SpecError::NoUser { user: "nobody-here".into() }));
    let mut spec = one(json!({"securityContext": {"runAsUser": 33}}));
    spec["securityContext"] = json!({"runAsGroup": 7, "fsGroup": 9, "supplementalGroups": [8]});
    assert_eq!(user(spec, "").unwrap(), json!({"uid": 33, "gid": 7, "additionalGids": [7, 8, 9, 44]}));
    let root = one(json!({"securityContext": {"runAsNonRoot": true}}));
    assert_eq!(user(root.clone(), ""), Err(SpecError::Root("c".into())));
    assert!(user(root, "33").is_ok());
}

#[test]
fn limits_become_cgroup_figures() {
    let spec = built(
        one(json!({"command": ["x"], "resources": {
            "limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}})),
        json!({}),
    )
    .unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["cpu"], json!({"shares": 256, "quota": 50000, "period": 100000}));
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert_eq!(resources["pids"]["limit"], 16384);
    // 32 MiB of 8 GiB.
    assert_eq!(spec["process"]["oomScoreAdj"], 997);
    assert_eq!(resources::oom_score_adj("Guaranteed", 0, 1), -997);
    assert_eq!(resources::oom_score_adj("BestEffort", 0, 1), 1000);
    assert_eq!(resources::oom_score_adj("Burstable", 4 << 30, 8 << 30), 500);
}

#[test]
fn pod_limits_hold_only_where_all_containers_have_them() {
    let limited = json!({"name": "a", "resources": {"limits": {"memory": "10Mi"}, "requests": {"cpu": "100m"}}});
    let free = json!({"name": "b"});
    let all = resources::pod_cgroup(&pod(json!({"containers": [limited]})));
    assert_eq!((all.memory_bytes, all.cpu_shares, all.cpu_quota_micros), (Some(10 << 20), Some(102), None));
    let some = resources::pod_cgroup(&pod(json!({"containers": [limited, free]})));
    assert_eq!(some.memory_bytes, None);
}

#[test]
fn security_contexts_are_applied() {
    let spec = built(
        one(json!({"command": ["x"], "securityContext": {
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}})),
        json!({}),
    )
    .unwrap();
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["capabilities"]["bounding"], json!(["CAP_NET_BIND_SERVICE"]));
    assert!(spec["linux"]["seccomp"].is_object() && spec["linux"]["maskedPaths"].is_array());
    let spec = built(one(json!({"command": ["x"], "securityContext": {"privileged": true}})), json!({})).unwrap();
    assert!(spec["linux"]["seccomp"].is_null() && spec["linux"]["maskedPaths"].is_null());
    let sys = spec["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == "/sys").unwrap();
    assert!(!sys["options"].as_array().unwrap().contains(&json!("ro")));
    let odd = one(json!({"command": ["x"], "securityContext": {"capabilities": {"add": ["FLY"]}}}));
    assert!(matches!(built(odd, json!({})), Err(SpecError::Capability { .. })));
    let local = one(
        json!({"command": ["x"], "securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "p"}}}),
    );
    assert!(matches!(built(local, json!({})), Err(SpecError::Seccomp { .. })));
}

#[test]
fn the_nodes_sys_is_read_only_with_all_that_is_mounted_below() {
    let sys = |context: Value| {
        let mut pod = one(json!({"command": ["x"], "securityContext": context}));
        pod["hostNetwork"] = json!(true);
        let spec = built(pod, json!({})).unwrap();
        let mounts = spec["mounts"].as_array().unwrap().clone();
        assert!(!mounts.iter().any(|m| m["destination"] == "/sys/fs/cgroup"));
        mounts.into_iter().find(|m| m["destination"] == "/sys").unwrap()["options"].clone()
    };
    assert_eq!(sys(json!({})), json!(["rbind", "rnosuid", "rnoexec", "rnodev", "rro"]));
    assert_eq!(sys(json!({"privileged": true})), json!(["rbind", "rnosuid", "rnoexec", "rnodev", "rw"]));
}

#[test]
fn user_databases_are_read_without_leaving_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |n: &str| {
        let path = dir.path().join(n);
        std::fs::create_dir_all(path.join("etc")).unwrap();
        path
    };
    let (top, middle, bottom) = (layer("top"), layer("middle"), layer("bottom"));
    std::fs::write(bottom.join("etc/passwd"), "low:x:1:1::/:\n").unwrap();
    std::fs::write(dir.path().join("secret"), "outside:x:0:0::/:\n").unwrap();
    let all = [top.clone(), middle.clone(), bottom.clone()];
    assert!(user::UserDb::read(&all).passwd.starts_with("low"));
    // An absolute and a climbing link stay inside: they find nothing, or what the image has there.
    std::os::unix::fs::symlink(dir.path().join("secret"), top.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("../../secret", top.join("etc/group")).unwrap();
    let db = user::UserDb::read(&all);
    assert!(!db.passwd.contains("outside") && !db.group.contains("outside"));
    std::fs::remove_file(top.join("etc/passwd")).unwrap();
    std::fs::write(middle.join("etc/passwd"), "mid:x:2:2::/:\n").unwrap();
    assert!(user::UserDb::read(&all).passwd.starts_with("mid"));
}
