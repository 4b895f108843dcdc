//! Rules for metadata, the same for every kind, and for selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{IMMUTABLE, complain, shown};
use crate::field::{FieldError, Path};
use crate::kind::Kind;
use crate::names;
use crate::object::Object;

/// All annotations of an object together, keys and values (apimachinery's
/// TotalAnnotationSizeLimitB).
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
/// Finalizers that need no domain.
const STANDARD_FINALIZERS: &[&str] = &["foregroundDeletion", "kubernetes", "orphan"];

pub(super) fn create(object: &Object, out: &mut Vec<FieldError>) {
    let meta = object.meta();
    let path = Path::new("metadata");
    let kind = object.kind();
    let check = |name: &str| match kind {
        Kind::Namespace => names::check_dns1123_label(name),
        _ => names::check_dns1123_subdomain(name),
    };
    if let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty()) {
        // A prefix may end in what the suffix makes good.
        let probe = format!("{}x", prefix.trim_end_matches(['-', '.']));
        complain(out, &path.child("generateName"), prefix, check(&probe));
    }
    match meta.name.as_deref().unwrap_or_default() {
        "" => {
            out.push(FieldError::required(&path.child("name"), "name or generateName is required"));
        }
        name => complain(out, &path.child("name"), name, check(name)),
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let ns_path = path.child("namespace");
    match (kind.namespaced(), namespace) {
        (true, "") => out.push(FieldError::required(&ns_path, "")),
        (true, ns) => complain(out, &ns_path, ns, names::check_dns1123_label(ns)),
        (false, "") => {}
        (false, _) => out.push(FieldError::forbidden(&ns_path, "not allowed on this type")),
    }
    common(meta, &path, out);
    qualified_finalizers(meta, &[], &path, out);
}

/// A finalizer without a domain is Kubernetes' own. Those in `before` were taken once.
fn qualified_finalizers(meta: &ObjectMeta, before: &[String], path: &Path, out: &mut Vec<FieldError>) {
    for (i, f) in meta.finalizers.iter().flatten().enumerate() {
        if !f.contains('/') && !STANDARD_FINALIZERS.contains(&f.as_str()) && !before.contains(f) {
            let m = "name is neither a standard finalizer name nor is it fully qualified";
            out.push(FieldError::invalid(&path.child("finalizers").index(i), f.as_str(), m));
        }
    }
}

fn common(meta: &ObjectMeta, path: &Path, out: &mut Vec<FieldError>) {
    labels(meta.labels.as_ref(), &path.child("labels"), out);
    annotations(meta.annotations.as_ref(), &path.child("annotations"), out);
    let owners = path.child("ownerReferences");
    let mut controllers = 0;
    for (i, o) in meta.owner_references.iter().flatten().enumerate() {
        let p = owners.index(i);
        for (field, value) in [("apiVersion", &o.api_version), ("kind", &o.kind), ("name", &o.name), ("uid", &o.uid)] {
            if value.is_empty() {
                out.push(FieldError::required(&p.child(field), "must not be empty"));
            }
        }
        controllers += usize::from(o.controller == Some(true));
    }
    if controllers > 1 {
        out.push(FieldError::invalid(
            &owners,
            shown(&meta.owner_references),
            "Only one reference can have Controller set to true",
        ));
    }
    for f in meta.finalizers.iter().flatten() {
        complain(out, &path.child("finalizers"), f, names::check_qualified_name(f));
    }
}

pub(super) fn update(old: &Object, new: &Object, out: &mut Vec<FieldError>) {
    let path = Path::new("metadata");
    let (a, b) = (old.meta(), new.meta());
    let mut same = |field: &str, a: &Option<String>, b: &Option<String>| {
        if a != b {
            out.push(FieldError::invalid(&path.child(field), shown(b), IMMUTABLE));
        }
    };
    same("name", &a.name, &b.name);
    same("namespace", &a.namespace, &b.namespace);
    // Left out, these two are taken from before, as in Kubernetes.
    if b.uid.as_deref().is_some_and(|u| !u.is_empty()) {
        same("uid", &a.uid, &b.uid);
    }
    if b.creation_timestamp.is_some() && a.creation_timestamp != b.creation_timestamp {
        let shown = shown(&b.creation_timestamp);
        out.push(FieldError::invalid(&path.child("creationTimestamp"), shown, IMMUTABLE));
    }
    let before = a.finalizers.clone().unwrap_or_default();
    if a.deletion_timestamp.is_some() {
        let more: Vec<&String> = b.finalizers.iter().flatten().filter(|f| !before.contains(f)).collect();
        if !more.is_empty() {
            out.push(FieldError::forbidden(
                &path.child("finalizers"),
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {more:?}"
                ),
            ));
        }
    }
    common(b, &path, out);
    qualified_finalizers(b, &before, &path, out);
}

/// Rules for a map of labels.
pub(super) fn labels(labels: Option<&BTreeMap<String, String>>, path: &Path, out: &mut Vec<FieldError>) {
    for (k, v) in labels.into_iter().flatten() {
        complain(out, path, k, names::check_qualified_name(k));
        complain(out, path, v, names::check_label_value(v));
    }
}

/// Rules for a map of annotations.
pub(super) fn annotations(map: Option<&BTreeMap<String, String>>, path: &Path, out: &mut Vec<FieldError>) {
    let mut total = 0;
    for (k, v) in map.into_iter().flatten() {
        complain(out, path, k, names::check_qualified_name(&k.to_ascii_lowercase()));
        total += k.len() + v.len();
    }
    if total > ANNOTATIONS_MAX_BYTES {
        out.push(FieldError::too_long(path, ANNOTATIONS_MAX_BYTES));
    }
}

/// Rules for a metav1.LabelSelector.
pub(super) fn selector(s: &LabelSelector, path: &Path, out: &mut Vec<FieldError>) {
    labels(s.match_labels.as_ref(), &path.child("matchLabels"), out);
    for (i, e) in s.match_expressions.iter().flatten().enumerate() {
        let p = path.child("matchExpressions").index(i);
        let values = e.values.as_deref().unwrap_or_default();
        match e.operator.as_str() {
            "In" | "NotIn" => {
                if values.is_empty() {
                    out.push(FieldError::required(
                        &p.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    out.push(FieldError::forbidden(
                        &p.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            other => out.push(FieldError::invalid(&p.child("operator"), other, "not a valid selector operator")),
        }
        complain(out, &p.child("key"), &e.key, names::check_qualified_name(&e.key));
        for (j, v) in values.iter().enumerate() {
            complain(out, &p.child("values").index(j), v, names::check_label_value(v));
        }
    }
}
