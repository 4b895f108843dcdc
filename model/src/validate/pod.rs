//! Rules for Pods and Pod templates.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec, Toleration};

use super::{complain, container, dns, meta, not_negative, one_of, security, volume};
use crate::field::{FieldError, Path};
use crate::names;

pub(super) fn pod(o: &Pod, out: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    match &o.spec {
        Some(s) => pod_spec(s, true, &path, out),
        None => out.push(FieldError::required(&path, "")),
    }
}

pub(super) fn template(t: &PodTemplateSpec, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(m) = &t.metadata {
        meta::labels(m.labels.as_ref(), &path.child("metadata").child("labels"), out);
        meta::annotations(m.annotations.as_ref(), &path.child("metadata").child("annotations"), out);
    }
    match &t.spec {
        Some(s) => pod_spec(s, false, &path.child("spec"), out),
        None => out.push(FieldError::required(&path.child("spec"), "")),
    }
}

/// `of_pod`: not of a template, whose Pods get further defaults.
fn pod_spec(s: &PodSpec, of_pod: bool, path: &Path, out: &mut Vec<FieldError>) {
    let volumes = volume::volumes(s.volumes.as_deref().unwrap_or_default(), &path.child("volumes"), out);
    container::containers(s, &volumes, path, out);
    one_of(out, &path.child("restartPolicy"), s.restart_policy.as_deref(), &["Always", "Never", "OnFailure"]);
    dns::dns(s, path, out);
    host_namespaces(s, of_pod, path, out);
    pod_names(s, path, out);
    meta::labels(s.node_selector.as_ref(), &path.child("nodeSelector"), out);
    not_negative(out, &path.child("terminationGracePeriodSeconds"), s.termination_grace_period_seconds);
    if let Some(v) = s.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&v)
    {
        let p = path.child("activeDeadlineSeconds");
        out.push(FieldError::invalid(&p, v, "must be between 1 and 2147483647, inclusive"));
    }
    for (i, t) in s.tolerations.iter().flatten().enumerate() {
        toleration(t, &path.child("tolerations").index(i), out);
    }
    security::pod(s, &path.child("securityContext"), out);
    gates(s, path, out);
    for (i, r) in s.image_pull_secrets.iter().flatten().enumerate() {
        if r.name.is_empty() {
            let p = path.child("imagePullSecrets").index(i).child("name");
            out.push(FieldError::required(&p, ""));
        }
    }
}

fn gates(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (i, gate) in s.scheduling_gates.iter().flatten().enumerate() {
        let p = path.child("schedulingGates").index(i);
        complain(out, &p, &gate.name, names::check_qualified_name(&gate.name));
        if !seen.insert(gate.name.as_str()) {
            out.push(FieldError::duplicate(&p, gate.name.as_str()));
        }
    }
    for (i, gate) in s.readiness_gates.iter().flatten().enumerate() {
        let p = path.child("readinessGates").index(i).child("conditionType");
        complain(out, &p, &gate.condition_type, names::check_qualified_name(&gate.condition_type));
    }
}

fn host_namespaces(s: &PodSpec, of_pod: bool, path: &Path, out: &mut Vec<FieldError>) {
    if s.share_process_namespace == Some(true) && s.host_pid == Some(true) {
        out.push(FieldError::invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    let mut taken = BTreeSet::new();
    for (i, c) in s.containers.iter().enumerate() {
        for (j, port) in c.ports.iter().flatten().enumerate() {
            let p = path.child("containers").index(i).child("ports").index(j);
            let host = port.host_port.unwrap_or(0);
            if s.host_network == Some(true) && (of_pod || host != 0) && host != port.container_port {
                let m = "must match `containerPort` when `hostNetwork` is true";
                out.push(FieldError::invalid(&p.child("hostPort"), host, m));
            }
            let protocol = port.protocol.clone().unwrap_or_default();
            let key = (host, protocol, port.host_ip.clone().unwrap_or_default());
            let shown = format!("{}/{}/{}", key.1, key.2, key.0);
            if host != 0 && !taken.insert(key) {
                out.push(FieldError::duplicate(&p.child("hostPort"), shown));
            }
        }
    }
}

fn pod_names(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let mut check = |field: &str, value: &Option<String>, rule: fn(&str) -> Vec<String>| {
        if let Some(v) = value.as_deref().filter(|v| !v.is_empty()) {
            complain(out, &path.child(field), v, rule(v));
        }
    };
    check("nodeName", &s.node_name, names::check_dns1123_subdomain);
    check("hostname", &s.hostname, names::check_dns1123_label);
    check("subdomain", &s.subdomain, names::check_dns1123_label);
    check("serviceAccountName", &s.service_account_name, names::check_dns1123_subdomain);
    check("priorityClassName", &s.priority_class_name, names::check_dns1123_subdomain);
    check("runtimeClassName", &s.runtime_class_name, names::check_dns1123_subdomain);
    check("schedulerName", &s.scheduler_name, names::check_qualified_name);
}

fn toleration(t: &Toleration, path: &Path, out: &mut Vec<FieldError>) {
    let get = |o: &Option<String>| o.clone().unwrap_or_default();
    let (key, operator, effect) = (get(&t.key), get(&t.operator), get(&t.effect));
    if !key.is_empty() {
        complain(out, &path.child("key"), &key, names::check_qualified_name(&key));
    }
    let p = path.child("operator");
    if key.is_empty() && operator != "Exists" {
        out.push(FieldError::invalid(
            &p,
            operator.as_str(),
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ));
    }
    match operator.as_str() {
        "" | "Equal" => {
            let v = get(&t.value);
            complain(out, &p, &v, names::check_label_value(&v));
        }
        "Exists" => {
            if let Some(v) = t.value.as_deref().filter(|v| !v.is_empty()) {
                out.push(FieldError::invalid(&p, v, "value must be empty when `operator` is 'Exists'"));
            }
        }
        other => out.push(FieldError::not_supported(&p, other, &["Equal", "Exists"])),
    }
    if t.toleration_seconds.is_some() && effect != "NoExecute" {
        out.push(FieldError::invalid(
            &path.child("effect"),
            effect.as_str(),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        ));
    }
    let effect = Some(effect.as_str()).filter(|e| !e.is_empty());
    one_of(out, &path.child("effect"), effect, super::node::EFFECTS);
}
