//! kubectl's columns for each kind.

use jiff::Timestamp;
use serde_json::Value;
use trellis_model::Kind;
use trellis_model::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sSelector;
use trellis_model::selector::LabelSelector;

use super::{age, pod_status};

const NONE: &str = "<none>";

/// Headers; the wide ones come behind.
pub fn headers(kind: Kind, wide: bool) -> Vec<&'static str> {
    let (narrow, more): (&[&str], &[&str]) = match kind {
        Kind::Pod => {
            (&["NAME", "READY", "STATUS", "RESTARTS", "AGE"], &["IP", "NODE", "NOMINATED NODE", "READINESS GATES"])
        }
        Kind::Node => (
            &["NAME", "STATUS", "ROLES", "AGE", "VERSION"],
            &["INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"],
        ),
        Kind::Deployment => {
            (&["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"], &["CONTAINERS", "IMAGES", "SELECTOR"])
        }
        Kind::ReplicaSet => (&["NAME", "DESIRED", "CURRENT", "READY", "AGE"], &["CONTAINERS", "IMAGES", "SELECTOR"]),
        Kind::Namespace => (&["NAME", "STATUS", "AGE"], &[]),
        Kind::NetworkPolicy => (&["NAME", "POD-SELECTOR", "AGE"], &[]),
        Kind::ConfigMap => (&["NAME", "DATA", "AGE"], &[]),
        Kind::Secret => (&["NAME", "TYPE", "DATA", "AGE"], &[]),
        Kind::Event if wide => (
            &["LAST SEEN", "TYPE", "REASON", "OBJECT", "SUBOBJECT", "SOURCE", "MESSAGE", "FIRST SEEN", "COUNT", "NAME"],
            &[],
        ),
        Kind::Event => (&["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &[]),
    };
    let mut out = narrow.to_vec();
    if wide {
        out.extend(more);
    }
    out
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or_default()
}
fn or_none(v: &Value) -> String {
    Some(text(v)).filter(|t| !t.is_empty()).unwrap_or(NONE).to_owned()
}
fn number(v: &Value) -> String {
    v.as_i64().unwrap_or(0).to_string()
}
fn list(v: &Value) -> &[Value] {
    v.as_array().map(Vec::as_slice).unwrap_or_default()
}
fn size(v: &Value) -> usize {
    v.as_object().map_or(0, serde_json::Map::len)
}

/// The cells of one object.
pub fn row(kind: Kind, o: &Value, wide: bool, now: Timestamp) -> Vec<String> {
    let name = text(&o["metadata"]["name"]).to_owned();
    let age = age::since(&o["metadata"]["creationTimestamp"], now);
    let (spec, status) = (&o["spec"], &o["status"]);
    match kind {
        Kind::Pod => pod(o, name, age, wide, now),
        Kind::Node => node(o, name, age, wide),
        Kind::Deployment => {
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            let mut out = vec![
                name,
                format!("{}/{wanted}", number(&status["readyReplicas"])),
                number(&status["updatedReplicas"]),
                number(&status["availableReplicas"]),
                age,
            ];
            if wide {
                out.extend(template(spec));
            }
            out
        }
        Kind::ReplicaSet => {
            let mut out = vec![
                name,
                spec["replicas"].as_i64().unwrap_or(1).to_string(),
                number(&status["replicas"]),
                number(&status["readyReplicas"]),
                age,
            ];
            if wide {
                out.extend(template(spec));
            }
            out
        }
        Kind::Namespace => vec![name, text(&status["phase"]).to_owned(), age],
        Kind::NetworkPolicy => vec![name, selector(&spec["podSelector"]), age],
        Kind::ConfigMap => vec![name, (size(&o["data"]) + size(&o["binaryData"])).to_string(), age],
        Kind::Secret => vec![name, text(&o["type"]).to_owned(), size(&o["data"]).to_string(), age],
        Kind::Event => event(o, name, wide, now),
    }
}

fn pod(o: &Value, name: String, age: String, wide: bool, now: Timestamp) -> Vec<String> {
    let c = pod_status::columns(o, now);
    let mut out = vec![name, c.ready, c.status, c.restarts, age];
    if wide {
        let gates = list(&o["spec"]["readinessGates"]);
        let met = |g: &&Value| {
            list(&o["status"]["conditions"]).iter().any(|c| c["type"] == g["conditionType"] && c["status"] == "True")
        };
        out.push(or_none(&o["status"]["podIP"]));
        out.push(or_none(&o["spec"]["nodeName"]));
        out.push(or_none(&o["status"]["nominatedNodeName"]));
        out.push(match gates.len() {
            0 => NONE.to_owned(),
            n => format!("{}/{n}", gates.iter().filter(met).count()),
        });
    }
    out
}

/// `Ready,SchedulingDisabled`
pub fn node_status(o: &Value) -> String {
    let ready = list(&o["status"]["conditions"]).iter().find(|c| c["type"] == "Ready");
    let mut out = match ready {
        None => "Unknown",
        Some(c) if c["status"] == "True" => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if o["spec"]["unschedulable"] == true {
        out.push_str(",SchedulingDisabled");
    }
    out
}

/// `control-plane,worker`
pub fn node_roles(o: &Value) -> String {
    let labels = o["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(r) if !r.is_empty() => Some(r),
            _ if k == "kubernetes.io/role" => v.as_str(),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

fn node(o: &Value, name: String, age: String, wide: bool) -> Vec<String> {
    let info = &o["status"]["nodeInfo"];
    let mut out = vec![name, node_status(o), node_roles(o), age, text(&info["kubeletVersion"]).to_owned()];
    if wide {
        let address = |t: &str| {
            let found = list(&o["status"]["addresses"]).iter().find(|a| a["type"] == t);
            found.map_or_else(|| NONE.to_owned(), |a| or_none(&a["address"]))
        };
        let unknown = |v: &Value| Some(text(v)).filter(|t| !t.is_empty()).unwrap_or("<unknown>").to_owned();
        out.push(address("InternalIP"));
        out.push(address("ExternalIP"));
        out.push(unknown(&info["osImage"]));
        out.push(unknown(&info["kernelVersion"]));
        out.push(unknown(&info["containerRuntimeVersion"]));
    }
    out
}

fn template(spec: &Value) -> [String; 3] {
    let containers = list(&spec["template"]["spec"]["containers"]);
    let each = |f: &str| containers.iter().map(|c| text(&c[f])).collect::<Vec<_>>().join(",");
    [each("name"), each("image"), selector(&spec["selector"])]
}

/// A metav1.LabelSelector in kubectl's syntax.
pub fn selector(value: &Value) -> String {
    let parsed = serde_json::from_value::<K8sSelector>(value.clone()).unwrap_or_default();
    match LabelSelector::from_k8s(&parsed) {
        Ok(s) if s.is_everything() => NONE.to_owned(),
        Ok(s) => s.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// When an event was last seen.
pub fn last_seen(o: &Value) -> Option<Timestamp> {
    let series = age::time(&o["series"]["lastObservedTime"]);
    let last = age::time(&o["lastTimestamp"]);
    series.or(last).or_else(|| age::time(&o["eventTime"])).or_else(|| age::time(&o["metadata"]["creationTimestamp"]))
}

fn event(o: &Value, name: String, wide: bool, now: Timestamp) -> Vec<String> {
    let ago = |t: Option<Timestamp>| {
        t.map_or_else(|| "<unknown>".to_owned(), |t| age::human(now.as_second() - t.as_second()))
    };
    let about = &o["involvedObject"];
    let object = format!("{}/{}", text(&about["kind"]).to_ascii_lowercase(), text(&about["name"]));
    let message = text(&o["message"]).trim().to_owned();
    let mut out = vec![ago(last_seen(o)), text(&o["type"]).to_owned(), text(&o["reason"]).to_owned(), object];
    if wide {
        let component = text(&o["source"]["component"]);
        let component = if component.is_empty() { text(&o["reportingComponent"]) } else { component };
        let source = match text(&o["source"]["host"]) {
            "" => component.to_owned(),
            host => format!("{component}, {host}"),
        };
        out.push(text(&about["fieldPath"]).to_owned());
        out.push(source);
        out.push(message);
        out.push(ago(age::time(&o["firstTimestamp"]).or_else(|| age::time(&o["eventTime"]))));
        out.push(o["count"].as_i64().unwrap_or(1).to_string());
        out.push(name);
    } else {
        out.push(message);
    }
    out
}

/// All labels of an object, as `--show-labels` prints them.
pub fn labels(o: &Value) -> String {
    let map = o["metadata"]["labels"].as_object();
    let mut all: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", text(v))).collect();
    all.sort();
    if all.is_empty() { NONE.to_owned() } else { all.join(",") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::output::table;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }
    fn meta(name: &str) -> Value {
        json!({"name":name,"namespace":"default","creationTimestamp":"2026-01-01T00:55:00Z"})
    }
    fn print(kind: Kind, items: &[Value], wide: bool) -> String {
        let rows: Vec<_> = items.iter().map(|o| row(kind, o, wide, now())).collect();
        table::render(headers(kind, wide), &rows)
    }

    #[test]
    fn pods() {
        let a = json!({"metadata":meta("web-1"),"spec":{"nodeName":"n1","containers":[{"name":"c"}]},
            "status":{"phase":"Running","podIP":"10.244.1.7","containerStatuses":[{"name":"c","ready":true,"restartCount":0,"state":{"running":{}}}]}});
        let b = json!({"metadata":meta("b"),"spec":{"containers":[{"name":"c"}]},"status":{"phase":"Pending"}});
        assert_eq!(
            print(Kind::Pod, &[a.clone(), b.clone()], false),
            "NAME    READY   STATUS    RESTARTS   AGE\n\
             web-1   1/1     Running   0          5m\n\
             b       0/1     Pending   0          5m\n"
        );
        assert_eq!(
            print(Kind::Pod, &[a, b], true),
            "NAME    READY   STATUS    RESTARTS   AGE   IP           NODE     NOMINATED NODE   READINESS GATES\n\
             web-1   1/1     Running   0          5m    10.244.1.7   n1       <none>           <none>\n\
             b       0/1     Pending   0          5m    <none>       <none>   <none>           <none>\n"
        );
    }

    #[test]
    fn nodes() {
        let mut m = meta("n1");
        m["labels"] = json!({"node-role.kubernetes.io/worker":"","node-role.kubernetes.io/control-plane":""});
        let n = json!({"metadata":m,"spec":{"unschedulable":true},"status":{"conditions":[{"type":"Ready","status":"True"}],
            "nodeInfo":{"kubeletVersion":"v0.1.0","osImage":"Debian","kernelVersion":"6.18","containerRuntimeVersion":"trellis://0.1.0"},
            "addresses":[{"type":"InternalIP","address":"172.30.0.11"}]}});
        assert_eq!(
            print(Kind::Node, std::slice::from_ref(&n), false),
            "NAME   STATUS                     ROLES                  AGE   VERSION\n\
             n1     Ready,SchedulingDisabled   control-plane,worker   5m    v0.1.0\n"
        );
        assert_eq!(
            row(Kind::Node, &n, true, now())[5..],
            ["172.30.0.11", "<none>", "Debian", "6.18", "trellis://0.1.0"]
        );
        let lost = json!({"metadata":meta("n2"),"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}});
        assert_eq!(row(Kind::Node, &lost, false, now())[1..3], ["NotReady", "<none>"]);
    }

    #[test]
    fn workloads() {
        let d = json!({"metadata":meta("web"),"spec":{"replicas":3,"selector":{"matchLabels":{"app":"web"}},
            "template":{"spec":{"containers":[{"name":"c","image":"nginx:1"},{"name":"d","image":"x"}]}}},
            "status":{"readyReplicas":2,"updatedReplicas":3,"availableReplicas":2}});
        assert_eq!(
            print(Kind::Deployment, &[d], true),
            "NAME   READY   UP-TO-DATE   AVAILABLE   AGE   CONTAINERS   IMAGES      SELECTOR\n\
             web    2/3     3            2           5m    c,d          nginx:1,x   app=web\n"
        );
        let r = json!({"metadata":meta("web-1"),"spec":{"replicas":3},"status":{"replicas":3}});
        assert_eq!(row(Kind::ReplicaSet, &r, false, now()), ["web-1", "3", "3", "0", "5m"]);
    }

    #[test]
    fn the_others() {
        let s = json!({"metadata":meta("s"),"type":"Opaque","data":{"a":"","b":""}});
        assert_eq!(row(Kind::Secret, &s, false, now()), ["s", "Opaque", "2", "5m"]);
        let c = json!({"metadata":meta("c"),"data":{"a":""},"binaryData":{"b":""}});
        assert_eq!(row(Kind::ConfigMap, &c, false, now()), ["c", "2", "5m"]);
        let p = json!({"metadata":meta("p"),"spec":{"podSelector":{}}});
        assert_eq!(row(Kind::NetworkPolicy, &p, false, now()), ["p", "<none>", "5m"]);
        let e = json!({"metadata":meta("e"),"type":"Warning","reason":"BackOff","message":"restarting\n","count":4,
            "involvedObject":{"kind":"Pod","name":"web-1"},"lastTimestamp":"2026-01-01T00:59:00Z"});
        assert_eq!(row(Kind::Event, &e, false, now()), ["60s", "Warning", "BackOff", "pod/web-1", "restarting"]);
    }

    #[test]
    fn every_row_is_as_long_as_its_header() {
        for k in Kind::ALL {
            for wide in [false, true] {
                assert_eq!(row(k, &json!({}), wide, now()).len(), headers(k, wide).len(), "{k} {wide}");
            }
        }
    }
}
