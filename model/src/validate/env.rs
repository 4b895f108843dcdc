//! Rules for environment variables, and for what of a Pod its containers are shown.

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector};

use super::{complain, volume};
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;

/// Fields of a Pod that an environment variable may take.
const ENV_FIELDS: &[&str] = &[
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

/// What of a container's resources can be referred to.
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Units in which processors are counted.
const CPU_UNITS: &[&str] = &["1m", "1"];
/// Units in which bytes are counted.
const BYTE_UNITS: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Kubernetes' words for another unit of bytes.
macro_rules! bytes_only {
    ($resource:literal) => {
        concat!(
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the ",
            $resource,
            " resource"
        )
    };
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

pub(super) fn env(e: &EnvVar, path: &Path, out: &mut Vec<FieldError>) {
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
        field_ref(f, ENV_FIELDS, &path.child("fieldRef"), out);
    }
    if let Some(r) = &from.resource_field_ref {
        resource_ref(r, &path.child("resourceFieldRef"), false, out);
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

/// A field of the Pod, out of `supported`; a label or annotation is named in brackets.
pub(super) fn field_ref(f: &ObjectFieldSelector, supported: &[&str], path: &Path, out: &mut Vec<FieldError>) {
    let p = path.child("fieldPath");
    if f.field_path.is_empty() {
        out.push(FieldError::required(&p, ""));
    } else if !is_field(&f.field_path, supported) {
        out.push(FieldError::not_supported(&p, &f.field_path, supported));
    }
}

fn is_field(path: &str, supported: &[&str]) -> bool {
    match path.split_once("['") {
        Some(("metadata.labels" | "metadata.annotations", rest)) => {
            rest.strip_suffix("']").is_some_and(|k| names::check_qualified_name(&k.to_ascii_lowercase()).is_empty())
        }
        Some(_) => false,
        None => supported.contains(&path),
    }
}

/// A container's limit or request, in units of the divisor. In a volume the container is named.
pub(super) fn resource_ref(r: &ResourceFieldSelector, path: &Path, volume: bool, out: &mut Vec<FieldError>) {
    if volume && r.container_name.as_deref().unwrap_or_default().is_empty() {
        out.push(FieldError::required(&path.child("containerName"), ""));
    } else if r.resource.is_empty() {
        out.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCES.contains(&r.resource.as_str()) && !is_huge_pages(&r.resource) {
        out.push(FieldError::not_supported(&path.child("resource"), &r.resource, RESOURCES));
    }
    let Some(divisor) = &r.divisor else { return };
    let p = path.child("divisor");
    let value = match Quantity::try_from(divisor) {
        Ok(value) => value,
        Err(e) => return out.push(FieldError::invalid(&p, divisor.0.as_str(), &e.to_string())),
    };
    let (units, words) = match r.resource.split_once('.').map(|(_, resource)| resource) {
        Some("cpu") => (CPU_UNITS, "only divisor's values 1m and 1 are supported with the cpu resource"),
        Some("memory") => (BYTE_UNITS, bytes_only!("memory")),
        Some("ephemeral-storage") => (BYTE_UNITS, bytes_only!("local ephemeral storage")),
        Some(_) => (BYTE_UNITS, bytes_only!("hugepages")),
        None => return,
    };
    // Nothing is the unit that suits the resource.
    if value != Quantity::default() && !units.contains(&value.to_string().as_str()) {
        out.push(FieldError::invalid(&p, r.resource.as_str(), words));
    }
}

fn is_huge_pages(resource: &str) -> bool {
    resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-")
}

pub(super) fn env_from(e: &EnvFromSource, path: &Path, out: &mut Vec<FieldError>) {
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
