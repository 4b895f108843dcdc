//! Which ConfigMaps and Secrets a Pod refers to: those its node's agent may read.

use trellis_model::Kind;
use trellis_model::k8s_openapi::api::core::v1::{Container, PodSpec, Volume};

/// Does the Pod refer to the ConfigMap or Secret of this name (in its own Namespace)?
pub fn refers_to(spec: &PodSpec, kind: Kind, name: &str) -> bool {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let in_containers = containers.into_iter().any(|c| container_refers(c, kind, name));
    let in_volumes = spec.volumes.iter().flatten().any(|v| volume_refers(v, kind, name));
    let pulls = kind == Kind::Secret && spec.image_pull_secrets.iter().flatten().any(|s| s.name == name);
    in_containers || in_volumes || pulls
}

fn container_refers(container: &Container, kind: Kind, name: &str) -> bool {
    let from_env = container.env_from.iter().flatten().any(|source| match kind {
        Kind::ConfigMap => source.config_map_ref.as_ref().is_some_and(|r| r.name == name),
        Kind::Secret => source.secret_ref.as_ref().is_some_and(|r| r.name == name),
        _ => false,
    });
    from_env
        || container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()).any(|source| match kind {
            Kind::ConfigMap => source.config_map_key_ref.as_ref().is_some_and(|r| r.name == name),
            Kind::Secret => source.secret_key_ref.as_ref().is_some_and(|r| r.name == name),
            _ => false,
        })
}

fn volume_refers(volume: &Volume, kind: Kind, name: &str) -> bool {
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    match kind {
        Kind::ConfigMap => {
            volume.config_map.as_ref().is_some_and(|v| v.name == name)
                || projected.into_iter().any(|s| s.config_map.as_ref().is_some_and(|c| c.name == name))
        }
        Kind::Secret => {
            volume.secret.as_ref().is_some_and(|v| v.secret_name.as_deref() == Some(name))
                || projected.into_iter().any(|s| s.secret.as_ref().is_some_and(|c| c.name == name))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_refer_counts_and_nothing_else() {
        let spec: PodSpec = serde_json::from_value(json!({
            "imagePullSecrets": [{"name": "s-pull"}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s-init"}}]}],
            "containers": [{"name": "a",
                "envFrom": [{"configMapRef": {"name": "c-from"}}],
                "env": [
                    {"name": "x", "valueFrom": {"configMapKeyRef": {"name": "c-key", "key": "k"}}},
                    {"name": "y", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}}]}],
            "volumes": [
                {"name": "v1", "configMap": {"name": "c-vol"}},
                {"name": "v2", "secret": {"secretName": "s-vol"}},
                {"name": "v3", "projected": {"sources": [
                    {"secret": {"name": "s-proj"}}, {"configMap": {"name": "c-proj"}}]}}]
        }))
        .unwrap();
        for name in ["s-pull", "s-init", "s-key", "s-vol", "s-proj"] {
            assert!(refers_to(&spec, Kind::Secret, name), "{name}");
            assert!(!refers_to(&spec, Kind::ConfigMap, name), "{name}");
        }
        for name in ["c-from", "c-key", "c-vol", "c-proj"] {
            assert!(refers_to(&spec, Kind::ConfigMap, name), "{name}");
            assert!(!refers_to(&spec, Kind::Secret, name), "{name}");
        }
        assert!(!refers_to(&spec, Kind::Secret, "other"));
    }
}
