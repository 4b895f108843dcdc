//! Snapshot files: written aside, fsynced, renamed, the folder fsynced; only then is an older
//! one removed and the log purged.
//!
//! ```text
//! "TRLSNAP" version:u8  length:u32le crc:u32le postcard(SnapshotMeta)  store snapshot
//! ```

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::SnapshotMeta;
use super::disk::{Disk, DiskFile, SyncSite};
use crate::store::snapshot::{Capture, read_from};
use crate::store::{HistoryLimits, State};

const MAGIC: &[u8; 8] = b"TRLSNAP\x01";
/// Largest description accepted: memberships are a handful of members.
const MAX_META: u32 = 1024 * 1024;
/// One write: large enough for the disk, small enough for memory.
const WRITE_BYTES: usize = 256 * 1024;

/// A snapshot, open for reading from its start; stays readable when its file is replaced.
pub struct SnapshotFile {
    pub(super) reader: Box<dyn Read + Send>,
    /// Where it lies.
    pub(super) path: PathBuf,
}

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotFile").field("path", &self.path).finish()
    }
}

/// The folder of snapshots.
#[derive(Debug)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// The snapshot in force; guards naming and removing.
    current: Mutex<Option<(SnapshotMeta, PathBuf)>>,
    temporary: AtomicU64,
}

/// A snapshot being written.
pub struct Draft {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    offset: u64,
    disk: Arc<dyn Disk>,
    kept: bool,
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.disk.remove(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "an unfinished snapshot stays");
        }
    }
}

fn invalid(path: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot {}: {why}", path.display()))
}

fn name(meta: &SnapshotMeta) -> String {
    let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.committed_leader_id().term, id.index));
    format!("{index:016x}-{term:016x}.snap")
}

impl Snapshots {
    /// Opens the folder: unfinished drafts are removed, the newest snapshot comes into force.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> io::Result<Arc<Self>> {
        disk.create_dir(dir)?;
        let mut names = disk.list(dir)?;
        names.sort();
        for draft in names.iter().filter(|n| n.ends_with(".tmp")) {
            disk.remove(&dir.join(draft))?;
        }
        // Names sort by index. An older one beside it means a crash before its removal.
        let newest = names.iter().rev().find(|n| n.ends_with(".snap"));
        let mut current = None;
        if let Some(newest) = newest {
            let path = dir.join(newest);
            let meta = read_meta(&mut *disk.reader(&path)?, &path)?;
            current = Some((meta, path));
        }
        for old in names.iter().filter(|n| n.ends_with(".snap") && Some(*n) != newest) {
            disk.remove(&dir.join(old))?;
        }
        Ok(Arc::new(Self { disk, dir: dir.to_path_buf(), current: Mutex::new(current), temporary: AtomicU64::new(0) }))
    }

    /// The snapshot in force.
    pub fn current(&self) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((meta, path)) = &*current else {
            return Ok(None);
        };
        let file = SnapshotFile { reader: self.disk.reader(path)?, path: path.clone() };
        Ok(Some((meta.clone(), file)))
    }

    pub(super) fn owns(&self, path: &Path) -> bool {
        path.parent() == Some(&self.dir)
    }

    /// Begins a new file aside.
    pub fn draft(&self) -> io::Result<Draft> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{number}.tmp"));
        Ok(Draft { file: self.disk.create(&path)?, path, offset: 0, disk: self.disk.clone(), kept: false })
    }

    /// Writes a captured state and brings it into force.
    pub fn write(&self, meta: &SnapshotMeta, capture: &Capture) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(WRITE_BYTES, self.draft()?);
        let described = postcard::to_stdvec(meta).map_err(io::Error::other)?;
        let length = u32::try_from(described.len()).map_err(io::Error::other)?;
        out.write_all(MAGIC)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&crc32fast::hash(&described).to_le_bytes())?;
        out.write_all(&described)?;
        capture.write_to(&mut out)?;
        let draft = out.into_inner().map_err(|e| e.into_error())?;
        self.adopt(meta, draft)
    }

    /// Makes a whole draft durable and brings it into force, unless a newer one already is.
    pub fn adopt(&self, meta: &SnapshotMeta, mut draft: Draft) -> io::Result<()> {
        draft.file.sync(SyncSite::SnapshotData)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(have, _)| have.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        let path = self.dir.join(name(meta));
        self.disk.rename(&draft.path, &path)?;
        draft.kept = true;
        self.disk.sync_dir(&self.dir, SyncSite::SnapshotDir)?;
        let old = current.replace((meta.clone(), path.clone()));
        if let Some((_, old)) = old
            && old != path
            && let Err(error) = self.disk.remove(&old)
        {
            tracing::warn!(path = %old.display(), %error, "an old snapshot cannot be removed");
        }
        Ok(())
    }

    /// Opens a draft that was received, to look at it before it is adopted.
    pub(super) fn reopen(&self, draft: &Draft) -> io::Result<SnapshotFile> {
        Ok(SnapshotFile { reader: self.disk.reader(&draft.path)?, path: draft.path.clone() })
    }

    /// Removes a draft's file by its path, if nobody adopted or removed it.
    pub(super) fn discard(&self, path: &Path) {
        match self.disk.remove(path) {
            Ok(()) => tracing::debug!(path = %path.display(), "a snapshot that is not needed is removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "a refused snapshot cannot be removed"),
        }
    }

    /// Takes over a draft's file by its path, as a [`SnapshotFile`] names it.
    pub(super) fn draft_at(&self, path: &Path) -> io::Result<Draft> {
        Ok(Draft {
            file: self.disk.open(path)?,
            path: path.to_path_buf(),
            offset: 0,
            disk: self.disk.clone(),
            kept: false,
        })
    }
}

impl Draft {
    /// Leaves the file to whoever was given its path.
    pub(super) fn hand_over(mut self) {
        self.kept = true;
    }
}

fn read_meta(input: &mut dyn Read, path: &Path) -> io::Result<SnapshotMeta> {
    let mut head = [0; 16];
    input.read_exact(&mut head)?;
    if head[..7] != MAGIC[..7] {
        return Err(invalid(path, "this is no snapshot"));
    }
    if head[7] != MAGIC[7] {
        return Err(invalid(path, format!("format {}, this program reads {}: update it", head[7], MAGIC[7])));
    }
    let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    if word(8) > MAX_META {
        return Err(invalid(path, "its description is damaged"));
    }
    let mut described = vec![0; word(8) as usize];
    input.read_exact(&mut described)?;
    if crc32fast::hash(&described) != word(12) {
        return Err(invalid(path, "its description is damaged"));
    }
    postcard::from_bytes(&described).map_err(|e| invalid(path, e))
}

/// Reads a whole snapshot: its description and the state.
pub(super) fn read_state(file: SnapshotFile, limits: HistoryLimits) -> io::Result<(SnapshotMeta, State)> {
    let mut input = BufReader::with_capacity(WRITE_BYTES, file.reader);
    let meta = read_meta(&mut input, &file.path)?;
    let state = read_from(&mut input, limits).map_err(|e| invalid(&file.path, e))?;
    Ok((meta, state))
}

/// Reads a whole snapshot and forgets it: whether it is intact.
pub fn check_snapshot(file: SnapshotFile) -> io::Result<()> {
    read_state(file, HistoryLimits::default()).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::raft::config::StoredMembership;
    use crate::raft::disk::RealDisk;

    #[test]
    fn a_draft_that_was_handed_over_in_vain_is_discarded_and_an_adopted_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(Arc::new(RealDisk), dir.path()).unwrap();
        let handed_over = || {
            let draft = snapshots.draft().unwrap();
            let path = draft.path.clone();
            draft.hand_over();
            path
        };
        let files = || std::fs::read_dir(dir.path()).unwrap().count();
        let refused = handed_over();
        assert_eq!(files(), 1);
        snapshots.discard(&refused);
        assert_eq!(files(), 0);
        let meta = SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() };
        let adopted = handed_over();
        snapshots.adopt(&meta, snapshots.draft_at(&adopted).unwrap()).unwrap();
        snapshots.discard(&adopted);
        assert_eq!((files(), snapshots.current().unwrap().is_some()), (1, true));
    }
}
