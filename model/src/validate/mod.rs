//! Kubernetes 1.35's validation rules and words, one file per family of kinds; every problem of an
//! object is told at once. Objects have been defaulted before.

mod config;
mod container;
mod dns;
mod env;
mod meta;
mod network_policy;
mod node;
mod pod;
mod pod_update;
mod probe;
mod security;
mod volume;
mod workload;

use serde::Serialize;
use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::object::Object;

/// Kubernetes' words for a change that may not be.
const IMMUTABLE: &str = "field is immutable";

/// Problems of a defaulted object that is to be created; none means that it is good.
pub fn create(object: &Object) -> Vec<FieldError> {
    let mut out = Vec::new();
    meta::create(object, &mut out);
    spec(object, &mut out);
    if let Object::Pod(pod) = object {
        pod_update::only_on_create(pod, &mut out);
    }
    out
}

/// Problems of `new`, defaulted, as the successor of `old`. What `old` broke already is not told
/// again: it was stored before there was that rule, and its status is still to be written.
pub fn update(old: &Object, new: &Object) -> Vec<FieldError> {
    let mut out = Vec::new();
    meta::update(old, new, &mut out);
    let mut of_spec = Vec::new();
    spec(new, &mut of_spec);
    if !of_spec.is_empty() {
        let mut before = Vec::new();
        spec(old, &mut before);
        of_spec.retain(|e| !before.contains(e));
    }
    out.append(&mut of_spec);
    match (old, new) {
        (Object::Pod(a), Object::Pod(b)) => pod_update::update(a, b, &mut out),
        (Object::Deployment(a), Object::Deployment(b)) => workload::deployment_update(a, b, &mut out),
        (Object::ReplicaSet(a), Object::ReplicaSet(b)) => workload::replica_set_update(a, b, &mut out),
        (Object::ConfigMap(a), Object::ConfigMap(b)) => config::config_map_update(a, b, &mut out),
        (Object::Secret(a), Object::Secret(b)) => config::secret_update(a, b, &mut out),
        (Object::Node(a), Object::Node(b)) => node::update(a, b, &mut out),
        _ => {}
    }
    out
}

fn spec(object: &Object, out: &mut Vec<FieldError>) {
    match object {
        Object::Namespace(_) => {}
        Object::Node(o) => node::node(o, out),
        Object::Pod(o) => pod::pod(o, out),
        Object::ReplicaSet(o) => workload::replica_set(o, out),
        Object::Deployment(o) => workload::deployment(o, out),
        Object::NetworkPolicy(o) => network_policy::network_policy(o, out),
        Object::ConfigMap(o) => config::config_map(o, out),
        Object::Secret(o) => config::secret(o, out),
        Object::Event(o) => config::event(o, out),
    }
}

/// Adds one Invalid error per complaint.
fn complain(out: &mut Vec<FieldError>, path: &Path, value: &str, complaints: Vec<String>) {
    out.extend(complaints.into_iter().map(|m| FieldError::invalid(path, value, &m)));
}

/// Refuses a value outside of the supported ones; absent passes.
fn one_of(out: &mut Vec<FieldError>, path: &Path, value: Option<&str>, supported: &[&str]) {
    if let Some(v) = value
        && !supported.contains(&v)
    {
        out.push(FieldError::not_supported(path, v, supported));
    }
}

/// Refuses a negative number; absent passes.
fn not_negative(out: &mut Vec<FieldError>, path: &Path, value: Option<i64>) {
    if let Some(v) = value
        && v < 0
    {
        out.push(FieldError::invalid(path, v, "must be greater than or equal to 0"));
    }
}

/// Refuses what is no port number.
fn port_number(out: &mut Vec<FieldError>, path: &Path, value: i32) {
    if !(1..=65535).contains(&value) {
        out.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

/// The value as JSON, for messages.
fn shown<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod refusals_tests;
#[cfg(test)]
mod tests;
