//! The next segment, made ahead. A segment is filled with zeros before it is used: an append then
//! changes nothing but data, and its fsync writes no metadata beside it (a file that was only
//! reserved costs a second write for each, and on a journalling file system a commit of the journal).
//! Filling takes as long as writing a whole segment, so it is done beside, while the one before is used.
//!
//! Nothing rests on a spare: one that is lost, torn or left over is no loss.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::record;
use crate::raft::disk::{Disk, DiskFile};

/// How the names of spares end. What precedes it is unique: no thread that a stopped log left
/// behind can hold a file that another log has begun to use.
const SUFFIX: &str = ".spare";

/// A filled file that is no segment yet.
struct Spare {
    path: PathBuf,
    file: Box<dyn DiskFile>,
}

/// Makes one spare at a time.
pub(super) struct Spares {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    size: u64,
    making: Option<JoinHandle<io::Result<Spare>>>,
}

/// Makes and fills a file. Its name is durable only once its folder was synced.
fn make(disk: &dyn Disk, dir: &Path, size: u64) -> io::Result<Spare> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let name = format!("{}-{}{SUFFIX}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let path = dir.join(name);
    let mut file = disk.create(&path)?;
    let filled = file.preallocate(size).and_then(|()| file.fill(size));
    match filled {
        Ok(()) => Ok(Spare { path, file }),
        Err(error) => {
            drop(disk.remove(&path));
            Err(error)
        }
    }
}

impl Spares {
    /// Removes what earlier ones left. None is made yet.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, size: u64) -> io::Result<Self> {
        for name in disk.list(dir)?.iter().filter(|n| n.ends_with(SUFFIX)) {
            disk.remove(&dir.join(name))?;
        }
        Ok(Self { disk, dir: dir.to_path_buf(), size, making: None })
    }

    /// A filled file under the name of segment `number`: the spare, when it is ready, or one made now.
    pub(super) fn take(&mut self, number: u64) -> io::Result<Box<dyn DiskFile>> {
        let path = self.dir.join(record::file_name(number));
        let made = self.making.take_if(|making| making.is_finished());
        let spare = match made.map(|making| making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))) {
            Some(Ok(spare)) => spare,
            // The disk may be full: what is needed now decides that.
            Some(Err(_)) | None => make(&*self.disk, &self.dir, self.size)?,
        };
        self.disk.rename(&spare.path, &path)?;
        Ok(spare.file)
    }

    /// The next segment will be wanted before long.
    pub(super) fn begin(&mut self) {
        if self.making.is_some() {
            return;
        }
        let (disk, dir, size) = (self.disk.clone(), self.dir.clone(), self.size);
        let making = std::thread::Builder::new().name("raft-spare".into()).spawn(move || make(&*disk, &dir, size));
        // Without a thread now there may be one the next time.
        self.making = making.ok();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::time::{Duration, Instant};

    use super::*;
    use crate::raft::disk::RealDisk;

    fn names(dir: &Path) -> Vec<String> {
        let mut names = RealDisk.list(dir).unwrap();
        names.sort();
        names
    }

    #[test]
    fn a_spare_becomes_the_segment_and_what_is_left_over_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("7-7.spare"), "left over").unwrap();
        std::fs::write(dir.path().join(record::file_name(1)), "a segment").unwrap();
        let mut spares = Spares::new(Arc::new(RealDisk), dir.path(), 100_000).unwrap();
        assert_eq!(names(dir.path()), [record::file_name(1)]);
        // None is ready: made now.
        drop(spares.take(2).unwrap());
        assert_eq!(names(dir.path()), [record::file_name(1), record::file_name(2)]);
        // Made ahead, once, however often it is begun.
        spares.begin();
        spares.begin();
        let until = Instant::now() + Duration::from_secs(20);
        while !spares.making.as_ref().unwrap().is_finished() {
            assert!(Instant::now() < until, "the spare is not made");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(names(dir.path()).len(), 3);
        spares.take(3).unwrap().write_at(0, b"head").unwrap();
        assert_eq!(names(dir.path()), [1, 2, 3].map(record::file_name));
        let bytes = std::fs::read(dir.path().join(record::file_name(3))).unwrap();
        assert_eq!((bytes.len(), &bytes[..4]), (100_000, &b"head"[..]));
        assert!(bytes[4..].iter().all(|b| *b == 0));
    }
}
