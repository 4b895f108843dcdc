//! `describe`: one object in words, with its events.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;
use trellis_model::Kind;
use trellis_model::k8s_openapi::api::core::v1::{Node, Pod};
use trellis_model::quantity::Quantity;
use trellis_model::resources::{self, Amounts};

use super::choice::Choice;
use super::{Failures, select};
use crate::cli::Global;
use crate::error::CliError;
use crate::output::{self, columns, pod_status, table};
use crate::session::{Query, Session, identity};

pub const EXAMPLES: &str = "Examples:
  trellis describe pod web-1
  trellis describe node n1
  trellis describe deploy -l app=web";

/// Arguments of `describe`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE [NAME…] or TYPE/NAME…
    #[arg(value_name = "RESOURCE", required = true)]
    resources: Vec<String>,
    /// Labels of the objects
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
}

/// Describes each object.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let mut failures = Failures::new();
    let mut texts = Vec::new();
    let choice = Choice { labels: &args.selector, type_alone: true, ..Choice::default() };
    for t in choice.targets(&args.resources)? {
        for (kind, object) in select(&session, &[t], &args.selector, &mut failures).await? {
            let mut text = describe(kind, &object, Timestamp::now());
            if kind == Kind::Node {
                text.push_str(&pods_of_node(&session, &object).await?);
            }
            text.push_str(&events(&session, kind, &object).await?);
            texts.push(text);
        }
    }
    output::print(&texts.join("\n\n"))?;
    failures.end()
}

async fn pods_of_node(session: &Session, node: &Value) -> Result<String, CliError> {
    let query = Query { fields: format!("spec.nodeName={}", identity(node).1), ..Default::default() };
    let (pods, _) = session.list(Kind::Pod, &query).await?;
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = pods
        .iter()
        .map(|p| {
            let (ns, name) = identity(p);
            let c = pod_status::columns(p, now);
            vec![format!("  {ns}"), name.to_owned(), c.ready, c.status]
        })
        .collect();
    let table = table::render(["  Namespace", "Name", "Ready", "Status"], &rows);
    Ok(format!("Pods:  ({} in total)\n{table}{}", pods.len(), allocated(node, &pods)))
}

/// What the node's Pods ask for and may use, beside what it has for them. Those that have ended hold nothing.
fn allocated(node: &Value, pods: &[Value]) -> String {
    let typed = |v: &Value| serde_json::from_value::<Pod>(v.clone()).ok().filter(|p| !resources::is_finished(p));
    let (mut requests, mut limits) = (Amounts::default(), Amounts::default());
    for spec in pods.iter().filter_map(typed).filter_map(|p| p.spec) {
        requests.add(&resources::pod_requests(&spec));
        limits.add(&resources::pod_limits(&spec));
    }
    let has = serde_json::from_value::<Node>(node.clone()).map(|n| resources::node_allocatable(&n)).unwrap_or_default();
    let cell = |amount: i64, has: i64, shown: fn(i64) -> Quantity| {
        let percent = if has > 0 { i128::from(amount) * 100 / i128::from(has) } else { 0 };
        format!("{} ({percent}%)", shown(amount))
    };
    let row = |name: &str, of: fn(&Amounts) -> i64, shown: fn(i64) -> Quantity| {
        vec![format!("  {name}"), cell(of(&requests), of(&has), shown), cell(of(&limits), of(&has), shown)]
    };
    let rows = [
        row("cpu", |a| a.cpu_milli, Quantity::from_milli),
        row("memory", |a| a.memory_bytes, Quantity::from_bytes),
        row("ephemeral-storage", |a| a.ephemeral_storage_bytes, Quantity::from_bytes),
    ];
    format!("Allocated resources:\n{}", table::render(["  Resource", "Requests", "Limits"], &rows))
}

async fn events(session: &Session, kind: Kind, object: &Value) -> Result<String, CliError> {
    if kind == Kind::Event {
        return Ok(String::new());
    }
    let (ns, name) = identity(object);
    let namespace = if ns.is_empty() { "default" } else { ns };
    let query = Query {
        namespace: Some(namespace.to_owned()),
        fields: format!("involvedObject.kind={},involvedObject.name={name}", kind.name()),
        ..Default::default()
    };
    let (mut items, _) = session.list(Kind::Event, &query).await?;
    let uid = &object["metadata"]["uid"];
    items.retain(|e| e["involvedObject"]["uid"].is_null() || e["involvedObject"]["uid"] == *uid);
    items.sort_by_key(columns::last_seen);
    Ok(event_table(&items, Timestamp::now()))
}

fn event_table(items: &[Value], now: Timestamp) -> String {
    if items.is_empty() {
        return "Events:  <none>\n".to_owned();
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|e| {
            let r = columns::row(Kind::Event, e, true, now);
            let count = e["count"].as_i64().unwrap_or(1);
            let age = match count {
                1 => r[0].clone(),
                n => format!("{} (x{n} over {})", r[0], r[7]),
            };
            vec![format!("  {}", r[1]), r[2].clone(), age, r[5].clone(), r[6].clone()]
        })
        .collect();
    format!("Events:\n{}", table::render(["  Type", "Reason", "Age", "From", "Message"], &rows))
}

/// The object as text: what matters first, everything else below.
fn describe(kind: Kind, o: &Value, now: Timestamp) -> String {
    let mut head: Vec<(String, String)> = Vec::new();
    let mut line = |k: &str, v: String| head.push((format!("{k}:"), v));
    let meta = &o["metadata"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    line("Name", text(&meta["name"]));
    if kind.namespaced() {
        line("Namespace", text(&meta["namespace"]));
    }
    line("Labels", pairs(&meta["labels"]));
    line("Annotations", pairs(&meta["annotations"]));
    line("Created", text(&meta["creationTimestamp"]));
    if meta["deletionTimestamp"].is_string() {
        line("Deleted", text(&meta["deletionTimestamp"]));
    }
    if let Some(owner) = meta["ownerReferences"].as_array().and_then(|l| l.iter().find(|o| o["controller"] == true)) {
        line("Controlled By", format!("{}/{}", text(&owner["kind"]), text(&owner["name"])));
    }
    match kind {
        Kind::Pod => {
            let c = pod_status::columns(o, now);
            line("Status", c.status);
            line("Ready", c.ready);
            line("Restarts", c.restarts);
        }
        Kind::Node => {
            line("Status", columns::node_status(o));
            line("Roles", columns::node_roles(o));
        }
        Kind::Deployment | Kind::ReplicaSet => {
            line("Selector", columns::selector(&o["spec"]["selector"]));
            let n = |f: &str| o["status"][f].as_i64().unwrap_or(0);
            line(
                "Replicas",
                format!(
                    "{} desired | {} updated | {} total | {} available | {} unavailable",
                    o["spec"]["replicas"].as_i64().unwrap_or(1),
                    n("updatedReplicas"),
                    n("replicas"),
                    n("availableReplicas"),
                    n("unavailableReplicas")
                ),
            );
        }
        _ => {}
    }
    let width = head.iter().map(|(k, _)| k.len()).max().unwrap_or(0) + 2;
    let mut out = String::new();
    for (k, v) in head {
        let indented = v.replace('\n', &format!("\n{}", " ".repeat(width)));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{k:<width$}{indented}");
    }
    body(kind, o, &mut out);
    out
}

fn body(kind: Kind, o: &Value, out: &mut String) {
    if kind == Kind::Secret {
        out.push_str("Data:\n");
        for (k, v) in o["data"].as_object().into_iter().flatten() {
            // Sizes only: a description is read over shoulders.
            let bytes = v.as_str().map_or(0, decoded_len);
            let _ = writeln!(out, "  {k}:  {bytes} bytes");
        }
        return;
    }
    let skip = ["apiVersion", "kind", "metadata"];
    for (k, v) in o.as_object().into_iter().flatten().filter(|(k, _)| !skip.contains(&k.as_str())) {
        section(&title(k), v, 0, out);
    }
}

fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

fn pairs(map: &Value) -> String {
    let mut lines: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| *k != trellis_model::apply::LAST_APPLIED)
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    lines.sort();
    if lines.is_empty() { "<none>".to_owned() } else { lines.join("\n") }
}

/// `hostIP` → `Host IP`
fn title(key: &str) -> String {
    let mut out = String::new();
    let chars: Vec<char> = key.chars().collect();
    for (i, c) in chars.iter().enumerate() {
        let after_lower = i > 0 && chars[i - 1].is_lowercase();
        if c.is_uppercase() && after_lower {
            out.push(' ');
        }
        if i == 0 { out.extend(c.to_uppercase()) } else { out.push(*c) }
    }
    out
}

/// Fields whose keys people choose.
const MAPS: [&str; 9] =
    ["Labels", "Match Labels", "Annotations", "Node Selector", "Data", "Limits", "Requests", "Allocatable", "Capacity"];

fn section(name: &str, v: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match v {
        Value::Null => {}
        Value::String(s) if s.is_empty() => {}
        Value::Object(m) if m.is_empty() => {}
        Value::Array(a) if a.is_empty() => {}
        // Keys of these are data, not fields.
        Value::Object(m) if MAPS.contains(&name) => {
            let _ = writeln!(out, "{pad}{name}:");
            for (k, v) in m {
                let _ = writeln!(out, "{pad}  {k}:  {}", plain(v));
            }
        }
        Value::Object(m) => {
            let _ = writeln!(out, "{pad}{name}:");
            for (k, v) in m {
                section(&title(k), v, depth + 1, out);
            }
        }
        Value::Array(a) if a.iter().all(|i| !i.is_object()) => {
            let items: Vec<String> = a.iter().map(plain).collect();
            let _ = writeln!(out, "{pad}{name}:  {}", items.join(" "));
        }
        Value::Array(a) if a.iter().all(|i| i["type"].is_string() && i["status"].is_string()) => {
            let _ = writeln!(out, "{pad}{name}:");
            let rows: Vec<Vec<String>> = a
                .iter()
                .map(|c| {
                    let type_ = format!("{pad}  {}", plain(&c["type"]));
                    vec![type_, plain(&c["status"]), plain(&c["reason"]), plain(&c["message"])]
                })
                .collect();
            let first = format!("{pad}  Type");
            out.push_str(&table::render([first.as_str(), "Status", "Reason", "Message"], &rows));
        }
        // As hostIPs: nothing is to be told apart.
        Value::Array(a) if a.iter().all(|i| only_value(i).is_some()) => {
            let items: Vec<String> = a.iter().filter_map(only_value).map(plain).collect();
            let _ = writeln!(out, "{pad}{name}:  {}", items.join(" "));
        }
        Value::Array(a) => {
            let _ = writeln!(out, "{pad}{name}:");
            for item in a {
                match item["name"].as_str().or(item["key"].as_str()) {
                    Some(label) => section(label, &without_label(item, label), depth + 1, out),
                    None => dashed(item, depth + 1, out),
                }
            }
        }
        v => {
            let text = plain(v).replace('\n', &format!("\n{pad}  "));
            let _ = writeln!(out, "{pad}{name}:  {text}");
        }
    }
}

/// The value of an object that has one, and only one.
fn only_value(item: &Value) -> Option<&Value> {
    let fields = item.as_object().filter(|m| m.len() == 1)?;
    fields.values().next().filter(|v| !v.is_object() && !v.is_array())
}

/// An item without a name: a dash before its first field.
fn dashed(item: &Value, depth: usize, out: &mut String) {
    let mut text = String::new();
    for (k, v) in item.as_object().into_iter().flatten() {
        section(&title(k), v, depth + 1, &mut text);
    }
    let pad = "  ".repeat(depth);
    if let Some(rest) = text.strip_prefix(&format!("{pad}  ")) {
        let _ = write!(out, "{pad}- {rest}");
    }
}

/// The item without the field that it is listed by.
fn without_label(item: &Value, label: &str) -> Value {
    let mut item = item.clone();
    if let Some(m) = item.as_object_mut()
        && m.len() > 1
    {
        let by = if m.get("name").is_some_and(|n| n == label) { "name" } else { "key" };
        m.shift_remove(by);
    }
    item
}

fn plain(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        v => v.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_in_words() {
        let o = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-1","namespace":"default","labels":{"b":"2","a":"1"},
              "creationTimestamp":"2026-01-01T00:00:00Z","ownerReferences":[{"kind":"ReplicaSet","name":"web","controller":true}]},
            "spec":{"nodeName":"n1","containers":[{"name":"c","image":"x","args":["a","b"]}]},
            "status":{"phase":"Running","hostIP":"172.30.0.11","conditions":[{"type":"Ready","status":"False","reason":"ContainersNotReady","message":"m"}]}});
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        assert_eq!(
            describe(Kind::Pod, &o, now),
            "Name:           web-1\n\
             Namespace:      default\n\
             Labels:         a=1\n                b=2\n\
             Annotations:    <none>\n\
             Created:        2026-01-01T00:00:00Z\n\
             Controlled By:  ReplicaSet/web\n\
             Status:         Running\n\
             Ready:          0/1\n\
             Restarts:       0\n\
             Spec:\n  Node Name:  n1\n  Containers:\n    c:\n      Image:  x\n      Args:  a b\n\
             Status:\n  Phase:  Running\n  Host IP:  172.30.0.11\n  Conditions:\n    Type    Status   Reason               Message\n    Ready   False    ContainersNotReady   m\n"
        );
    }

    #[test]
    fn lists_are_told_by_name_by_value_or_with_a_dash() {
        let told = |name: &str, v: Value| {
            let mut out = String::new();
            section(name, &v, 0, &mut out);
            out
        };
        assert_eq!(
            told("Host IPs", json!([{"ip": "172.30.0.11"}, {"ip": "fd00::11"}])),
            "Host IPs:  172.30.0.11 fd00::11\n"
        );
        assert_eq!(title("podIPs"), "Pod IPs");
        assert_eq!(
            told("Ports", json!([{"containerPort": 80, "protocol": "TCP"}, {"name": "m", "containerPort": 9}])),
            "Ports:\n  - Container Port:  80\n    Protocol:  TCP\n  m:\n    Container Port:  9\n"
        );
        assert_eq!(
            told("Tolerations", json!([{"key": "a", "operator": "Exists"}])),
            "Tolerations:\n  a:\n    Operator:  Exists\n"
        );
    }

    #[test]
    fn what_a_nodes_pods_take() {
        let node = json!({"metadata":{"name":"n1"},"status":{"allocatable":{"cpu":"2","memory":"1Gi","ephemeral-storage":"10Gi"}}});
        let pod = |phase: &str| {
            json!({"metadata":{"name":"p"},"status":{"phase":phase},"spec":{"containers":[
                {"name":"a","resources":{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"memory":"128Mi"}}},
                {"name":"b","resources":{"requests":{"cpu":"150m"}}}]}})
        };
        assert_eq!(
            allocated(&node, &[pod("Running"), pod("Succeeded"), pod("Pending")]),
            "Allocated resources:\n  \
             Resource            Requests      Limits\n  \
             cpu                 500m (25%)    0 (0%)\n  \
             memory              128Mi (12%)   256Mi (25%)\n  \
             ephemeral-storage   0 (0%)        0 (0%)\n"
        );
    }

    #[test]
    fn secrets_stay_secret() {
        let o = json!({"metadata":{"name":"s"},"data":{"pw":"aHVudGVyMg=="}});
        let text = describe(Kind::Secret, &o, Timestamp::UNIX_EPOCH);
        assert!(text.contains("pw:  7 bytes") && !text.contains("aHV"), "{text}");
    }
}
