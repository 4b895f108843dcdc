//! The narrow door to the disk: everything Raft must not lose goes through [`Disk`], so that a
//! test disk can lose and tear whatever was not fsynced ([`SimDisk`](super::simdisk::SimDisk)).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Which promise an fsync makes. Real disks only count them; the test disk can break one kind,
/// and then a test must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SyncSite {
    /// Appended entries.
    Append,
    /// A vote.
    Vote,
    /// The log's folder, after a segment was made in it.
    LogDir,
    /// The cut behind a torn tail.
    Repair,
    /// A snapshot's content.
    SnapshotData,
    /// The snapshots' folder, after a snapshot got its name.
    SnapshotDir,
}

impl SyncSite {
    /// All of them.
    pub const ALL: [SyncSite; 6] = [
        SyncSite::Append,
        SyncSite::Vote,
        SyncSite::LogDir,
        SyncSite::Repair,
        SyncSite::SnapshotData,
        SyncSite::SnapshotDir,
    ];
}

/// A disk. Paths are absolute or relative to wherever the implementation says.
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Makes a folder and its parents.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names in a folder.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes an empty file, replacing one of that name.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading from its start; it stays readable when it is removed.
    fn reader(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// Reads a part of a file.
    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Renames a file within its folder.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path, site: SyncSite) -> io::Result<()>;
    /// Keeps other processes out of a folder until it is dropped.
    fn lock(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// A file open for writing.
pub trait DiskFile: Send {
    /// Writes all of it at an offset.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reserves space, so that appends change no metadata; only a hint.
    fn preallocate(&mut self, length: u64) -> io::Result<()>;
    /// Writes zeros over the first `length` bytes, and to the disk: what is written there later changes
    /// content alone. Only a hint; nothing may rest on it.
    fn fill(&mut self, length: u64) -> io::Result<()>;
    /// Cuts or extends.
    fn set_len(&mut self, length: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&mut self, site: SyncSite) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        // The log holds what the cluster's clients wrote: for the owner's eyes only.
        options.write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().write(true).open(path)?)))
    }

    fn reader(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path)?))
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        File::open(path)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path, _site: SyncSite) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(fs::TryLockError::WouldBlock) => {
                let text = "another process is using this folder";
                Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
            }
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn preallocate(&mut self, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(&self.0, FallocateFlags::empty(), 0, length) {
            // Not every file system can; the log grows as it is written then.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(Into::into),
        }
    }

    fn fill(&mut self, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut at = 0;
        while at < length {
            let part = (length - at).min(ZEROS.len() as u64);
            self.write_at(at, &ZEROS[..part as usize])?;
            at += part;
        }
        self.0.sync_data()
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&mut self, _site: SyncSite) -> io::Result<()> {
        // fdatasync: it includes the length when that changed, not the time stamps.
        self.0.sync_data()
    }
}
