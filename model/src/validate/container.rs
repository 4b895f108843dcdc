//! Rules for containers and init containers.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, PodSpec, ResourceRequirements, SecurityContext,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;

use super::{complain, one_of, pod, port_number, probe, volume};
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
        container(c, volumes, &p, out);
        if !seen.insert(c.name.as_str()) {
            out.push(FieldError::duplicate(&p.child("name"), c.name.as_str()));
        }
        if let Some(r) = c.restart_policy.as_deref() {
            let supported = ["Always", "Never", "OnFailure"];
            one_of(out, &p.child("restartPolicy"), Some(r), &supported);
        }
        probe::all(c, &p, out);
    }
    for (i, c) in s.init_containers.iter().flatten().enumerate() {
        let p = path.child("initContainers").index(i);
        container(c, volumes, &p, out);
        if !seen.insert(c.name.as_str()) {
            out.push(FieldError::duplicate(&p.child("name"), c.name.as_str()));
        }
        if c.restart_policy.as_deref() == Some("Always") {
            probe::all(c, &p, out);
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

fn container(c: &Container, volumes: &BTreeSet<String>, path: &Path, out: &mut Vec<FieldError>) {
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
        env(e, &path.child("env").index(i), out);
    }
    for (i, e) in c.env_from.iter().flatten().enumerate() {
        env_from(e, &path.child("envFrom").index(i), out);
    }
    let mounts = c.volume_mounts.as_deref().unwrap_or_default();
    volume_mounts(mounts, volumes, &path.child("volumeMounts"), out);
    if let Some(r) = &c.resources {
        resources(r, &path.child("resources"), out);
    }
    if let Some(s) = &c.security_context {
        security_context(s, &path.child("securityContext"), out);
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

fn env_name(name: &str, path: &Path, out: &mut Vec<FieldError>) {
    if !name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        out.push(FieldError::invalid(
            path,
            name,
            "a valid environment variable name must consist only of printable ASCII characters other than '='",
        ));
    }
}

fn env(e: &EnvVar, path: &Path, out: &mut Vec<FieldError>) {
    if e.name.is_empty() {
        out.push(FieldError::required(&path.child("name"), ""));
    } else {
        env_name(&e.name, &path.child("name"), out);
    }
    let Some(from) = &e.value_from else { return };
    let path = path.child("valueFrom");
    let count = [
        from.field_ref.is_some(),
        from.resource_field_ref.is_some(),
        from.config_map_key_ref.is_some(),
        from.secret_key_ref.is_some(),
        from.file_key_ref.is_some(),
    ]
    .into_iter()
    .filter(|x| *x)
    .count();
    if count == 0 {
        out.push(FieldError::invalid(
            &path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if e.value.as_deref().is_some_and(|v| !v.is_empty()) {
        out.push(FieldError::invalid(&path, "", "may not be specified when `value` is not empty"));
    } else if count > 1 {
        out.push(FieldError::invalid(&path, "", "may not have more than one field specified at a time"));
    }
    env_source(from, &path, out);
}

fn env_source(from: &EnvVarSource, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(f) = &from.field_ref {
        let p = path.child("fieldRef").child("fieldPath");
        if f.field_path.is_empty() {
            out.push(FieldError::required(&p, ""));
        } else if !is_env_field(&f.field_path) {
            out.push(FieldError::not_supported(&p, &f.field_path, ENV_FIELDS));
        }
    }
    let refs = [
        ("configMapKeyRef", from.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", from.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ];
    for (field, reference) in refs {
        let Some((name, key)) = reference else { continue };
        let p = path.child(field);
        if name.is_empty() {
            out.push(FieldError::required(&p.child("name"), ""));
        }
        if key.is_empty() {
            out.push(FieldError::required(&p.child("key"), ""));
        } else {
            complain(out, &p.child("key"), key, volume::check_config_key(key));
        }
    }
}

/// Fields of a Pod that an environment variable may take.
const ENV_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn is_env_field(path: &str) -> bool {
    match path.split_once("['") {
        Some((map @ ("metadata.labels" | "metadata.annotations"), rest)) => {
            let _ = map;
            rest.strip_suffix("']").is_some_and(|k| names::check_qualified_name(&k.to_ascii_lowercase()).is_empty())
        }
        Some(_) => false,
        None => ENV_FIELDS.contains(&path) && path != "metadata.labels" && path != "metadata.annotations",
    }
}

fn env_from(e: &EnvFromSource, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(prefix) = e.prefix.as_deref() {
        env_name(prefix, &path.child("prefix"), out);
    }
    match (&e.config_map_ref, &e.secret_ref) {
        (None, None) => out.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
        (Some(_), Some(_)) => {
            out.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"))
        }
        (Some(c), None) if c.name.is_empty() => {
            out.push(FieldError::required(&path.child("configMapRef").child("name"), ""));
        }
        (None, Some(s)) if s.name.is_empty() => {
            out.push(FieldError::required(&path.child("secretRef").child("name"), ""));
        }
        _ => {}
    }
}

fn volume_mounts(list: &[VolumeMount], volumes: &BTreeSet<String>, path: &Path, out: &mut Vec<FieldError>) {
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
        one_of(
            out,
            &p.child("mountPropagation"),
            m.mount_propagation.as_deref(),
            &["Bidirectional", "HostToContainer", "None"],
        );
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

fn security_context(s: &SecurityContext, path: &Path, out: &mut Vec<FieldError>) {
    pod::id(s.run_as_user, &path.child("runAsUser"), out);
    pod::id(s.run_as_group, &path.child("runAsGroup"), out);
    if s.allow_privilege_escalation == Some(false) {
        let p = path.child("allowPrivilegeEscalation");
        if s.privileged == Some(true) {
            let m = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            out.push(FieldError::invalid(&p, false, m));
        }
        let adds = s.capabilities.as_ref().and_then(|c| c.add.as_ref());
        if adds.is_some_and(|a| a.iter().any(|c| c == "CAP_SYS_ADMIN")) {
            let m = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            out.push(FieldError::invalid(&p, false, m));
        }
    }
    one_of(out, &path.child("procMount"), s.proc_mount.as_deref(), &["Default", "Unmasked"]);
}
