use super::*;

fn named(id: &str) -> WriteOptions {
    WriteOptions { request_id: id.into(), dry_run: false }
}

#[tokio::test]
async fn a_created_object_is_stamped_and_begins_canonically() {
    let bed = Bed::new().await;
    let mut sent = pod("p");
    sent["metadata"]["uid"] = "mine".into();
    sent["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z".into();
    sent["status"] = json!({"phase": "Running"});
    let made = bed.create(Kind::Pod, &sent).await.unwrap();
    let meta = &made["metadata"];
    assert_eq!(meta["namespace"], "default");
    assert_eq!(meta["generation"], 1);
    assert_eq!(meta["uid"].as_str().unwrap().len(), 36);
    assert_ne!(meta["creationTimestamp"], "2001-01-01T00:00:00Z");
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["qosClass"], "BestEffort");
    let stays: Vec<_> = made["spec"]["tolerations"].as_array().unwrap().iter().collect();
    assert!(stays.iter().all(|t| t["tolerationSeconds"] == 0), "{stays:?}");
    let answer = bed.ops.get(&admin(), &target(Kind::Pod, "p"), false).await.unwrap();
    let head = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"resourceVersion":""#;
    assert!(answer.json.starts_with(head));
    assert_eq!(read(&answer), made);
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    let error = refused(bed.create(Kind::Pod, &pod("p")).await);
    assert_eq!(error.to_string(), "pods \"p\" already exists");
}

#[tokio::test]
async fn names_are_generated_and_a_retried_create_makes_one() {
    let bed = Bed::new().await;
    let mut sent = pod("");
    sent["metadata"] = json!({"generateName": "web-"});
    let json = sent.to_string();
    let place = Target::new(Kind::Pod, "default", "");
    let go = |id: &'static str| {
        let (bed, json, place) = (&bed, &json, &place);
        async move { bed.ops.create(&admin(), place, json.as_bytes(), &named(id)).await.unwrap() }
    };
    let (first, again, other) = (go("r1").await, go("r1").await, go("r2").await);
    assert_eq!(read(&first), read(&again));
    assert_ne!(first.key, other.key);
    assert!(first.key.name.starts_with("web-") && first.key.name.len() == 9, "{}", first.key);
}

#[tokio::test]
async fn another_callers_request_id_is_another_request() {
    let bed = Bed::new().await;
    let place = Target::new(Kind::Event, "default", "");
    let event = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R",
            "type": "Normal"})
        .to_string()
    };
    let (one, two) = (event("one"), event("two"));
    bed.ops.create(&agent("n1"), &place, one.as_bytes(), &named("x")).await.unwrap();
    let made = bed.ops.create(&agent("n2"), &place, two.as_bytes(), &named("x")).await.unwrap();
    assert_eq!(made.key.name, "two");
}

#[tokio::test]
async fn a_namespace_must_be_there_and_not_terminate() {
    let bed = Bed::new().await;
    let mut sent = pod("p");
    sent["metadata"]["namespace"] = "dev".into();
    let error = refused(bed.create(Kind::Pod, &sent).await);
    assert_eq!(error.to_string(), "namespaces \"dev\" not found");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dev"}});
    let made = bed.create(Kind::Namespace, &namespace).await.unwrap();
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["status"]["phase"], "Active");
    bed.create(Kind::Pod, &sent).await.unwrap();
    let gone = bed.delete(&admin(), &Target::new(Kind::Namespace, "", "dev"), None).await.unwrap();
    assert!(!gone.removed);
    let left = read(&gone.answer);
    assert_eq!(left["status"]["phase"], "Terminating");
    assert!(left["metadata"]["deletionTimestamp"].is_string());
    sent["metadata"]["name"] = "q".into();
    let error = refused(bed.create(Kind::Pod, &sent).await).to_string();
    assert!(error.contains("because it is being terminated"), "{error}");
    let kept = bed.delete(&admin(), &Target::new(Kind::Namespace, "", "default"), None).await;
    assert!(matches!(refused(kept), ApiError::Forbidden { .. }));
}

#[tokio::test]
async fn every_problem_is_told_at_once() {
    let bed = Bed::new().await;
    let sent = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "UPPER"},
        "spec": {"containers": [{"name": "a"}]}});
    match refused(bed.create(Kind::Pod, &sent).await) {
        ApiError::Invalid { causes, .. } => {
            let fields: Vec<_> = causes.iter().map(|c| c.field.as_str()).collect();
            assert!(fields.contains(&"metadata.name"), "{fields:?}");
            assert!(fields.contains(&"spec.containers[0].image"), "{fields:?}");
        }
        other => panic!("{other}"),
    }
    let wrong = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": 5}]}});
    let error = refused(bed.create(Kind::Pod, &wrong).await).to_string();
    assert!(error.contains("spec.containers[0].image"), "{error}");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "p"}});
    let error = refused(bed.create(Kind::Pod, &service).await).to_string();
    assert!(error.contains("Service"), "{error}");
}

#[tokio::test]
async fn unknown_fields_are_warned_about() {
    let bed = Bed::new().await;
    let mut sent = pod("p");
    sent["spec"]["colour"] = "red".into();
    let json = sent.to_string();
    let place = Target::new(Kind::Pod, "default", "p");
    let made = bed.ops.create(&admin(), &place, json.as_bytes(), &WriteOptions::default()).await.unwrap();
    assert!(made.warnings.iter().any(|w| w.contains("spec.colour")), "{:?}", made.warnings);
}

#[tokio::test]
async fn a_dry_run_does_everything_but_store() {
    let bed = Bed::new().await;
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let place = target(Kind::Pod, "p");
    let json = pod("p").to_string();
    bed.ops.create(&admin(), &place, json.as_bytes(), &dry).await.unwrap();
    assert!(bed.ops.store().get(&place.key()).is_none());
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    let revision = bed.ops.store().revision();
    let patch = br#"{"metadata":{"labels":{"x":"y"}}}"#;
    bed.ops.patch(&admin(), &place, Part::Main, patch, &dry).await.unwrap();
    let args = DeleteArgs::default();
    bed.ops.delete(&admin(), &place, &args, &dry).await.unwrap();
    assert_eq!(bed.ops.store().revision(), revision);
}

#[tokio::test]
async fn an_update_from_an_old_revision_is_a_conflict() {
    let bed = Bed::new().await;
    let place = target(Kind::ConfigMap, "c");
    let mut object = bed.create(Kind::ConfigMap, &config_map("c", "1")).await.unwrap();
    object["data"]["k"] = "2".into();
    let text = object.to_string();
    let go = || async {
        let options = WriteOptions::default();
        bed.ops.update(&admin(), &place, Part::Main, text.as_bytes(), &options).await
    };
    go().await.unwrap();
    let error = refused(go().await);
    assert!(matches!(error, ApiError::Conflict { .. }));
    assert!(error.to_string().contains("the object has been modified"), "{error}");
    object["metadata"]["resourceVersion"] = Value::Null;
    object["metadata"]["uid"] = "other".into();
    let text = object.to_string();
    let options = WriteOptions::default();
    let other = bed.ops.update(&admin(), &place, Part::Main, text.as_bytes(), &options).await;
    assert!(refused(other).to_string().contains("UID in precondition"));
}

#[tokio::test]
async fn a_retried_update_is_answered() {
    let bed = Bed::new().await;
    let place = target(Kind::ConfigMap, "c");
    let mut object = bed.create(Kind::ConfigMap, &config_map("c", "1")).await.unwrap();
    object["data"]["k"] = "2".into();
    let text = object.to_string();
    for _ in 0..2 {
        let (me, once) = (admin(), named("u"));
        let done = bed.ops.update(&me, &place, Part::Main, text.as_bytes(), &once).await.unwrap();
        assert_eq!(read(&done)["data"]["k"], "2");
    }
    for _ in 0..2 {
        let args = DeleteArgs::default();
        assert!(bed.ops.delete(&admin(), &place, &args, &named("d")).await.unwrap().removed);
    }
    let gone = bed.ops.delete(&admin(), &place, &DeleteArgs::default(), &named("e")).await;
    assert!(matches!(refused(gone), ApiError::NotFound { .. }));
}

#[tokio::test]
async fn spec_and_status_are_written_apart() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    let place = target(Kind::Pod, "p");
    let both = json!({"metadata": {"labels": {"x": "y"}}, "status": {"phase": "Running"}});
    let main = bed.patch(&admin(), &place, Part::Main, both.clone()).await.unwrap();
    assert_eq!((&main["status"]["phase"], &main["metadata"]["labels"]["x"]), (&json!("Pending"), &json!("y")));
    let mut other = both;
    other["metadata"]["labels"]["x"] = "z".into();
    let status = bed.patch(&admin(), &place, Part::Status, other).await.unwrap();
    assert_eq!(status["status"]["phase"], "Running");
    assert_eq!(status["metadata"]["labels"]["x"], "y");
    assert_eq!(status["metadata"]["generation"], 1);
    assert!(Part::parse(Kind::ConfigMap, "status").is_err());
}

#[tokio::test]
async fn generation_rises_with_the_spec_and_equal_writes_change_nothing() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    let place = target(Kind::Pod, "p");
    let image = json!({"spec": {"containers": [{"name": "a", "image": "i:2"}]}});
    let made = bed.patch(&admin(), &place, Part::Main, image.clone()).await.unwrap();
    assert_eq!(made["metadata"]["generation"], 2);
    let revision = bed.ops.store().revision();
    let again = bed.patch(&admin(), &place, Part::Main, image).await.unwrap();
    assert_eq!(again, made);
    assert_eq!(bed.ops.store().revision(), revision);
}

#[tokio::test]
async fn many_patches_of_one_object_all_come_through() {
    let bed = Arc::new(Bed::new().await);
    bed.create(Kind::ConfigMap, &config_map("c", "1")).await.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let bed = Arc::clone(&bed);
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{i}"): "v"}});
                bed.patch(&admin(), &target(Kind::ConfigMap, "c"), Part::Main, patch).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let all = bed.get(&admin(), &target(Kind::ConfigMap, "c")).await.unwrap();
    assert_eq!(all["data"].as_object().unwrap().len(), 21);
}

#[tokio::test]
async fn apply_creates_configures_prunes_and_leaves_unchanged() {
    let bed = Bed::new().await;
    let place = target(Kind::ConfigMap, "c");
    let apply = |manifest: Value| {
        let (bed, place) = (&bed, &place);
        async move {
            let text = manifest.to_string();
            bed.ops.apply(&admin(), place, text.as_bytes(), &WriteOptions::default()).await.unwrap()
        }
    };
    let mut manifest = config_map("c", "1");
    manifest["data"]["old"] = "x".into();
    assert_eq!(apply(manifest.clone()).await.effect, Effect::Created);
    assert_eq!(apply(manifest.clone()).await.effect, Effect::Unchanged);
    // Somebody else's field stays, ours that is gone goes.
    bed.patch(&admin(), &place, Part::Main, json!({"data": {"theirs": "t"}})).await.unwrap();
    let done = apply(config_map("c", "2")).await;
    assert_eq!(done.effect, Effect::Configured);
    assert_eq!(read(&done)["data"], json!({"k": "2", "theirs": "t"}));
    // What `get -o yaml` wrote can be applied again.
    assert_eq!(apply(read(&done)).await.effect, Effect::Configured);
}

#[tokio::test]
async fn a_pod_goes_at_once_or_with_its_agent() {
    let bed = Bed::new().await;
    let place = target(Kind::Pod, "p");
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    assert!(bed.delete(&admin(), &place, None).await.unwrap().removed);
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    bed.bind("p", "n1").await;
    let marked = bed.delete(&admin(), &place, None).await.unwrap();
    assert!(!marked.removed);
    let meta = read(&marked.answer)["metadata"].clone();
    assert_eq!(meta["deletionGracePeriodSeconds"], 30);
    // A longer one changes nothing, a shorter one does, counted from the first delete.
    let longer = bed.delete(&admin(), &place, Some(60)).await.unwrap();
    assert_eq!(read(&longer.answer)["metadata"], meta);
    let shorter = bed.delete(&admin(), &place, Some(5)).await.unwrap();
    let shortened = read(&shorter.answer)["metadata"].clone();
    assert_eq!(shortened["deletionGracePeriodSeconds"], 5);
    let ends = |meta: &Value| meta["deletionTimestamp"].as_str().unwrap().parse::<Timestamp>().unwrap().as_second();
    assert_eq!(ends(&shortened), ends(&meta) - 25);
    assert!(bed.delete(&agent("n1"), &place, Some(0)).await.unwrap().removed);
    assert!(bed.ops.store().get(&place.key()).is_none());
}

#[tokio::test]
async fn only_a_grace_period_that_is_asked_for_shortens_the_one_that_runs() {
    let bed = Bed::new().await;
    let place = target(Kind::Pod, "p");
    bed.create(Kind::Pod, &pod("p")).await.unwrap();
    bed.bind("p", "n1").await;
    let marked = read(&bed.delete(&admin(), &place, Some(60)).await.unwrap().answer);
    let plain = bed.delete(&admin(), &place, None).await.unwrap();
    assert_eq!((plain.removed, read(&plain.answer)), (false, marked));
    assert!(bed.delete(&admin(), &place, Some(0)).await.unwrap().removed);
}

#[tokio::test]
async fn a_finished_pod_goes_at_once() {
    let bed = Bed::new().await;
    let place = target(Kind::Pod, "p");
    for phase in ["Succeeded", "Failed"] {
        bed.create(Kind::Pod, &pod("p")).await.unwrap();
        bed.bind("p", "n1").await;
        let status = json!({"status": {"phase": phase}});
        bed.patch(&agent("n1"), &place, Part::Status, status).await.unwrap();
        assert!(bed.delete(&admin(), &place, None).await.unwrap().removed, "{phase}");
    }
}

#[tokio::test]
async fn a_node_frees_its_name_whichever_way_it_goes() {
    let bed = Bed::new().await;
    let place = Target::new(Kind::Node, "", "n1");
    let registered = crate::api::names::registration("n1");
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    for held in [false, true] {
        let value = bytes::Bytes::from_static(b"{}");
        let put = Op::SysPut { key: registered.clone(), when: crate::store::SysWhen::Absent, value };
        assert!(matches!(bed.ops.commit(None, vec![put]).await.unwrap(), Committed::Done { .. }));
        if held {
            node["metadata"]["finalizers"] = json!(["example.com/a"]);
        }
        bed.create(Kind::Node, &node).await.unwrap();
        assert_eq!(bed.delete(&admin(), &place, None).await.unwrap().removed, !held);
        assert_eq!(bed.ops.store().sys_get(&registered).is_some(), held);
        if held {
            let patch = json!({"metadata": {"finalizers": null}});
            bed.patch(&admin(), &place, Part::Main, patch).await.unwrap();
        }
        assert!(bed.ops.store().get(&place.key()).is_none() && bed.ops.store().sys_get(&registered).is_none());
    }
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let bed = Bed::new().await;
    let place = target(Kind::ConfigMap, "c");
    let mut object = config_map("c", "1");
    object["metadata"]["finalizers"] = json!(["example.com/a"]);
    bed.create(Kind::ConfigMap, &object).await.unwrap();
    assert!(!bed.delete(&admin(), &place, None).await.unwrap().removed);
    assert!(!bed.delete(&admin(), &place, None).await.unwrap().removed);
    bed.get(&admin(), &place).await.unwrap();
    let patch = json!({"metadata": {"finalizers": null}});
    bed.patch(&admin(), &place, Part::Main, patch).await.unwrap();
    assert!(matches!(refused(bed.get(&admin(), &place).await), ApiError::NotFound { .. }));
}

#[tokio::test]
async fn deletion_keeps_its_preconditions_and_orphans_on_request() {
    let bed = Bed::new().await;
    let owner = bed.create(Kind::ConfigMap, &config_map("owner", "1")).await.unwrap();
    let mut object = config_map("owned", "1");
    object["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap",
        "name": "owner", "uid": owner["metadata"]["uid"]}]);
    bed.create(Kind::ConfigMap, &object).await.unwrap();
    let place = target(Kind::ConfigMap, "owner");
    let options = WriteOptions::default();
    for args in [
        DeleteArgs { uid: "other".into(), ..DeleteArgs::default() },
        DeleteArgs { revision: 1, ..DeleteArgs::default() },
    ] {
        let error = refused(bed.ops.delete(&admin(), &place, &args, &options).await);
        assert!(matches!(error, ApiError::Conflict { .. }), "{error}");
    }
    let args = DeleteArgs { orphan: true, ..DeleteArgs::default() };
    assert!(bed.ops.delete(&admin(), &place, &args, &options).await.unwrap().removed);
    let left = bed.get(&admin(), &target(Kind::ConfigMap, "owned")).await.unwrap();
    let owners = &left["metadata"]["ownerReferences"];
    assert!(owners.is_null() || *owners == json!([]), "{owners}");
}

#[tokio::test]
async fn a_secret_is_stored_sealed_and_read_in_clear() {
    let bed = Bed::new().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"password": "canary-4711"}});
    bed.create(Kind::Secret, &secret).await.unwrap();
    let place = target(Kind::Secret, "s");
    let stored = bed.ops.store().get(&place.key()).unwrap();
    assert!(stored.object.sealed);
    let text = String::from_utf8_lossy(&stored.object.json).into_owned();
    assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5LTQ3MTE"), "{text}");
    let read = bed.get(&admin(), &place).await.unwrap();
    assert_eq!(read["data"]["password"], "Y2FuYXJ5LTQ3MTE=");
    // A patch opens it and seals it again.
    let patch = json!({"data": {"more": "eA=="}});
    let patched = bed.patch(&admin(), &place, Part::Main, patch).await.unwrap();
    assert_eq!(patched["data"].as_object().unwrap().len(), 2);
}
