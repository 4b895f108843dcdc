use serde_json::json;
use tonic::Code;
use trellis_proto::api;
use trellis_proto::status::details;

use crate::bed::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_objects_through_grpc() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    // Create, and a retried create.
    let request = api::CreateRequest {
        key: key("", "ConfigMap", "default", "a"),
        json: config("a").to_string().into(),
        request_id: "r1".into(),
        dry_run: false,
    };
    let made = admin.resources().create(request.clone()).await.unwrap().into_inner();
    let again = admin.resources().create(request.clone()).await.unwrap().into_inner();
    assert_eq!(made, again);
    let other = api::CreateRequest { request_id: "r2".into(), ..request };
    let refused = admin.resources().create(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(details(&refused).unwrap().reason, "AlreadyExists");
    // All problems of a manifest at once.
    let bad = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"},
        "spec": {"containers": [{"name": "A!", "image": ""}]}});
    let refused = create(&admin, "Pod", &bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(details(&refused).unwrap().causes.len() >= 2, "{refused:?}");
    // Conflict.
    let mut object = value(made.object);
    let update = |object: &serde_json::Value| api::UpdateRequest {
        key: key("", "ConfigMap", "default", "a"),
        json: object.to_string().into(),
        ..api::UpdateRequest::default()
    };
    object["metadata"]["labels"]["x"] = "y".into();
    admin.resources().update(update(&object)).await.unwrap();
    let refused = admin.resources().update(update(&object)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(details(&refused).unwrap().reason, "Conflict");
    // Apply.
    let apply = |image: &str| {
        let manifest = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web"}, "spec": {"replicas": 0,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "a", "image": image}]}}}});
        let request = api::ApplyRequest {
            key: key("apps", "Deployment", "default", "web"),
            json: manifest.to_string().into(),
            ..api::ApplyRequest::default()
        };
        let mut client = admin.resources();
        async move { client.apply(request).await.unwrap().into_inner().outcome() }
    };
    assert_eq!(apply("i:1").await, api::ApplyOutcome::Created);
    assert_eq!(apply("i:1").await, api::ApplyOutcome::Unchanged);
    assert_eq!(apply("i:2").await, api::ApplyOutcome::Configured);
    // Delete.
    let request = api::DeleteRequest { key: key("", "ConfigMap", "default", "a"), ..Default::default() };
    assert!(admin.resources().delete(request).await.unwrap().into_inner().removed);
    assert_eq!(code(get(&admin, "", "ConfigMap", "default", "a").await), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_and_watches_follow() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    for i in 0..5 {
        create(&admin, "ConfigMap", &config(&format!("p{i}"))).await.unwrap();
    }
    let mut request = api::ListRequest {
        key: key("", "ConfigMap", "default", ""),
        label_selector: "app=web".into(),
        limit: 2,
        ..api::ListRequest::default()
    };
    let mut seen = Vec::new();
    let revision = loop {
        let page = admin.resources().list(request.clone()).await.unwrap().into_inner();
        seen.extend(page.items.into_iter().map(|i| i.key.unwrap().name));
        if page.continue_token.is_empty() {
            break page.revision;
        }
        request.continue_token = page.continue_token;
    };
    assert_eq!(seen, ["p0", "p1", "p2", "p3", "p4"]);
    let request = api::WatchRequest {
        key: key("", "ConfigMap", "default", ""),
        from_revision: revision,
        ..api::WatchRequest::default()
    };
    let mut watch = admin.resources().watch(request).await.unwrap().into_inner();
    create(&admin, "ConfigMap", &config("p5")).await.unwrap();
    let event = watch.message().await.unwrap().unwrap();
    assert_eq!(event.r#type(), api::EventType::Added);
    assert_eq!(event.object.unwrap().key.unwrap().name, "p5");
    assert!(event.revision > revision);
    // A quiet watch says where it is.
    let event = watch.message().await.unwrap().unwrap();
    assert_eq!(event.r#type(), api::EventType::Bookmark);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_a_restart() {
    let mut bed = Bed::start().await;
    create(&bed.admin(), "ConfigMap", &config("a")).await.unwrap();
    let before = get(&bed.admin(), "", "ConfigMap", "default", "a").await.unwrap();
    bed.stop().await;
    bed.run().await;
    assert_eq!(get(&bed.admin(), "", "ConfigMap", "default", "a").await.unwrap(), before);
    assert!(!bed.dir.path().join("etc/bootstrap.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_node_or_an_agent_is_told_plainly() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let logs = |pod: &str, container: &str| api::LogsRequest {
        namespace: "default".into(),
        pod: pod.into(),
        container: container.into(),
        ..api::LogsRequest::default()
    };
    let refused = admin.pods().logs(logs("none", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let mut unbound = pod("a");
    unbound["spec"]["nodeSelector"] = json!({"no": "where"});
    create(&admin, "Pod", &unbound).await.unwrap();
    let refused = admin.pods().logs(logs("a", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("does not have a host assigned"), "{refused}");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.9"}]}});
    create(&admin, "Node", &node).await.unwrap();
    let mut bound = pod("b");
    bound["spec"]["nodeName"] = "n9".into();
    create(&admin, "Pod", &bound).await.unwrap();
    let refused = admin.pods().logs(logs("b", "zzz")).await.unwrap_err();
    assert!(refused.message().contains("container zzz is not valid for pod b"), "{refused}");
    let refused = admin.pods().logs(logs("b", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("agent of node n9 cannot be reached"), "{refused}");
    assert_eq!(trellis_proto::status::details(&refused).unwrap().reason, "ServiceUnavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_part_of_the_pod_network_in_the_first_term() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    create(&admin, "Node", &node).await.unwrap();
    eventually("the node has a pod CIDR", || async {
        let node = get(&admin, "", "Node", "", "n1").await.unwrap();
        node["spec"]["podCIDR"].as_str().is_some_and(|c| c.starts_with("10.244.") && c.ends_with("/24"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_told_the_objects_limit() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let map = |bytes: usize| {
        let mut map = config("big");
        map["data"]["k"] = "x".repeat(bytes).into();
        map
    };
    create(&admin, "ConfigMap", &config("big")).await.unwrap();
    let target = || key("", "ConfigMap", "default", "big");
    // 2 MiB would pass the transport's own limit, 5 MiB would not, 9 MiB passes none.
    for (mebibytes, limit) in [(2, "the limit is 1572864"), (5, "the limit is 1572864"), (9, "may have 1572864")] {
        let json: bytes::Bytes = map(mebibytes << 20).to_string().into();
        let patch: bytes::Bytes = json!({"data": {"k": "x".repeat(mebibytes << 20)}}).to_string().into();
        let mut client = admin.resources();
        let created = api::CreateRequest { key: target(), json: json.clone(), ..Default::default() };
        let applied = api::ApplyRequest { key: target(), json: json.clone(), ..Default::default() };
        let updated = api::UpdateRequest { key: target(), json, ..Default::default() };
        let patched = api::PatchRequest { key: target(), merge_patch: patch, ..Default::default() };
        let refusals = [
            ("create", client.create(created).await.unwrap_err()),
            ("apply", client.apply(applied).await.unwrap_err()),
            ("update", client.update(updated).await.unwrap_err()),
            ("patch", client.patch(patched).await.unwrap_err()),
        ];
        for (verb, refused) in refusals {
            assert_eq!(refused.code(), Code::ResourceExhausted, "{verb} of {mebibytes} MiB: {refused}");
            assert!(refused.message().contains(limit), "{verb} of {mebibytes} MiB: {refused}");
        }
    }
    // Under its own limit an object may be larger than a ConfigMap's data, which is told as such.
    let update = api::UpdateRequest { key: target(), json: map(1_200_000).to_string().into(), ..Default::default() };
    let refused = admin.resources().update(update).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("1048576"), "{refused}");
    let update = api::UpdateRequest { key: target(), json: map(1_000_000).to_string().into(), ..Default::default() };
    admin.resources().update(update).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_is_warned_about_for_what_it_says_itself() {
    let bed = Bed::start().await;
    let admin = bed.admin();
    let mut object = pod("a");
    object["spec"]["runtimeClassName"] = "other".into();
    let request =
        api::CreateRequest { key: key("", "Pod", "", ""), json: object.to_string().into(), ..Default::default() };
    let told = admin.resources().create(request).await.unwrap().into_inner().warnings;
    assert!(told.iter().any(|w| w.contains("spec.runtimeClassName")), "the control: {told:?}");
    let patch = async |patch: serde_json::Value| {
        let request = api::PatchRequest {
            key: key("", "Pod", "default", "a"),
            merge_patch: patch.to_string().into(),
            ..Default::default()
        };
        admin.resources().patch(request).await.unwrap().into_inner().warnings
    };
    assert_eq!(patch(json!({"metadata": {"labels": {"x": "y"}}})).await, Vec::<String>::new());
    let told = patch(json!({"metadata": {"colour": "red"}})).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("metadata.colour"), "{told:?}");
}
