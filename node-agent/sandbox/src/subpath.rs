//! A place inside a folder that somebody else writes to: found, and mounted elsewhere, without ever
//! following a link out of it.
//!
//! openat2 with RESOLVE_IN_ROOT resolves the path with the folder as root, in one system call;
//! what it opened is then mounted by its descriptor (open_tree), not by a name that may have
//! changed since.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::SandboxError;

/// Between two renames of a folder on the way the kernel may give up; each try is microseconds.
const TRIES: u32 = 64;

/// Opens `path` (O_PATH) with `root` as its root: `..` and absolute links stay inside, links of
/// /proc are refused.
///
/// # Errors
/// What the kernel says; `EAGAIN` when the way there changes all the time.
pub fn open(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    // The folder itself may be reached over links: only root writes there.
    let root = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
    Ok(open_in(&root, path)?)
}

/// The same, with an open folder.
///
/// # Errors
/// As [`open`].
pub fn open_in(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside) {
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Makes the folders of `path` in `root` that are missing, 0755; links on the way are followed
/// inside.
///
/// # Errors
/// `ENOTDIR` where something else is in the way, and what else the kernel says.
pub fn make_folders(root: &Path, path: &Path) -> io::Result<()> {
    let root = open(root, Path::new("."))?;
    let mut done = PathBuf::from(".");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent = open_in(&root, &done)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        done.push(name);
    }
    Ok(())
}

/// Mounts `path` of `root`, with what is mounted below it, at `target`, which is made as a folder
/// or a file, whichever it is.
///
/// # Errors
/// When the path is not there or leads nowhere inside, or the kernel refuses the mount.
pub fn mount(root: &Path, path: &Path, target: &Path) -> Result<(), SandboxError> {
    let inside = Path::new(".").join(path);
    let error = |e: io::Error| {
        SandboxError::new("mount part of a volume", format!("{} of {}", path.display(), root.display()), e)
    };
    let place = open(root, &inside).map_err(error)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place).map_err(|e| error(e.into()))?.st_mode);
    match kind {
        rustix::fs::FileType::Directory => fs::create_dir_all(target).map_err(error)?,
        // An absolute link to itself, or one that dangles.
        rustix::fs::FileType::Symlink => return Err(error(Errno::LOOP.into())),
        _ => drop(File::create(target).map_err(error)?),
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(&place, "", flags).map_err(|e| error(e.into()))?;
    rustix::mount::move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| error(e.into()))
}
