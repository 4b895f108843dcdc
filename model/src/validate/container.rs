//! Rules for containers and init containers.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec, ResourceRequirements, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;

use super::{complain, env, one_of, port_number, probe, security, volume};
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;

pub(super) fn containers(s: &PodSpec, volumes: &BTreeSet<String>, path: &Path, out: &mut Vec<FieldError>) {
    if s.containers.is_empty() {
        out.push(FieldError::required(&path.child("containers"), ""));
    }
    let mut seen = BTreeSet::new();
    for (i, c) in s.containers.iter().enumerate() {
        let p = path.child("containers").index(i);
        container(c, s, volumes, &p, out);
        if !seen.insert(c.name.as_str()) {
            out.push(FieldError::duplicate(&p.child("name"), c.name.as_str()));
        }
        if let Some(r) = c.restart_policy.as_deref() {
            let supported = ["Always", "Never", "OnFailure"];
            one_of(out, &p.child("restartPolicy"), Some(r), &supported);
        }
        probe::all(c, s, &p, out);
    }
    for (i, c) in s.init_containers.iter().flatten().enumerate() {
        let p = path.child("initContainers").index(i);
        container(c, s, volumes, &p, out);
        if !seen.insert(c.name.as_str()) {
            out.push(FieldError::duplicate(&p.child("name"), c.name.as_str()));
        }
        if c.restart_policy.as_deref() == Some("Always") {
            probe::all(c, s, &p, out);
        } else {
            init_only(c, &p, out);
        }
    }
}

fn init_only(c: &Container, path: &Path, out: &mut Vec<FieldError>) {
    for (field, set) in [
        ("lifecycle", c.lifecycle.is_some()),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
    ] {
        if set {
            out.push(FieldError::forbidden(
                &path.child(field),
                "may not be set for init containers without restartPolicy=Always",
            ));
        }
    }
    one_of(out, &path.child("restartPolicy"), c.restart_policy.as_deref(), &["Always", "Never", "OnFailure"]);
}

fn container(c: &Container, s: &PodSpec, volumes: &BTreeSet<String>, path: &Path, out: &mut Vec<FieldError>) {
    let name = path.child("name");
    if c.name.is_empty() {
        out.push(FieldError::required(&name, ""));
    } else {
        complain(out, &name, &c.name, names::check_dns1123_label(&c.name));
    }
    let image = c.image.as_deref().unwrap_or_default();
    if image.trim().is_empty() {
        out.push(FieldError::required(&path.child("image"), ""));
    } else if image.trim() != image {
        let p = path.child("image");
        out.push(FieldError::invalid(&p, image, "must not have leading or trailing whitespace"));
    }
    one_of(out, &path.child("imagePullPolicy"), c.image_pull_policy.as_deref(), &["Always", "IfNotPresent", "Never"]);
    one_of(
        out,
        &path.child("terminationMessagePolicy"),
        c.termination_message_policy.as_deref(),
        &["FallbackToLogsOnError", "File"],
    );
    ports(c.ports.as_deref().unwrap_or_default(), &path.child("ports"), out);
    for (i, e) in c.env.iter().flatten().enumerate() {
        env::env(e, &path.child("env").index(i), out);
    }
    for (i, e) in c.env_from.iter().flatten().enumerate() {
        env::env_from(e, &path.child("envFrom").index(i), out);
    }
    let mounts = c.volume_mounts.as_deref().unwrap_or_default();
    volume_mounts(mounts, volumes, security::privileged(c), &path.child("volumeMounts"), out);
    if let Some(r) = &c.resources {
        resources(r, &path.child("resources"), out);
    }
    if let Some(context) = &c.security_context {
        security::container(context, s.host_users != Some(false), &path.child("securityContext"), out);
    }
}

fn ports(list: &[ContainerPort], path: &Path, out: &mut Vec<FieldError>) {
    let mut named = BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        let p = path.index(i);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let bad = names::check_port_name(name);
            if bad.is_empty() && !named.insert(name) {
                out.push(FieldError::duplicate(&p.child("name"), name));
            }
            complain(out, &p.child("name"), name, bad);
        }
        match port.container_port {
            0 => out.push(FieldError::required(&p.child("containerPort"), "")),
            n => port_number(out, &p.child("containerPort"), n),
        }
        if let Some(n) = port.host_port.filter(|n| *n != 0) {
            port_number(out, &p.child("hostPort"), n);
        }
        let protocol = port.protocol.as_deref();
        one_of(out, &p.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
}

fn volume_mounts(
    list: &[VolumeMount],
    volumes: &BTreeSet<String>,
    privileged: bool,
    path: &Path,
    out: &mut Vec<FieldError>,
) {
    let mut seen = BTreeSet::new();
    for (i, m) in list.iter().enumerate() {
        let p = path.index(i);
        if m.name.is_empty() {
            out.push(FieldError::required(&p.child("name"), ""));
        } else if !volumes.contains(&m.name) {
            out.push(FieldError::not_found(&p.child("name"), &m.name));
        }
        let at = p.child("mountPath");
        if m.mount_path.is_empty() {
            out.push(FieldError::required(&at, ""));
        } else if !seen.insert(m.mount_path.as_str()) {
            out.push(FieldError::invalid(&at, m.mount_path.as_str(), "must be unique"));
        }
        let sub = |field: &Option<String>| field.clone().unwrap_or_default();
        let (sub_path, expr) = (sub(&m.sub_path), sub(&m.sub_path_expr));
        if !sub_path.is_empty() {
            volume::local_path(&sub_path, &p.child("subPath"), out);
            if !expr.is_empty() {
                out.push(FieldError::invalid(
                    &p.child("subPathExpr"),
                    expr.as_str(),
                    "subPathExpr and subPath are mutually exclusive",
                ));
            }
        }
        if !expr.is_empty() {
            volume::local_path(&expr, &p.child("subPathExpr"), out);
        }
        let (at, propagation) = (p.child("mountPropagation"), m.mount_propagation.as_deref());
        one_of(out, &at, propagation, &["Bidirectional", "HostToContainer", "None"]);
        if propagation == Some("Bidirectional") && !privileged {
            let m = "Bidirectional mount propagation is available only to privileged containers";
            out.push(FieldError::forbidden(&at, m));
        }
    }
}

fn amounts(
    map: Option<&BTreeMap<String, K8sQuantity>>,
    path: &Path,
    out: &mut Vec<FieldError>,
) -> BTreeMap<String, Quantity> {
    let mut parsed = BTreeMap::new();
    for (name, q) in map.into_iter().flatten() {
        let p = path.key(name);
        complain(out, path, name, names::check_qualified_name(name));
        let standard =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if !standard && !name.contains('/') {
            let m = "must be a standard resource for containers";
            out.push(FieldError::invalid(path, name.as_str(), m));
        }
        match Quantity::try_from(q) {
            Err(e) => out.push(FieldError::invalid(&p, q.0.as_str(), &e.to_string())),
            Ok(v) => {
                if v.is_negative() {
                    let m = "must be greater than or equal to 0";
                    out.push(FieldError::invalid(&p, q.0.as_str(), m));
                }
                if name.contains('/') && !v.is_whole() {
                    out.push(FieldError::invalid(&p, q.0.as_str(), "must be an integer"));
                }
                parsed.insert(name.clone(), v);
            }
        }
    }
    parsed
}

fn resources(r: &ResourceRequirements, path: &Path, out: &mut Vec<FieldError>) {
    let limits = amounts(r.limits.as_ref(), &path.child("limits"), out);
    let requests = amounts(r.requests.as_ref(), &path.child("requests"), out);
    for (name, request) in &requests {
        match limits.get(name) {
            Some(limit) if request > limit => out.push(FieldError::invalid(
                &path.child("requests"),
                request.to_string(),
                &format!("must be less than or equal to {name} limit of {limit}"),
            )),
            None if name.contains('/') => out.push(FieldError::required(
                &path.child("limits"),
                "Limit must be set for non overcommitable resources",
            )),
            _ => {}
        }
    }
}
