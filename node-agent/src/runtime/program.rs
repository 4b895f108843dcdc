//! The shim's program, executed from a sealed copy in memory that all shims of this agent share.
//!
//! A container shares its kernel with its shim, and its first process is the shim's program until
//! its own takes over: through `/proc/<pid>/exe` a program that gained root in a container could
//! reach the file, and overwrite what the next Pod is started with (CVE-2019-5736). A sealed copy
//! belongs to no file system, and nobody can write to it. One copy an agent, not one a shim: some
//! megabytes a Pod otherwise.
use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use trellis_sandbox::sealed;

/// Where the program lies, and its copy. Clones share it.
#[derive(Clone, Debug)]
pub struct ShimProgram {
    path: PathBuf,
    copy: Arc<Mutex<Option<Copied>>>,
}

#[derive(Clone, Debug)]
struct Copied {
    of: Identity,
    fd: Arc<OwnedFd>,
}

/// Tells a replaced program from the one that was copied: device, inode, size, change time.
type Identity = (u64, u64, u64, i64, i64);

impl ShimProgram {
    /// The program at `path`. Nothing is read yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path, copy: Arc::default() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A sealed copy of the program as it is now. `None`, with a word in the log, where this machine
    /// allows none (`vm.memfd_noexec` 2) or the program cannot be read: it is executed from its file
    /// then, and whatever is wrong with that is told there. Blocking.
    pub fn sealed(&self) -> Option<Arc<OwnedFd>> {
        match self.copied() {
            Ok(fd) => Some(fd),
            Err(error) => {
                tracing::warn!(program = %self.path.display(), error, "the shim runs from its file, not from a sealed copy");
                None
            }
        }
    }

    fn copied(&self) -> Result<Arc<OwnedFd>, String> {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        let now = identity(&self.path).map_err(|e| e.to_string())?;
        if let Some(copied) = copy.as_ref().filter(|c| c.of == now) {
            return Ok(Arc::clone(&copied.fd));
        }
        let fd = Arc::new(sealed::copy(&self.path).map_err(|e| e.to_string())?);
        *copy = Some(Copied { of: now, fd: Arc::clone(&fd) });
        Ok(fd)
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let m = fs::metadata(path)?;
    Ok((m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_copy_is_shared_until_the_program_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, "one").unwrap();
        let program = ShimProgram::at(path.clone());
        let first = program.sealed().unwrap();
        assert!(Arc::ptr_eq(&first, &program.clone().sealed().unwrap()));
        // As a package replaces it: another file under its name.
        fs::write(dir.path().join("new"), "other").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(!Arc::ptr_eq(&first, &program.sealed().unwrap()));
        fs::remove_file(&path).unwrap();
        assert!(program.sealed().is_none());
    }
}
