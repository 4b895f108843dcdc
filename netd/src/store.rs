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
        let path = self.folder.join("gossip-epoch.json");
        match file::read::<EpochFile>(&path, VERSION) {
            Ok(file) => Ok(file.map_or(0, |file| file.epoch)),
            Err(error) => earlier_epoch(&path).ok_or(error),
        }
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

/// Builds before the first release wrote the pair `[version, epoch]`; an update must find it.
fn earlier_epoch(path: &Path) -> Option<u64> {
    let (_, epoch): (u32, u64) = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(epoch)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_epoch_of_an_earlier_build_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.load_epoch().unwrap(), 0);
        fs::write(dir.path().join("gossip-epoch.json"), "[1,1763733600000]").unwrap();
        assert_eq!(store.load_epoch().unwrap(), 1_763_733_600_000);
        store.save_epoch(1_763_733_600_001).unwrap();
        assert_eq!(store.load_epoch().unwrap(), 1_763_733_600_001);
        fs::write(dir.path().join("gossip-epoch.json"), "nonsense").unwrap();
        assert!(store.load_epoch().is_err());
    }
}
