//! Volumes: [`payload`] decides what a configMap, secret or projected volume holds, [`atomic`]
//! writes it so that readers see the old or the new content as a whole, [`local`] makes the
//! folders, and [`subpath`] finds a folder inside a volume without following links out of it.
//!
//! | source | where it lies |
//! |---|---|
//! | emptyDir | `<pod dir>/volumes/<name>`; medium Memory: a tmpfs mounted there |
//! | hostPath | where it says; never created beyond what `type` asks, never removed |
//! | configMap, downwardAPI | `<pod dir>/volumes/<name>` |
//! | secret, projected | `<run dir>/agent/volumes/<uid>/<name>`: memory on a usual machine |
pub mod atomic;
pub mod local;
pub mod mounts;
pub mod payload;
pub mod subpath;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Pod, Volume};
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use crate::runtime::spec::env::RefKind;

/// Why a volume is not ready.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// What it is made of is not there.
    #[error("MountVolume.SetUp failed for volume \"{volume}\": {kind} \"{name}\" not found")]
    Missing {
        /// The volume.
        volume: String,
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It is there without a key that the volume asks for.
    #[error(
        "MountVolume.SetUp failed for volume \"{volume}\": references non-existent key \"{key}\" of {kind} \"{name}\""
    )]
    MissingKey {
        /// The volume.
        volume: String,
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A path in it that leads out of it.
    #[error("volume \"{volume}\": path {path:?} must be relative and must not contain \"..\"")]
    Path {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// hostPath's type does not fit what is there.
    #[error("MountVolume.SetUp failed for volume \"{volume}\": hostPath type check failed: {path} is not a {wanted}")]
    HostPath {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// What `type` asks for.
        wanted: &'static str,
    },
    /// A source that Trellis does not act on.
    #[error(
        "volume \"{0}\": this kind of volume is not supported (emptyDir, hostPath, configMap, secret, downwardAPI, projected are)"
    )]
    Unsupported(String),
    /// A mount of a volume that the Pod does not have.
    #[error("volumeMount refers to volume \"{0}\", which the Pod does not have")]
    Unknown(String),
    /// A subPath that leads out of its volume or cannot be had.
    #[error("failed to prepare subPath {sub_path:?} of volume \"{volume}\": {source}")]
    SubPath {
        /// The volume.
        volume: String,
        /// The path.
        sub_path: String,
        /// Why.
        source: io::Error,
    },
    /// The file system refused.
    #[error("volume \"{volume}\": {path}: {source}")]
    Io {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where volumes of one Pod lie.
#[derive(Clone, Debug)]
pub struct Places {
    /// On disk.
    pub disk: PathBuf,
    /// In memory.
    pub memory: PathBuf,
}

impl Places {
    /// The folder (or, for hostPath, the path) of a volume.
    pub fn of(&self, volume: &Volume) -> PathBuf {
        match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None if volume.secret.is_some() || volume.projected.is_some() => self.memory.join(&volume.name),
            None => self.disk.join(&volume.name),
        }
    }
}

/// The in-memory folder of a Pod's secrets.
pub fn memory_dir(run_dir: &Path, uid: &str) -> PathBuf {
    run_dir.join("agent").join("volumes").join(uid)
}

/// The ConfigMaps and Secrets that a Pod's volumes need.
pub fn references(pod: &Pod) -> BTreeSet<(RefKind, String)> {
    let mut all = BTreeSet::new();
    for v in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        all.extend(v.config_map.iter().map(|c| (RefKind::ConfigMap, c.name.clone())));
        all.extend(v.secret.iter().filter_map(|s| Some((RefKind::Secret, s.secret_name.clone()?))));
        for p in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            all.extend(p.config_map.iter().map(|c| (RefKind::ConfigMap, c.name.clone())));
            all.extend(p.secret.iter().map(|s| (RefKind::Secret, s.name.clone())));
        }
    }
    all
}
