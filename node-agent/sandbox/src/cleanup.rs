//! Removing whatever a Pod has left on this machine, whoever was killed when.
//!
//! Processes first (by cgroup: nothing escapes it), then mounts (most died with the shim's mount
//! namespace), then cgroups, then folders. Every step is idempotent and does nothing where nothing is left.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::SandboxError;
use crate::cgroup::{CgroupRoot, Cgroups};
use crate::mounts;

/// What to remove.
#[derive(Clone, Debug)]
pub struct Cleanup {
    /// What `cgroup_path` is relative to.
    pub cgroup_root: CgroupRoot,
    /// The Pod's cgroup; everything in it and below is killed.
    pub cgroup_path: String,
    /// Folders: everything mounted at or below them is unmounted, then they are removed.
    pub dirs: Vec<PathBuf>,
    /// How long processes and cgroups may take to vanish (each).
    pub within: Duration,
}

/// What was found and removed; all zero when nothing was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Processes killed.
    pub processes: usize,
    /// Mounts detached in this process' mount namespace.
    pub mounts: usize,
    /// Folders removed.
    pub dirs: usize,
}

/// Removes a Pod's leftovers. Idempotent. Blocks up to twice `within`.
///
/// # Errors
/// When a process cannot be killed or a mount not detached: nothing below it is removed then, or
/// the removal could reach through the mount.
pub fn cleanup(what: &Cleanup) -> Result<Cleaned, SandboxError> {
    let group = Cgroups::detect(&what.cgroup_root)?.group(&what.cgroup_path);
    if group.path().as_os_str().is_empty() {
        return Err(SandboxError::new(
            "clean up cgroup",
            &what.cgroup_path,
            io::Error::new(io::ErrorKind::InvalidInput, "it names the root"),
        ));
    }
    let mut cleaned = Cleaned { processes: group.kill(what.within)?, ..Cleaned::default() };
    for dir in &what.dirs {
        cleaned.mounts += mounts::detach_below(dir)?;
    }
    group.remove(what.within)?;
    for dir in &what.dirs {
        match fs::remove_dir_all(dir) {
            Ok(()) => cleaned.dirs += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(SandboxError::new("remove folder", dir.display(), e)),
        }
    }
    Ok(cleaned)
}
