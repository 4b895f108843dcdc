//! Rules for Pods and Pod templates.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec, Toleration};

use super::{complain, container, meta, not_negative, one_of, volume};
use crate::field::{FieldError, Path};
use crate::names;

/// Greatest id of a user or group (apimachinery's IsValidUserID).
const ID_MAX: i64 = i32::MAX as i64;

pub(super) fn pod(o: &Pod, out: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    match &o.spec {
        Some(s) => pod_spec(s, &path, out),
        None => out.push(FieldError::required(&path, "")),
    }
}

pub(super) fn template(t: &PodTemplateSpec, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(m) = &t.metadata {
        meta::labels(m.labels.as_ref(), &path.child("metadata").child("labels"), out);
        meta::annotations(m.annotations.as_ref(), &path.child("metadata").child("annotations"), out);
    }
    match &t.spec {
        Some(s) => pod_spec(s, &path.child("spec"), out),
        None => out.push(FieldError::required(&path.child("spec"), "")),
    }
}

pub(super) fn pod_spec(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let volumes = volume::volumes(s.volumes.as_deref().unwrap_or_default(), &path.child("volumes"), out);
    container::containers(s, &volumes, path, out);
    one_of(out, &path.child("restartPolicy"), s.restart_policy.as_deref(), &["Always", "Never", "OnFailure"]);
    dns(s, path, out);
    host_namespaces(s, path, out);
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
    security_context(s, &path.child("securityContext"), out);
    for (i, r) in s.image_pull_secrets.iter().flatten().enumerate() {
        if r.name.is_empty() {
            let p = path.child("imagePullSecrets").index(i).child("name");
            out.push(FieldError::required(&p, ""));
        }
    }
}

fn dns(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    one_of(
        out,
        &path.child("dnsPolicy"),
        s.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    let servers = s.dns_config.as_ref().and_then(|d| d.nameservers.as_deref()).unwrap_or_default();
    let p = path.child("dnsConfig").child("nameservers");
    if s.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        out.push(FieldError::required(&p, "must provide at least one DNS nameserver when `dnsPolicy` is None"));
    }
    for (i, ns) in servers.iter().enumerate() {
        ip(ns, &p.index(i), out);
    }
    for (i, a) in s.host_aliases.iter().flatten().enumerate() {
        let p = path.child("hostAliases").index(i);
        ip(&a.ip, &p.child("ip"), out);
        for (j, h) in a.hostnames.iter().flatten().enumerate() {
            complain(out, &p.child("hostnames").index(j), h, names::check_dns1123_subdomain(h));
        }
    }
}

fn ip(text: &str, path: &Path, out: &mut Vec<FieldError>) {
    if text.parse::<IpAddr>().is_err() {
        out.push(FieldError::invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
}

fn host_namespaces(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
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
            if s.host_network == Some(true) && host != port.container_port {
                out.push(FieldError::invalid(
                    &p.child("containerPort"),
                    port.container_port,
                    "must match `hostPort` when `hostNetwork` is true",
                ));
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

fn security_context(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    let Some(c) = &s.security_context else { return };
    id(c.run_as_user, &path.child("runAsUser"), out);
    id(c.run_as_group, &path.child("runAsGroup"), out);
    id(c.fs_group, &path.child("fsGroup"), out);
    for (i, g) in c.supplemental_groups.iter().flatten().enumerate() {
        id(Some(*g), &path.child("supplementalGroups").index(i), out);
    }
    one_of(out, &path.child("fsGroupChangePolicy"), c.fs_group_change_policy.as_deref(), &["Always", "OnRootMismatch"]);
}

/// A user's or group's id.
pub(super) fn id(value: Option<i64>, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(v) = value
        && !(0..=ID_MAX).contains(&v)
    {
        out.push(FieldError::invalid(path, v, "must be between 0 and 2147483647, inclusive"));
    }
}
