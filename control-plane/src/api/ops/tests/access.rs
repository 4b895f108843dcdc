use super::*;

fn forbidden<T: std::fmt::Debug>(result: Result<T, ApiError>) {
    let error = refused(result);
    assert!(matches!(error, ApiError::Forbidden { .. }), "{error}");
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]}})
}

async fn listed(bed: &Bed, caller: &Caller, kind: Kind, network: bool) -> Result<Vec<String>, ApiError> {
    let args = ListArgs { network, ..ListArgs::default() };
    let all = bed.ops.list(caller, &Target::new(kind, "", ""), &args).await?;
    Ok(all.items.into_iter().map(|i| i.key.name).collect())
}

#[tokio::test]
async fn an_agent_sees_and_ends_its_own_pods_alone() {
    let bed = Bed::new().await;
    for (name, on) in [("mine", "n1"), ("theirs", "n2")] {
        bed.create(Kind::Pod, &pod(name)).await.unwrap();
        bed.bind(name, on).await;
    }
    let me = agent("n1");
    assert_eq!(listed(&bed, &me, Kind::Pod, false).await.unwrap(), ["mine"]);
    bed.get(&me, &target(Kind::Pod, "mine")).await.unwrap();
    forbidden(bed.get(&me, &target(Kind::Pod, "theirs")).await);
    let running = json!({"status": {"phase": "Running"}});
    let (mine, theirs) = (target(Kind::Pod, "mine"), target(Kind::Pod, "theirs"));
    bed.patch(&me, &mine, Part::Status, running.clone()).await.unwrap();
    forbidden(bed.patch(&me, &theirs, Part::Status, running.clone()).await);
    forbidden(bed.patch(&me, &mine, Part::Main, running).await);
    forbidden(bed.create_as(&me, Kind::Pod, &pod("new")).await);
    // Only what terminates, only with grace 0.
    forbidden(bed.delete(&me, &mine, Some(0)).await);
    bed.delete(&admin(), &mine, None).await.unwrap();
    bed.delete(&admin(), &theirs, None).await.unwrap();
    forbidden(bed.delete(&me, &mine, None).await);
    forbidden(bed.delete(&me, &theirs, Some(0)).await);
    assert!(bed.delete(&me, &mine, Some(0)).await.unwrap().removed);
}

#[tokio::test]
async fn an_agents_watch_is_of_its_own_pods() {
    let bed = Bed::new().await;
    for (name, on) in [("mine", "n1"), ("theirs", "n2")] {
        bed.create(Kind::Pod, &pod(name)).await.unwrap();
        bed.bind(name, on).await;
    }
    let all = Target::new(Kind::Pod, "", "");
    // Asking for another node's does not help.
    for field_selector in ["", "spec.nodeName=n2"] {
        let args = WatchArgs { field_selector: field_selector.into(), ..WatchArgs::default() };
        let mut watch = bed.ops.watch(&agent("n1"), &all, &args).await.unwrap();
        let mut seen = Vec::new();
        while let WatchItem::Change(_, answer) = watch.next().await.unwrap() {
            seen.push(answer.key.name);
        }
        let expected: &[&str] = if field_selector.is_empty() { &["mine"] } else { &[] };
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn an_agent_reads_what_its_pods_refer_to() {
    let bed = Bed::new().await;
    for name in ["used", "unused"] {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "data": {"k": "dg=="}});
        bed.create(Kind::Secret, &secret).await.unwrap();
        bed.create(Kind::ConfigMap, &config_map(name, "x")).await.unwrap();
    }
    let mut p = pod("p");
    p["spec"]["containers"][0]["envFrom"] =
        json!([{"secretRef": {"name": "used"}}, {"configMapRef": {"name": "used"}}]);
    bed.create(Kind::Pod, &p).await.unwrap();
    forbidden(bed.get(&agent("n1"), &target(Kind::Secret, "used")).await);
    bed.bind("p", "n1").await;
    for kind in [Kind::Secret, Kind::ConfigMap] {
        bed.get(&agent("n1"), &target(kind, "used")).await.unwrap();
        forbidden(bed.get(&agent("n1"), &target(kind, "unused")).await);
        forbidden(bed.get(&agent("n2"), &target(kind, "used")).await);
        forbidden(listed(&bed, &agent("n1"), kind, false).await);
        let all = Target::new(kind, "default", "");
        let watch = bed.ops.watch(&agent("n1"), &all, &WatchArgs::default()).await;
        forbidden(watch.map(|_| "a watch"));
    }
    // A watch of one ends with the Pod that refers to it.
    let one = target(Kind::ConfigMap, "used");
    let mut watch = bed.ops.watch(&agent("n1"), &one, &WatchArgs::default()).await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), WatchItem::Change(WatchKind::Added, _)));
    assert!(matches!(watch.next().await.unwrap(), WatchItem::Bookmark(_)));
    bed.delete(&admin(), &target(Kind::Pod, "p"), Some(0)).await.unwrap();
    let patch = json!({"data": {"k": "after"}});
    bed.patch(&admin(), &one, Part::Main, patch).await.unwrap();
    forbidden(watch.next().await);
}

#[tokio::test]
async fn an_agent_registers_its_own_node_and_decides_little_about_it() {
    let bed = Bed::new().await;
    let me = agent("n1");
    forbidden(bed.create_as(&me, Kind::Node, &node("n2")).await);
    // Nor one whose name the server is to make up.
    let mut nameless = node("");
    nameless["metadata"] = json!({"generateName": "n"});
    forbidden(bed.create_as(&me, Kind::Node, &nameless).await);
    forbidden(bed.create_as(&netd("n1"), Kind::Node, &nameless).await);
    bed.create(Kind::Node, &nameless).await.unwrap();
    let mut greedy = node("n1");
    greedy["spec"] = json!({"podCIDR": "10.244.0.0/16"});
    forbidden(bed.create_as(&me, Kind::Node, &greedy).await);
    let mut tainted = node("n1");
    tainted["spec"] = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
    let made = bed.create_as(&me, Kind::Node, &tainted).await.unwrap();
    assert_eq!(made["status"]["addresses"][0]["address"], "172.30.0.11");
    bed.create(Kind::Node, &node("n2")).await.unwrap();
    assert_eq!(listed(&bed, &me, Kind::Node, false).await.unwrap(), ["n1"]);
    let own = Target::new(Kind::Node, "", "n1");
    let ready = json!({"status": {"nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": ""}}});
    bed.patch(&me, &own, Part::Status, ready.clone()).await.unwrap();
    let label = json!({"metadata": {"labels": {"disk": "ssd"}}});
    bed.patch(&me, &own, Part::Main, label.clone()).await.unwrap();
    for bad in [
        json!({"spec": {"taints": null}}),
        json!({"spec": {"unschedulable": true}}),
        json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}}),
        json!({"metadata": {"finalizers": ["example.com/stay"]}}),
    ] {
        forbidden(bed.patch(&me, &own, Part::Main, bad).await);
    }
    let other = Target::new(Kind::Node, "", "n2");
    forbidden(bed.get(&me, &other).await);
    forbidden(bed.patch(&me, &other, Part::Status, ready).await);
    forbidden(bed.patch(&me, &other, Part::Main, label).await);
    forbidden(bed.delete(&me, &own, None).await);
}

#[tokio::test]
async fn a_netd_reads_the_network_and_writes_nothing() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    bed.bind("p", "n2").await;
    bed.create(Kind::Node, &node("n2")).await.unwrap();
    let me = netd("n1");
    assert_eq!(listed(&bed, &me, Kind::Node, false).await.unwrap(), ["n2"]);
    assert_eq!(listed(&bed, &me, Kind::Namespace, false).await.unwrap(), ["default"]);
    assert_eq!(listed(&bed, &me, Kind::Pod, true).await.unwrap(), ["p"]);
    forbidden(listed(&bed, &me, Kind::Pod, false).await);
    let one = bed.get(&me, &target(Kind::Pod, "p")).await.unwrap();
    assert!(one["spec"]["containers"][0]["image"].is_null(), "{one}");
    for kind in [Kind::Secret, Kind::ConfigMap, Kind::Event, Kind::Deployment] {
        forbidden(listed(&bed, &me, kind, false).await);
    }
    forbidden(bed.create_as(&me, Kind::Node, &node("n1")).await);
    forbidden(bed.delete(&me, &target(Kind::Pod, "p"), Some(0)).await);
    let patch = json!({"status": {"phase": "Failed"}});
    forbidden(bed.patch(&me, &target(Kind::Pod, "p"), Part::Status, patch).await);
}
