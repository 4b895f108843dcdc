//! A Pod's files on this node's disk: the machine's state and the object it was last seen as,
//! each replaced atomically.
use super::machine::Machine;
use k8s_openapi::api::core::v1::Pod;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PersistError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Where things of one Pod lie below the data folder.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// `<data>/pods/<uid>`
    pub fn new(data: &Path, uid: &str) -> Self {
        Self(data.join("pods").join(uid))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The machine's state.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// The object as last acted on.
    pub fn object(&self) -> PathBuf {
        self.0.join("pod.json")
    }

    /// `<container>/<attempt>.log` below it.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The log of one run of a container.
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs().join(container).join(format!("{attempt}.log"))
    }

    /// Volumes that live on disk.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// Writable layers, one folder a run of a container.
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// hosts, resolv.conf, hostname.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// Writes the machine's state.
    pub fn save_state(&self, machine: &Machine) -> Result<(), PersistError> {
        match machine.snapshot() {
            Some(s) => write_json(&self.state(), s),
            None => Ok(()),
        }
    }

    /// Writes the object.
    pub fn save_object(&self, pod: &Pod) -> Result<(), PersistError> {
        write_json(&self.object(), pod)
    }
}

/// Reads a file that may not be there. One that cannot be parsed counts as absent, loudly: it is
/// better to start a Pod afresh than never.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "not what this agent writes: ignored");
            None
        }
    }
}

/// Replaces a file as a whole. Not fsynced: what a power cut takes away here is found out again
/// from the control plane, and containers died with the power anyway.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), PersistError> {
    let fail = |source| PersistError { path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(|e| fail(io::Error::other(e)))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let next = path.with_extension("json.new");
    fs::write(&next, bytes).map_err(fail)?;
    fs::rename(&next, path).map_err(fail)
}

/// The uids that have a folder below `<data>/pods`.
pub fn known_uids(data: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(data.join("pods")) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}
