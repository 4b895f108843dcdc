//! What netd keeps on disk: its allocations (written before an address is answered), what it
//! last knew of the cluster, and its gossip epoch. Every file begins with a format version.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use trellis_proto::file;
pub use trellis_proto::file::FileError as StoreError;
use trellis_proto::node_config::write_private;

use crate::cluster::Cluster;
use crate::ipam::Ipam;

/// The format that this release writes.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct ClusterFile<C> {
    version: u32,
    cluster: C,
}

#[derive(Serialize, Deserialize)]
struct EpochFile {
    version: u32,
    epoch: u64,
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
        file::read(&self.folder.join("ipam.json"), VERSION)
    }

    /// Writes the allocations; when this returns they are on disk.
    pub fn save_ipam(&self, ipam: &Ipam) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("ipam.json"), ipam)
    }

    /// Writes the allocations on a thread of its own: while the disk works, the kernel can be worked
    /// on. They are on disk when the thread has ended with `Ok`.
    pub fn save_ipam_beside(&self, ipam: &Ipam) -> Result<Saving, StoreError> {
        write_beside(self.folder.join("ipam.json"), ipam)
    }

    /// What was last known of the cluster; None on the first start.
    pub fn load_cluster(&self) -> Result<Option<Cluster>, StoreError> {
        let file: Option<ClusterFile<Cluster>> = file::read(&self.folder.join("cluster.json"), VERSION)?;
        Ok(file.map(|file| file.cluster))
    }

    /// Writes what is known of the cluster.
    pub fn save_cluster(&self, cluster: &Cluster) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("cluster.json"), &ClusterFile { version: VERSION, cluster })
    }

    /// Writes what is known of the cluster on a thread of its own.
    pub fn save_cluster_beside(&self, cluster: &Cluster) -> Result<Saving, StoreError> {
        write_beside(self.folder.join("cluster.json"), &ClusterFile { version: VERSION, cluster })
    }

    /// The highest gossip epoch used so far; 0 on the first start.
    pub fn load_epoch(&self) -> Result<u64, StoreError> {
        let file: Option<EpochFile> = file::read(&self.folder.join("gossip-epoch.json"), VERSION)?;
        Ok(file.map_or(0, |file| file.epoch))
    }

    /// Writes the highest gossip epoch.
    pub fn save_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("gossip-epoch.json"), &EpochFile { version: VERSION, epoch })
    }
}

/// A file that is being written beside.
pub type Saving = JoinHandle<Result<(), StoreError>>;

fn write_beside<T: Serialize>(path: PathBuf, value: &T) -> Result<Saving, StoreError> {
    let json = serde_json::to_vec(value).map_err(|source| StoreError::Parse { path: path.clone(), source })?;
    let at = path.clone();
    let write = move || write_private(&at, &json).map_err(StoreError::io(&at));
    std::thread::Builder::new().name("save".into()).spawn(write).map_err(StoreError::io(&path))
}
