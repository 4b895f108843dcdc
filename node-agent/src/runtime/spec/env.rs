//! A container's variables: env and envFrom, resolved against the Pod, its node, ConfigMaps and
//! Secrets. The driver fetches what [`references`] names; the rest is pure.
use super::{SpecError, expand::expand};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use trellis_model::Quantity;

/// Which objects a Pod refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl RefKind {
    /// The kind's name in the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// The fetched objects; those that do not exist are not in it.
#[derive(Clone, Debug, Default)]
pub struct Refs {
    /// By name.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// By name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
}

/// What the node and the runtime know of the Pod.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub host_ip: String,
    /// The Pod's addresses.
    pub pod_ips: Vec<String>,
    /// What a container without a cpu limit may use.
    pub allocatable_cpu_milli: i64,
    /// What a container without a memory limit may use.
    pub allocatable_memory_bytes: i64,
}

/// The ConfigMaps and Secrets that a container's env needs.
pub fn references(c: &Container) -> BTreeSet<(RefKind, String)> {
    let mut all = BTreeSet::new();
    for from in c.env_from.iter().flatten() {
        all.extend(from.config_map_ref.iter().map(|r| (RefKind::ConfigMap, r.name.clone())));
        all.extend(from.secret_ref.iter().map(|r| (RefKind::Secret, r.name.clone())));
    }
    for source in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        all.extend(source.config_map_key_ref.iter().map(|r| (RefKind::ConfigMap, r.name.clone())));
        all.extend(source.secret_key_ref.iter().map(|r| (RefKind::Secret, r.name.clone())));
    }
    all
}

/// All variables in order; of a name that comes twice the later one counts.
pub fn resolve(pod: &Pod, c: &Container, refs: &Refs, facts: &Facts) -> Result<Vec<(String, String)>, SpecError> {
    let mut out: Vec<(String, String)> = Vec::new();
    for from in c.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            match refs.config_maps.get(&r.name) {
                Some(cm) => {
                    let data = cm.data.iter().flatten().map(|(k, v)| (k.as_str(), v.clone()));
                    push_all(&mut out, prefix, data);
                }
                None if r.optional == Some(true) => {}
                None => return Err(missing("configmap", &r.name)),
            }
        }
        if let Some(r) = &from.secret_ref {
            match refs.secrets.get(&r.name) {
                Some(s) => {
                    // What is not text cannot be a variable; Kubernetes skips it, too.
                    let text = |v: &[u8]| String::from_utf8(v.to_vec()).ok();
                    let data = s.data.iter().flatten().filter_map(|(k, v)| Some((k.as_str(), text(&v.0)?)));
                    push_all(&mut out, prefix, data);
                }
                None if r.optional == Some(true) => {}
                None => return Err(missing("secret", &r.name)),
            }
        }
    }
    for var in c.env.iter().flatten() {
        let value = match &var.value_from {
            None => Some(expand(var.value.as_deref().unwrap_or_default(), &out)),
            Some(source) => from_source(&var.name, source, pod, c, refs, facts)?,
        };
        if let Some(value) = value {
            out.push((var.name.clone(), value));
        }
    }
    Ok(out)
}

fn push_all<'a>(out: &mut Vec<(String, String)>, prefix: &str, data: impl Iterator<Item = (&'a str, String)>) {
    for (key, value) in data {
        let name = format!("{prefix}{key}");
        // What the kernel cannot carry as a variable is left out, as in Kubernetes.
        if !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') {
            out.push((name, value));
        }
    }
}

fn missing(kind: &'static str, name: &str) -> SpecError {
    SpecError::MissingObject { kind, name: name.to_owned() }
}

fn from_source(
    variable: &str,
    source: &EnvVarSource,
    pod: &Pod,
    c: &Container,
    refs: &Refs,
    facts: &Facts,
) -> Result<Option<String>, SpecError> {
    let no_field = |path: &str| SpecError::Field { variable: variable.to_owned(), path: path.to_owned() };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(r) = &source.field_ref {
        return field(pod, &r.field_path, facts).map(Some).ok_or_else(|| no_field(&r.field_path));
    }
    if let Some(r) = &source.resource_field_ref {
        let owner = match r.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => container_named(pod, name).ok_or_else(|| no_field(&r.resource))?,
            None => c,
        };
        let divisor = r.divisor.as_ref().map(|q| q.0.as_str());
        return resource(owner, &r.resource, divisor, facts).map(Some).ok_or_else(|| no_field(&r.resource));
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(cm) = refs.config_maps.get(&r.name) else {
            return if optional { Ok(None) } else { Err(missing("configmap", &r.name)) };
        };
        return match cm.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => {
                Err(SpecError::MissingKey { kind: "ConfigMap", namespace, name: r.name.clone(), key: r.key.clone() })
            }
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(secret) = refs.secrets.get(&r.name) else {
            return if optional { Ok(None) } else { Err(missing("secret", &r.name)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => String::from_utf8(value.0.clone()).map(Some).map_err(|_| SpecError::NotText {
                variable: variable.to_owned(),
                kind: "Secret",
                name: r.name.clone(),
                key: r.key.clone(),
            }),
            None if optional => Ok(None),
            None => Err(SpecError::MissingKey { kind: "Secret", namespace, name: r.name.clone(), key: r.key.clone() }),
        };
    }
    Err(no_field("valueFrom"))
}

fn container_named<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
}

/// The value of a field path of the downward API.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let all: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        all.join("\n")
    };
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return None,
        };
        return Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return None,
    })
}

/// The value of a resource of a container, in units of the divisor, rounded up.
pub fn resource(c: &Container, name: &str, divisor: Option<&str>, facts: &Facts) -> Option<String> {
    let (list, resource) = name.split_once('.')?;
    let all = c.resources.clone().unwrap_or_default();
    let limit = all.limits.as_ref().and_then(|l| l.get(resource));
    let value = match list {
        "limits" => limit,
        "requests" => all.requests.as_ref().and_then(|r| r.get(resource)).or(limit),
        _ => return None,
    };
    let amount = match value {
        Some(q) => Quantity::parse(&q.0).ok()?,
        None if list == "limits" && resource == "cpu" => Quantity::from_milli(facts.allocatable_cpu_milli),
        None if list == "limits" && resource == "memory" => Quantity::from_bytes(facts.allocatable_memory_bytes),
        None => Quantity::from_units(0),
    };
    let divisor = Quantity::parse(divisor.filter(|d| !d.is_empty() && *d != "0").unwrap_or("1")).ok()?;
    let (amount, divisor) =
        if resource == "cpu" { (amount.milli(), divisor.milli()) } else { (amount.value(), divisor.value()) };
    if divisor <= 0 {
        return None;
    }
    Some(amount.div_euclid(divisor).saturating_add(i64::from(amount.rem_euclid(divisor) != 0)).to_string())
}
