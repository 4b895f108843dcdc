//! Rules for ConfigMaps, Secrets and Events.

use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};

use super::{IMMUTABLE, complain, volume};
use crate::field::{FieldError, Path};

/// Keys and values of a ConfigMap or Secret together (Kubernetes' MaxSecretSize).
const DATA_MAX_BYTES: usize = 1024 * 1024;
/// Names the account that a token is of.
const SERVICE_ACCOUNT: &str = "kubernetes.io/service-account.name";
const WHEN_IMMUTABLE: &str = "field is immutable when `immutable` is set";

pub(super) fn config_map(o: &ConfigMap, out: &mut Vec<FieldError>) {
    let mut total = 0;
    for (k, v) in o.data.iter().flatten() {
        let p = Path::new("data").key(k);
        complain(out, &p, k, volume::check_config_key(k));
        if o.binary_data.as_ref().is_some_and(|b| b.contains_key(k)) {
            out.push(FieldError::invalid(&p, k.as_str(), "duplicate of key present in binaryData"));
        }
        total += v.len();
    }
    for (k, v) in o.binary_data.iter().flatten() {
        complain(out, &Path::new("binaryData").key(k), k, volume::check_config_key(k));
        total += v.0.len();
    }
    if total > DATA_MAX_BYTES {
        out.push(FieldError::too_long(&Path::new("data"), DATA_MAX_BYTES));
    }
}

fn immutable(old: Option<bool>, new: Option<bool>, changed: &[(&str, bool)], out: &mut Vec<FieldError>) {
    if old != Some(true) {
        return;
    }
    if new != Some(true) {
        out.push(FieldError::forbidden(&Path::new("immutable"), WHEN_IMMUTABLE));
    }
    for (field, changed) in changed {
        if *changed {
            out.push(FieldError::forbidden(&Path::new(field), WHEN_IMMUTABLE));
        }
    }
}

pub(super) fn config_map_update(a: &ConfigMap, b: &ConfigMap, out: &mut Vec<FieldError>) {
    let changed = [("data", a.data != b.data), ("binaryData", a.binary_data != b.binary_data)];
    immutable(a.immutable, b.immutable, &changed, out);
}

pub(super) fn secret_update(a: &Secret, b: &Secret, out: &mut Vec<FieldError>) {
    if a.type_ != b.type_ {
        out.push(FieldError::invalid(&Path::new("type"), b.type_.as_deref().unwrap_or_default(), IMMUTABLE));
    }
    immutable(a.immutable, b.immutable, &[("data", a.data != b.data)], out);
}

pub(super) fn secret(o: &Secret, out: &mut Vec<FieldError>) {
    let path = Path::new("data");
    let mut total = 0;
    for (k, v) in o.data.iter().flatten() {
        complain(out, &path.key(k), k, volume::check_config_key(k));
        total += v.0.len();
    }
    if total > DATA_MAX_BYTES {
        out.push(FieldError::too_long(&path, DATA_MAX_BYTES));
    }
    let has = |k: &str| o.data.as_ref().is_some_and(|d| d.contains_key(k));
    let mut need = |keys: &[&str]| {
        for k in keys.iter().filter(|k| !has(k)) {
            out.push(FieldError::required(&path.key(k), ""));
        }
    };
    match o.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            let named = o.metadata.annotations.as_ref().and_then(|a| a.get(SERVICE_ACCOUNT));
            if named.is_none_or(String::is_empty) {
                let p = Path::new("metadata").child("annotations").key(SERVICE_ACCOUNT);
                out.push(FieldError::required(&p, ""));
            }
        }
        "kubernetes.io/dockerconfigjson" => {
            need(&[".dockerconfigjson"]);
            json_object(o, ".dockerconfigjson", &path, out);
        }
        "kubernetes.io/dockercfg" => {
            need(&[".dockercfg"]);
            json_object(o, ".dockercfg", &path, out);
        }
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"]),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need(&["username", "password"]);
        }
        _ => {}
    }
}

fn json_object(o: &Secret, key: &str, path: &Path, out: &mut Vec<FieldError>) {
    let Some(bytes) = o.data.as_ref().and_then(|d| d.get(key)) else { return };
    if let Err(e) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes.0) {
        // Never the content: it is a secret.
        out.push(FieldError::invalid(&path.key(key), "<secret contents redacted>", &e.to_string()));
    }
}

pub(super) fn event(o: &Event, out: &mut Vec<FieldError>) {
    let about = o.involved_object.namespace.as_deref().unwrap_or_default();
    let own = o.metadata.namespace.as_deref().unwrap_or_default();
    // Events about cluster-scoped objects live in default.
    if about != own && !(about.is_empty() && own == "default") {
        out.push(FieldError::invalid(
            &Path::new("involvedObject").child("namespace"),
            about,
            "does not match event.namespace",
        ));
    }
}
