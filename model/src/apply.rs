//! What `apply` does: a three-way merge of what was last applied, what lives, and what is wanted
//! now, by the rules of kubectl's strategic merge.
//!
//! Maps merge key by key. What the last manifest had and the new one has not is removed; what
//! others set stays. Lists merge by the key that Kubernetes declares for them
//! (`patchMergeKey`), as sets where it says so (`patchStrategy: merge` of scalars), and are
//! replaced otherwise. `null` in a manifest removes.
//!
//! One difference from kubectl: ports of a container are told apart by number and protocol, not by
//! number alone, since kubectl loses one of two such ports (kubernetes/kubernetes#39188).

use serde_json::{Map, Value};

use crate::kind::Kind;

/// Where the last applied manifest is kept, as kubectl does.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Metadata that only the server writes: a manifest that carries it (from `get -o yaml`, or as
/// `creationTimestamp: null`) neither sets nor removes it.
const SERVERS_OWN: [&str; 7] = [
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
    "selfLink",
    "uid",
];

/// The manifest with its own text as annotation, as it is to be created or merged.
pub fn annotated(manifest: &Value) -> Value {
    let mut plain = manifest.clone();
    if let Some(meta) = plain.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(a) = meta.get_mut("annotations").and_then(Value::as_object_mut)
        && a.shift_remove(LAST_APPLIED).is_some()
        && a.is_empty()
    {
        meta.shift_remove("annotations");
    }
    // kubectl ends the text with a newline.
    let text = format!("{plain}\n");
    let mut out = plain;
    if let Some(root) = out.as_object_mut() {
        let meta = root.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Some(meta) = meta.as_object_mut() {
            let a = meta.entry("annotations").or_insert(Value::Null);
            if !a.is_object() {
                *a = Value::Object(Map::new());
            }
            if let Some(a) = a.as_object_mut() {
                a.insert(LAST_APPLIED.to_owned(), Value::String(text));
            }
        }
    }
    out
}

/// The manifest that was last applied to the object, if any was.
pub fn last_applied(live: &Value) -> Option<Value> {
    let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    serde_json::from_str(text).ok()
}

/// The whole of `apply` on an object that exists: `live` with `manifest` merged in, and the
/// annotation renewed.
pub fn apply(kind: Kind, live: &Value, manifest: &Value) -> Value {
    three_way(kind, last_applied(live).as_ref(), live, &annotated(manifest))
}

/// The new object: `live`, with what `last` had and `new` has no more removed, and all of `new`
/// set.
pub fn three_way(kind: Kind, last: Option<&Value>, live: &Value, new: &Value) -> Value {
    let mut new = new.clone();
    if let Some(root) = new.as_object_mut() {
        // The status is written by those who know it.
        root.shift_remove("status");
        if let Some(meta) = root.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in SERVERS_OWN {
                meta.shift_remove(field);
            }
        }
    }
    let mut last = last.cloned();
    if let Some(last) = last.as_mut().and_then(Value::as_object_mut) {
        last.shift_remove("status");
        if let Some(meta) = last.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in SERVERS_OWN.iter().chain(&["resourceVersion", "namespace", "name"]) {
                meta.shift_remove(*field);
            }
        }
    }
    Merge { kind }.value(&mut Vec::new(), last.as_ref(), Some(live), &new)
}

/// Tells an element of a list by its key.
type Identify = Box<dyn Fn(&Value) -> Option<String>>;

/// How a list merges.
enum ListRule {
    Replace,
    Set,
    Keyed(&'static str),
}

struct Merge {
    kind: Kind,
}

impl Merge {
    fn value<'n>(&self, path: &mut Vec<&'n str>, last: Option<&Value>, live: Option<&Value>, new: &'n Value) -> Value {
        match (live, new) {
            (Some(Value::Object(live)), Value::Object(new)) => {
                Value::Object(self.map(path, last.and_then(Value::as_object), live, new))
            }
            (Some(Value::Array(live)), Value::Array(new)) => {
                let last = last.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                Value::Array(self.list(path, last, live, new))
            }
            _ => without_nulls(new),
        }
    }

    fn map<'n>(
        &self,
        path: &mut Vec<&'n str>,
        last: Option<&Map<String, Value>>,
        live: &Map<String, Value>,
        new: &'n Map<String, Value>,
    ) -> Map<String, Value> {
        let mut out = live.clone();
        for key in last.into_iter().flat_map(Map::keys) {
            if !new.contains_key(key) {
                out.shift_remove(key);
            }
        }
        for (key, value) in new {
            if value.is_null() {
                out.shift_remove(key);
                continue;
            }
            path.push(key);
            let merged = self.value(path, last.and_then(|l| l.get(key)), live.get(key), value);
            path.pop();
            out.insert(key.clone(), merged);
        }
        if self.retains_only_new_keys(path) && out != *live {
            out.retain(|k, _| new.contains_key(k));
        }
        out
    }

    fn list<'n>(&self, path: &mut Vec<&'n str>, last: &[Value], live: &[Value], new: &'n [Value]) -> Vec<Value> {
        let id: Identify = match self.rule(path) {
            ListRule::Replace => return new.iter().map(without_nulls).collect(),
            ListRule::Set => Box::new(|v| Some(v.to_string())),
            ListRule::Keyed(key) => Box::new(move |v| identity(v, key)),
        };
        let ids = |list: &[Value]| -> Option<Vec<String>> { list.iter().map(&id).collect() };
        let (Some(live_ids), Some(new_ids)) = (ids(live), ids(new)) else {
            // An element without its key: Kubernetes refuses it; validation will say why.
            return new.iter().map(without_nulls).collect();
        };
        let last_ids: Vec<String> = last.iter().filter_map(&id).collect();
        let mut out: Vec<(String, Value)> = Vec::with_capacity(new.len());
        path.push("[]");
        for (id_, value) in new_ids.iter().zip(new) {
            let find =
                |ids: &[String], list: &[Value]| ids.iter().position(|i| i == id_).and_then(|i| list.get(i).cloned());
            let merged = self.value(path, find(&last_ids, last).as_ref(), find(&live_ids, live).as_ref(), value);
            out.push((id_.clone(), merged));
        }
        path.pop();
        // What others added stays, behind the element that it stood behind.
        let mut before: Option<&String> = None;
        for (id_, value) in live_ids.iter().zip(live) {
            if !new_ids.contains(id_) && !last_ids.contains(id_) {
                let at = before.and_then(|b| out.iter().position(|(i, _)| i == b).map(|i| i + 1)).unwrap_or(0);
                out.insert(at, (id_.clone(), value.clone()));
            }
            if out.iter().any(|(i, _)| i == id_) {
                before = Some(id_);
            }
        }
        out.into_iter().map(|(_, v)| v).collect()
    }

    /// The path below the Pod's spec, if it is there.
    fn in_pod_spec<'p, 'n>(&self, path: &'p [&'n str]) -> Option<&'p [&'n str]> {
        match self.kind {
            Kind::Pod => path.strip_prefix(&["spec"]),
            Kind::Deployment | Kind::ReplicaSet => path.strip_prefix(&["spec", "template", "spec"]),
            _ => None,
        }
    }

    /// `patchStrategy: retainKeys`: choosing another member of a union drops the former.
    fn retains_only_new_keys(&self, path: &[&str]) -> bool {
        if self.kind == Kind::Deployment && path == ["spec", "strategy"] {
            return true;
        }
        matches!(self.in_pod_spec(path), Some(["volumes" | "resourceClaims", "[]"]))
    }

    fn rule(&self, path: &[&str]) -> ListRule {
        if let Some(["metadata", field]) = path.get(path.len().saturating_sub(2)..) {
            match *field {
                "finalizers" => return ListRule::Set,
                "ownerReferences" => return ListRule::Keyed("uid"),
                _ => {}
            }
        }
        if self.kind == Kind::Node && path == ["spec", "podCIDRs"] {
            return ListRule::Set;
        }
        match self.in_pod_spec(path) {
            Some(
                [
                    "containers"
                    | "initContainers"
                    | "ephemeralContainers"
                    | "volumes"
                    | "imagePullSecrets"
                    | "resourceClaims"
                    | "schedulingGates",
                ],
            ) => ListRule::Keyed("name"),
            Some(["hostAliases"]) => ListRule::Keyed("ip"),
            Some(["topologySpreadConstraints"]) => ListRule::Keyed("topologyKey"),
            Some(["containers" | "initContainers" | "ephemeralContainers", "[]", field]) => match *field {
                "env" => ListRule::Keyed("name"),
                "ports" => ListRule::Keyed("containerPort"),
                "volumeMounts" => ListRule::Keyed("mountPath"),
                "volumeDevices" => ListRule::Keyed("devicePath"),
                _ => ListRule::Replace,
            },
            _ => ListRule::Replace,
        }
    }
}

fn identity(value: &Value, key: &str) -> Option<String> {
    let id = value.get(key)?;
    if key == "containerPort" {
        let protocol = value.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        return Some(format!("{id}/{protocol}"));
    }
    Some(id.to_string())
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(m) => {
            Value::Object(m.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect())
        }
        Value::Array(a) => Value::Array(a.iter().map(without_nulls).collect()),
        v => v.clone(),
    }
}

#[cfg(test)]
mod tests;
