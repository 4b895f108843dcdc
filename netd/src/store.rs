//! What netd keeps on disk: its allocations (written before an address is answered), what it
//! last knew of the cluster, its gossip epoch, and how far it heard the others. Every file begins with a format version.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use trellis_gossip::Heard;
use trellis_proto::file;
pub use trellis_proto::file::FileError as StoreError;

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

#[derive(Serialize, Deserialize)]
struct HeardFile {
    version: u32,
    heard: Vec<Heard>,
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

    /// The allocations; None on the first start, and when they cannot be understood.
    pub fn load_ipam(&self) -> Result<Option<Ipam>, StoreError> {
        read_or_set_aside(&self.folder.join("ipam.json"))
    }

    /// Writes the allocations; when this returns they are on disk.
    pub fn save_ipam(&self, ipam: &Ipam) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("ipam.json"), ipam)
    }

    /// Writes the allocations on a thread of its own: while the disk works, the kernel can be worked
    /// on. They are on disk when the thread has ended with `Ok`.
    pub fn save_ipam_beside(&self, ipam: &Ipam) -> Result<Saving, StoreError> {
        write_beside(self.folder.join("ipam.json"), ipam.clone())
    }

    /// What was last known of the cluster; None on the first start, and when it cannot be understood.
    pub fn load_cluster(&self) -> Result<Option<Cluster>, StoreError> {
        let file: Option<ClusterFile<Cluster>> = read_or_set_aside(&self.folder.join("cluster.json"))?;
        Ok(file.map(|file| file.cluster))
    }

    /// Writes what is known of the cluster.
    pub fn save_cluster(&self, cluster: &Cluster) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("cluster.json"), &ClusterFile { version: VERSION, cluster })
    }

    /// Writes what is known of the cluster on a thread of its own.
    pub fn save_cluster_beside(&self, cluster: &Cluster) -> Result<Saving, StoreError> {
        write_beside(self.folder.join("cluster.json"), ClusterFile { version: VERSION, cluster: cluster.clone() })
    }

    /// The highest gossip epoch used so far; 0 on the first start, and when it cannot be understood.
    pub fn load_epoch(&self) -> Result<u64, StoreError> {
        let path = self.folder.join("gossip-epoch.json");
        if let Some(epoch) = earlier_epoch(&path) {
            return Ok(epoch);
        }
        Ok(read_or_set_aside::<EpochFile>(&path)?.map_or(0, |file| file.epoch))
    }

    /// Writes the highest gossip epoch.
    pub fn save_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("gossip-epoch.json"), &EpochFile { version: VERSION, epoch })
    }

    /// How far gossip heard the other nodes; empty on the first start, and when it cannot be understood.
    pub fn load_heard(&self) -> Result<Vec<Heard>, StoreError> {
        let file: Option<HeardFile> = read_or_set_aside(&self.folder.join("gossip-heard.json"))?;
        Ok(file.map_or_else(Vec::new, |file| file.heard))
    }

    /// Writes how far gossip heard the other nodes.
    pub fn save_heard(&self, heard: Vec<Heard>) -> Result<(), StoreError> {
        file::write_compact(&self.folder.join("gossip-heard.json"), &HeardFile { version: VERSION, heard })
    }
}

/// As [`file::read`]; but a file that cannot be understood is put aside, for people to look at, and
/// counts as missing: a node without netd has no Pods. Most of it can be learned anew, from the API,
/// the kernel and the other nodes. Lost for good is which addresses were freed lately whose Pods
/// nobody shows any more: one of them may be given before it has rested. What a newer release wrote is refused: it is understood there.
fn read_or_set_aside<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let error = match file::read(path, VERSION) {
        Err(error @ StoreError::Parse { .. }) => error,
        done => return done,
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(".unreadable");
    tracing::error!(%error, aside = %Path::new(&aside).display(), "a file cannot be understood; it is put aside and learned anew");
    fs::rename(path, &aside).map_err(StoreError::io(path))?;
    Ok(None)
}

/// A file that is being written beside.
pub type Saving = JoinHandle<Result<(), StoreError>>;

fn write_beside<T: Serialize + Send + 'static>(path: PathBuf, value: T) -> Result<Saving, StoreError> {
    let at = path.clone();
    let write = move || file::write_compact(&at, &value);
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
        assert_eq!(store.load_epoch().unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_understood_is_put_aside_and_what_is_too_new_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for name in ["ipam.json", "cluster.json", "gossip-epoch.json", "gossip-heard.json"] {
            let (path, aside) = (dir.path().join(name), dir.path().join(format!("{name}.unreadable")));
            let read = || match name {
                "ipam.json" => store.load_ipam().map(|ipam| ipam.is_none()),
                "cluster.json" => store.load_cluster().map(|cluster| cluster.is_none()),
                "gossip-heard.json" => store.load_heard().map(|heard| heard.is_empty()),
                _ => store.load_epoch().map(|epoch| epoch == 0),
            };
            for torn in ["", "{\"version\": 1, ", "\0\0\0\0"] {
                fs::write(&path, torn).unwrap();
                assert!(read().unwrap(), "{name}: {torn:?}");
                assert_eq!(fs::read_to_string(&aside).unwrap(), torn);
                assert!(!path.exists());
            }
            fs::write(&path, "{\"version\": 99}").unwrap();
            assert!(matches!(read(), Err(StoreError::TooNew { found: 99, .. })), "{name}");
            assert!(path.exists(), "what a newer release wrote stays");
        }
    }
}
