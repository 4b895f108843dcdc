#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use crate::kind::Kind;
use serde_json::{Value, json};

fn defaulted(v: Value) -> Value {
    let kind = Object::kind_of_value(&v).unwrap();
    let (mut o, unknown) = Object::from_value(kind, &v).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    apply(&mut o);
    let once = o.clone();
    apply(&mut o);
    assert_eq!(once, o, "defaulting twice must change nothing more");
    o.to_value()
}

#[test]
fn pod() {
    let v = defaulted(json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{
        "containers":[{"name":"c","image":"nginx","ports":[{"containerPort":80}],
            "resources":{"limits":{"cpu":"1"}},
            "livenessProbe":{"httpGet":{"port":80}},
            "env":[{"name":"N","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}]}],
        "volumes":[{"name":"e"},{"name":"s","secret":{"secretName":"x"}},{"name":"m","configMap":{"name":"y","defaultMode":256}}]
    }}));
    let spec = &v["spec"];
    assert_eq!(spec["restartPolicy"], "Always");
    assert_eq!(spec["dnsPolicy"], "ClusterFirst");
    assert_eq!(spec["terminationGracePeriodSeconds"], 30);
    assert_eq!(spec["schedulerName"], "default-scheduler");
    assert_eq!(spec["enableServiceLinks"], true);
    assert_eq!(spec["securityContext"], json!({}));
    let c = &spec["containers"][0];
    assert_eq!(c["imagePullPolicy"], "Always");
    assert_eq!(c["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(c["ports"][0]["protocol"], "TCP");
    assert_eq!(c["resources"]["requests"]["cpu"], "1");
    assert_eq!(
        c["livenessProbe"],
        json!({"httpGet":{"port":80,"path":"/","scheme":"HTTP"},"timeoutSeconds":1,
               "periodSeconds":10,"successThreshold":1,"failureThreshold":3})
    );
    assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
    assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
    assert_eq!(spec["volumes"][2]["configMap"]["defaultMode"], 256);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 0);
}

#[test]
fn own_tolerations_are_honoured() {
    let v = defaulted(json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{
        "containers":[],
        "tolerations":[{"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":60}]}}));
    assert_eq!(v["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(v["spec"]["tolerations"][0]["tolerationSeconds"], 60);
    let v = defaulted(json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{
        "containers":[], "tolerations":[{"operator":"Exists"}]}}));
    assert_eq!(v["spec"]["tolerations"].as_array().unwrap().len(), 1);
}

#[test]
fn pull_policy_by_tag() {
    for (image, want) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("reg:5000/nginx", "Always"),
        ("reg:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:aa", "IfNotPresent"),
        ("nginx:latest@sha256:aa", "Always"),
        ("reg:5000/nginx:latest@sha256:aa", "Always"),
        ("nginx:1.27@sha256:aa", "IfNotPresent"),
    ] {
        assert_eq!(image_pull_policy(image), want, "{image}");
    }
}

#[test]
fn deployment_and_its_template() {
    let v = defaulted(json!({"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},
        "spec":{"selector":{},"template":{"spec":{"containers":[{"name":"c","image":"x:1"}]}}}}));
    assert_eq!(v["spec"]["replicas"], 1);
    assert_eq!(v["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(v["spec"]["revisionHistoryLimit"], 10);
    assert_eq!(v["spec"]["progressDeadlineSeconds"], 600);
    assert_eq!(v["spec"]["template"]["spec"]["restartPolicy"], "Always");
    assert_eq!(v["spec"]["template"]["spec"].get("tolerations"), None);
}

#[test]
fn only_a_pods_own_ports_become_the_hosts() {
    let spec = json!({"hostNetwork":true,"containers":[{"name":"c","image":"x","ports":[{"containerPort":80}]}]});
    let v = defaulted(json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":spec}));
    assert_eq!(v["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    let v = defaulted(json!({"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},
        "spec":{"selector":{},"template":{"spec":spec}}}));
    assert_eq!(v["spec"]["template"]["spec"]["containers"][0]["ports"][0].get("hostPort"), None);
    let v = defaulted(json!({"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"name":"a"},
        "spec":{"selector":{},"template":{"spec":spec}}}));
    assert_eq!(v["spec"]["template"]["spec"]["containers"][0]["ports"][0].get("hostPort"), None);
}

#[test]
fn the_others() {
    let v = defaulted(json!({"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}));
    assert_eq!(v["metadata"]["labels"]["kubernetes.io/metadata.name"], "a");
    let v = defaulted(json!({"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"},"stringData":{"k":"v"}}));
    assert_eq!((&v["type"], &v["data"]["k"]), (&json!("Opaque"), &json!("dg==")));
    assert_eq!(v.get("stringData"), None);
    let v = defaulted(json!({"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a"},
        "spec":{"podSelector":{},"egress":[{"ports":[{"port":53}]}]}}));
    assert_eq!(v["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(v["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
}

#[test]
fn first_status() {
    let (mut o, _) = Object::from_value(
        Kind::Pod,
        &json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c"}]},
                "status":{"phase":"Running"}}),
    )
    .unwrap();
    initial_status(&mut o);
    assert_eq!(o.to_value()["status"], json!({"phase":"Pending","qosClass":"BestEffort"}));
}
