#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use proptest::prelude::*;
use serde_json::json;

fn deployment(spec: Value) -> Value {
    json!({"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":spec})
}
fn template(pod: Value) -> Value {
    deployment(json!({"template":{"spec":pod}}))
}
fn pod_of(v: &Value) -> &Value {
    &v["spec"]["template"]["spec"]
}
fn merged(last: Value, live: Value, new: Value) -> Value {
    three_way(Kind::Deployment, Some(&last), &live, &new)
}

#[test]
fn what_others_set_stays_and_what_left_the_manifest_goes() {
    let last = deployment(json!({"replicas":3,"minReadySeconds":5}));
    let live = deployment(json!({"replicas":7,"minReadySeconds":5,"paused":true}));
    let new = deployment(json!({"replicas":3}));
    assert_eq!(merged(last, live, new)["spec"], json!({"replicas":3,"paused":true}));
}

#[test]
fn null_removes() {
    let live = deployment(json!({"replicas":7,"paused":true}));
    let new = deployment(json!({"paused":null}));
    assert_eq!(merged(json!({}), live, new)["spec"], json!({"replicas":7}));
}

#[test]
fn containers_merge_by_name() {
    let last = template(json!({"containers":[{"name":"a","image":"1"},{"name":"gone","image":"1"}]}));
    let live = template(json!({"containers":[
        {"name":"a","image":"1","imagePullPolicy":"Always"},{"name":"injected","image":"9"},{"name":"gone","image":"1"}]}));
    let new = template(json!({"containers":[{"name":"b","image":"2"},{"name":"a","image":"2"}]}));
    assert_eq!(
        pod_of(&merged(last, live, new)),
        &json!({"containers":[{"name":"b","image":"2"},
            {"name":"a","image":"2","imagePullPolicy":"Always"},{"name":"injected","image":"9"}]})
    );
}

#[test]
fn inner_lists() {
    let c = |v: Value| template(json!({"containers":[v]}));
    let last = c(json!({"name":"a","env":[{"name":"X","value":"1"}],"args":["a"]}));
    let live = c(json!({"name":"a","args":["a"],"env":[{"name":"X","value":"1"},{"name":"Y","value":"2"}],
        "ports":[{"containerPort":53,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]}));
    let new = c(json!({"name":"a","args":["b","c"],"env":[{"name":"Z","value":"3"}],
        "ports":[{"containerPort":53,"name":"dns"}]}));
    let got = merged(last, live, new);
    let got = &pod_of(&got)["containers"][0];
    assert_eq!(got["args"], json!(["b", "c"]));
    assert_eq!(got["env"], json!([{"name":"Y","value":"2"},{"name":"Z","value":"3"}]));
    assert_eq!(
        got["ports"],
        json!([{"containerPort":53,"protocol":"TCP","name":"dns"},{"containerPort":53,"protocol":"UDP"}])
    );
}

#[test]
fn unions_change_their_member() {
    let last = deployment(json!({"strategy":{"type":"RollingUpdate"}}));
    let live = deployment(json!({"strategy":{"type":"RollingUpdate","rollingUpdate":{"maxSurge":"25%"}}}));
    let same = merged(last.clone(), live.clone(), last.clone());
    assert_eq!(same["spec"], live["spec"]);
    let new = deployment(json!({"strategy":{"type":"Recreate"}}));
    assert_eq!(merged(last, live, new)["spec"]["strategy"], json!({"type":"Recreate"}));
    let v = |v: Value| template(json!({"volumes":[v]}));
    let got = merged(
        v(json!({"name":"v","emptyDir":{}})),
        v(json!({"name":"v","emptyDir":{}})),
        v(json!({"name":"v","configMap":{"name":"c"}})),
    );
    assert_eq!(pod_of(&got)["volumes"], json!([{"name":"v","configMap":{"name":"c"}}]));
}

#[test]
fn finalizers_are_a_set() {
    let m = |f: Value| json!({"metadata":{"name":"a","finalizers":f}});
    let got = merged(m(json!(["mine"])), m(json!(["mine", "theirs"])), m(json!(["new"])));
    assert_eq!(got["metadata"]["finalizers"], json!(["theirs", "new"]));
}

#[test]
fn what_the_server_owns_is_left_alone() {
    let live =
        json!({"metadata":{"name":"a","uid":"u","creationTimestamp":"t","resourceVersion":"7"},"status":{"x":1}});
    let new = json!({"metadata":{"name":"a","creationTimestamp":null},"status":{}});
    assert_eq!(merged(new.clone(), live.clone(), new), live);
}

#[test]
fn the_annotation_holds_the_manifest() {
    let manifest = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"v"}});
    let created = annotated(&manifest);
    assert_eq!(last_applied(&created), Some(manifest.clone()));
    assert_eq!(apply(Kind::ConfigMap, &created, &manifest), created);
    assert_eq!(annotated(&created), created, "the annotation never holds itself");
    let less = json!({"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}});
    let after = apply(Kind::ConfigMap, &created, &less);
    assert_eq!(after.get("data"), None);
    assert_eq!(last_applied(&after), Some(less));
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3_i64).prop_map(Value::from)]
}
fn container() -> impl Strategy<Value = Value> {
    ("[abc]", prop::option::of("[xy]"), prop::collection::vec("[pq]", 0..3), scalar()).prop_map(
        |(name, image, env, tty)| {
            let mut env = env;
            env.sort();
            env.dedup();
            let env: Vec<Value> = env.into_iter().map(|n| json!({"name": n, "value": "1"})).collect();
            json!({"name": name, "image": image, "env": env, "tty": tty})
        },
    )
}
fn manifest() -> impl Strategy<Value = Value> {
    (prop::collection::vec(container(), 0..4), scalar(), prop::collection::btree_map("[ab]", "[12]", 0..3)).prop_map(
        |(mut containers, replicas, labels)| {
            containers.sort_by_key(|c| c["name"].to_string());
            containers.dedup_by_key(|c| c["name"].to_string());
            json!({"metadata":{"name":"x","labels":labels},
                   "spec":{"replicas":replicas,"template":{"spec":{"containers":containers}}}})
        },
    )
}

proptest! {
    #[test]
    fn applying_twice_is_a_no_op(live in manifest(), last in manifest(), new in manifest()) {
        let mut live = without_nulls(&live);
        let note = json!({LAST_APPLIED: last.to_string()});
        live["metadata"]["annotations"] = note;
        let once = apply(Kind::Deployment, &live, &new);
        let twice = apply(Kind::Deployment, &once, &new);
        prop_assert_eq!(&once, &twice);
    }

    #[test]
    fn what_is_wanted_is_there(live in manifest(), last in manifest(), new in manifest()) {
        let got = three_way(Kind::Deployment, Some(&last), &without_nulls(&live), &new);
        for c in new["spec"]["template"]["spec"]["containers"].as_array().unwrap() {
            let list = got["spec"]["template"]["spec"]["containers"].as_array().unwrap();
            let found = list.iter().find(|x| x["name"] == c["name"]).unwrap();
            prop_assert!(c["image"].is_null() || found["image"] == c["image"]);
        }
        for (k, v) in new["metadata"]["labels"].as_object().unwrap() {
            prop_assert_eq!(&got["metadata"]["labels"][k], v);
        }
    }
}
