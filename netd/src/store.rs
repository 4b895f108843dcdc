//! What netd keeps on disk: its allocations (written before an address is answered), what it
//! last knew of the cluster, and its gossip epoch. Every file begins with a format version.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use trellis_proto::node_config::write_private;

use crate::cluster::Cluster;
use crate::ipam::Ipam;

/// The format that this release writes.
const VERSION: u32 = 1;

/// A file cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not what was written.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// From a newer release.
    #[error("{path}: format version {found} is newer than {VERSION}: install a newer release")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct ClusterFile<C> {
    version: u32,
    cluster: C,
}

/// The files of one netd.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Uses (and makes) `folder`.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|source| StoreError::Io { path: folder.into(), source })?;
        Ok(Self { folder: folder.into() })
    }

    /// The allocations; None on the first start.
    pub fn load_ipam(&self) -> Result<Option<Ipam>, StoreError> {
        let path = self.folder.join("ipam.json");
        let ipam: Option<Ipam> = read(&path)?;
        match ipam {
            Some(ipam) if ipam.version() > VERSION => Err(StoreError::TooNew { path, found: ipam.version() }),
            other => Ok(other),
        }
    }

    /// Writes the allocations; when this returns they are on disk.
    pub fn save_ipam(&self, ipam: &Ipam) -> Result<(), StoreError> {
        write(&self.folder.join("ipam.json"), ipam)
    }

    /// What was last known of the cluster; None on the first start.
    pub fn load_cluster(&self) -> Result<Option<Cluster>, StoreError> {
        let path = self.folder.join("cluster.json");
        let file: Option<ClusterFile<Cluster>> = read(&path)?;
        match file {
            Some(file) if file.version > VERSION => Err(StoreError::TooNew { path, found: file.version }),
            other => Ok(other.map(|file| file.cluster)),
        }
    }

    /// Writes what is known of the cluster.
    pub fn save_cluster(&self, cluster: &Cluster) -> Result<(), StoreError> {
        write(&self.folder.join("cluster.json"), &ClusterFile { version: VERSION, cluster })
    }

    /// The highest gossip epoch used so far; 0 on the first start.
    pub fn load_epoch(&self) -> Result<u64, StoreError> {
        let path = self.folder.join("gossip-epoch.json");
        let file: Option<(u32, u64)> = read(&path)?;
        match file {
            Some((version, _)) if version > VERSION => Err(StoreError::TooNew { path, found: version }),
            other => Ok(other.map_or(0, |(_, epoch)| epoch)),
        }
    }

    /// Writes the highest gossip epoch.
    pub fn save_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        write(&self.folder.join("gossip-epoch.json"), &(VERSION, epoch))
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Io { path: path.into(), source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| StoreError::Parse { path: path.into(), source })
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|source| StoreError::Parse { path: path.into(), source })?;
    write_private(path, &bytes).map_err(|source| StoreError::Io { path: path.into(), source })
}
