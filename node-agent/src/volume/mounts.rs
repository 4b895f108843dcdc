//! A container's volumeMounts as mounts of its OCI spec, parents before children.
use super::{Places, VolumeError, subpath};
use crate::runtime::spec::expand::expand;
use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::Mount;
use std::path::Path;
use trellis_shim_protocol::{SubPath, defaults};

/// What a container's volumeMounts amount to.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Sorted so that one below another comes after it.
    pub mounts: Vec<Mount>,
    /// Those of `mounts` that are a part of their volume: the shim looks for it again.
    pub sub_paths: Vec<SubPath>,
}

/// All mounts of `c`.
pub fn of(pod: &Pod, c: &Container, places: &Places, env: &[(String, String)]) -> Result<Mounts, VolumeError> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mut out = Vec::new();
    let mut sub_paths = Vec::new();
    for m in c.volume_mounts.iter().flatten() {
        let volume = volumes.iter().find(|v| v.name == m.name).ok_or_else(|| VolumeError::Unknown(m.name.clone()))?;
        let root = places.of(volume);
        let sub = match (&m.sub_path_expr, &m.sub_path) {
            (Some(text), _) if !text.is_empty() => expand(text, env),
            (_, Some(text)) => text.clone(),
            _ => String::new(),
        };
        let source = if sub.is_empty() {
            root
        } else {
            let real = subpath::resolve(&root, &sub).map_err(|source| VolumeError::SubPath {
                volume: m.name.clone(),
                sub_path: sub.clone(),
                source,
            })?;
            sub_paths.push(SubPath { destination: m.mount_path.clone().into(), volume: root, path: sub.into() });
            real
        };
        // What the control plane writes is not the container's to change, as in Kubernetes.
        let payload = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        let read_only = payload || m.read_only == Some(true);
        out.push(mount(&source, &m.mount_path, read_only, m.mount_propagation.as_deref()));
    }
    out.sort_by_key(|m: &Mount| m.destination().components().count());
    Ok(Mounts { mounts: out, sub_paths })
}

fn mount(source: &Path, destination: &str, read_only: bool, propagation: Option<&str>) -> Mount {
    let propagation = match propagation {
        Some("HostToContainer") => "rslave",
        Some("Bidirectional") => "rshared",
        _ => "rprivate",
    };
    let mode = if read_only { "ro" } else { "rw" };
    defaults::mount(destination, "bind", &source.to_string_lossy(), &["rbind", propagation, mode])
}
