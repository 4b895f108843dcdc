//! Rules for volumes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Volume, VolumeProjection};
use serde_json::Value;

use super::{complain, env, one_of, shown};
use crate::field::{FieldError, Path};
use crate::names;
use crate::quantity::Quantity;

/// Fields of a Pod that a file of a volume may show.
const DOWNWARD_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Checks volumes; answers their names.
pub(super) fn volumes(list: &[Volume], path: &Path, out: &mut Vec<FieldError>) -> BTreeSet<String> {
    let mut names_seen = BTreeSet::new();
    for (i, v) in list.iter().enumerate() {
        let p = path.index(i);
        if v.name.is_empty() {
            out.push(FieldError::required(&p.child("name"), ""));
        } else {
            complain(out, &p.child("name"), &v.name, names::check_dns1123_label(&v.name));
        }
        if !names_seen.insert(v.name.clone()) {
            out.push(FieldError::duplicate(&p.child("name"), v.name.as_str()));
        }
        source(v, &p, out);
    }
    names_seen
}

fn source(v: &Volume, path: &Path, out: &mut Vec<FieldError>) {
    // Each field beside the name is a source.
    let sources = match shown(v) {
        Value::Object(m) => m.keys().filter(|k| *k != "name").count(),
        _ => 0,
    };
    match sources {
        0 => out.push(FieldError::required(path, "must specify a volume type")),
        1 => {}
        _ => out.push(FieldError::forbidden(path, "may not specify more than 1 volume type")),
    }
    if let Some(e) = &v.empty_dir
        && let Some(limit) = &e.size_limit
    {
        let p = path.child("emptyDir").child("sizeLimit");
        match Quantity::try_from(limit) {
            Err(e) => out.push(FieldError::invalid(&p, limit.0.as_str(), &e.to_string())),
            Ok(q) if q.is_negative() => {
                out.push(FieldError::forbidden(&p, "SizeLimit field must be a valid resource quantity"))
            }
            Ok(_) => {}
        }
    }
    if let Some(h) = &v.host_path {
        host_path(h, &path.child("hostPath"), out);
    }
    if let Some(c) = &v.config_map {
        let p = path.child("configMap");
        if c.name.is_empty() {
            out.push(FieldError::required(&p.child("name"), ""));
        }
        files(c.default_mode, c.items.as_deref(), &p, out);
    }
    if let Some(s) = &v.secret {
        let p = path.child("secret");
        if s.secret_name.as_deref().unwrap_or_default().is_empty() {
            out.push(FieldError::required(&p.child("secretName"), ""));
        }
        files(s.default_mode, s.items.as_deref(), &p, out);
    }
    if let Some(d) = &v.downward_api {
        let p = path.child("downwardAPI");
        mode(d.default_mode, &p.child("defaultMode"), out);
        downward_files(d.items.as_deref(), &p, out);
    }
    if let Some(projected) = &v.projected {
        let p = path.child("projected");
        mode(projected.default_mode, &p.child("defaultMode"), out);
        for (i, s) in projected.sources.iter().flatten().enumerate() {
            projection(s, &p.child("sources").index(i), out);
        }
    }
}

/// One of the sources that are laid over each other.
fn projection(s: &VolumeProjection, path: &Path, out: &mut Vec<FieldError>) {
    match shown(s).as_object().map_or(0, serde_json::Map::len) {
        0 => out.push(FieldError::required(path, "must specify a volume type")),
        1 => {}
        _ => out.push(FieldError::forbidden(path, "may not specify more than 1 volume type per source")),
    }
    if let Some(c) = &s.config_map {
        let p = path.child("configMap");
        if c.name.is_empty() {
            out.push(FieldError::required(&p.child("name"), ""));
        }
        files(None, c.items.as_deref(), &p, out);
    }
    if let Some(c) = &s.secret {
        let p = path.child("secret");
        if c.name.is_empty() {
            out.push(FieldError::required(&p.child("name"), ""));
        }
        files(None, c.items.as_deref(), &p, out);
    }
    if let Some(d) = &s.downward_api {
        downward_files(d.items.as_deref(), &path.child("downwardAPI"), out);
    }
    if let Some(t) = &s.service_account_token {
        file(&t.path, &path.child("serviceAccountToken").child("path"), out);
    }
    if let Some(t) = &s.cluster_trust_bundle {
        file(&t.path, &path.child("clusterTrustBundle").child("path"), out);
    }
}

fn downward_files(items: Option<&[DownwardAPIVolumeFile]>, path: &Path, out: &mut Vec<FieldError>) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let p = path.child("items").index(i);
        file(&item.path, &p.child("path"), out);
        mode(item.mode, &p.child("mode"), out);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(f), other) => {
                env::field_ref(f, DOWNWARD_FIELDS, &p.child("fieldRef"), out);
                if other.is_some() {
                    let m = "fieldRef and resourceFieldRef can not be specified simultaneously";
                    out.push(FieldError::invalid(&p, "resource", m));
                }
            }
            (None, Some(r)) => env::resource_ref(r, &p.child("resourceFieldRef"), true, out),
            (None, None) => out.push(FieldError::required(&p, "one of fieldRef and resourceFieldRef is required")),
        }
    }
}

fn host_path(h: &HostPathVolumeSource, path: &Path, out: &mut Vec<FieldError>) {
    if h.path.is_empty() {
        out.push(FieldError::required(&path.child("path"), ""));
    } else if h.path.split('/').any(|s| s == "..") {
        let p = path.child("path");
        out.push(FieldError::invalid(&p, h.path.as_str(), "must not contain '..'"));
    }
    one_of(
        out,
        &path.child("type"),
        h.type_.as_deref(),
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
    );
}

fn mode(value: Option<i32>, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(m) = value
        && !(0..=0o777).contains(&m)
    {
        out.push(FieldError::invalid(path, m, "must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

fn files(default: Option<i32>, items: Option<&[KeyToPath]>, path: &Path, out: &mut Vec<FieldError>) {
    mode(default, &path.child("defaultMode"), out);
    for (i, item) in items.into_iter().flatten().enumerate() {
        let p = path.child("items").index(i);
        if item.key.is_empty() {
            out.push(FieldError::required(&p.child("key"), ""));
        }
        file(&item.path, &p.child("path"), out);
        mode(item.mode, &p.child("mode"), out);
    }
}

/// Where a file of a volume lies: below the volume, and not under a name that the volume's own
/// bookkeeping may use.
fn file(text: &str, path: &Path, out: &mut Vec<FieldError>) {
    if text.is_empty() {
        out.push(FieldError::required(path, ""));
        return;
    }
    local_path(text, path, out);
    if text.starts_with("..") && !text.starts_with("../") {
        out.push(FieldError::invalid(path, text, "must not start with '..'"));
    }
}

/// A path that stays below where it starts.
pub(super) fn local_path(text: &str, path: &Path, out: &mut Vec<FieldError>) {
    if text.starts_with('/') {
        out.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    if text.split('/').any(|s| s == "..") {
        out.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

/// Complaints about a key of a ConfigMap or Secret.
pub(super) fn check_config_key(key: &str) -> Vec<String> {
    let mut out = Vec::new();
    if key.len() > names::SUBDOMAIN_MAX_BYTES {
        out.push(format!("must be no more than {} bytes", names::SUBDOMAIN_MAX_BYTES));
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.is_empty() || !key.bytes().all(good) {
        out.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match key {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        k if k.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}
