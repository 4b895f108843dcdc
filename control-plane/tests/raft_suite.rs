//! openraft's own storage suite against the log and the state machine.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use trellis_control_plane::raft::disk::RealDisk;
use trellis_control_plane::raft::{LogStore, Machine, Snapshots, Tuning, TypeConfig};
use trellis_control_plane::store::Store;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        // Tiny segments and cache: every path is taken, not only the warm one.
        let tuning = Tuning { segment_bytes: 256, cache_bytes: 128, ..Tuning::default() };
        let disk = Arc::new(RealDisk);
        let log = LogStore::open(disk.clone(), &dir.path().join("log"), &tuning).unwrap();
        let snapshots = Snapshots::open(disk, &dir.path().join("snapshots")).unwrap();
        Ok((dir, log, Machine::new(Store::default(), snapshots)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_suite() {
    Suite::test_all(Builder).await.unwrap();
}
