//! A folder or file inside a volume. A container may write links into its volume, so the path is
//! resolved with the volume as root (openat2, RESOLVE_IN_ROOT): `..` and absolute links stay
//! inside, and links made by the kernel (/proc) are refused.
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

/// The real path of `sub` in `root`; missing folders are made (0755), as Kubernetes does.
pub fn resolve(root: &Path, sub: &str) -> io::Result<PathBuf> {
    let sub = Path::new(sub);
    if sub.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be relative and must not contain \"..\""));
    }
    let handle = OFlags::PATH | OFlags::CLOEXEC;
    let volume = rustix::fs::openat(CWD, root, handle | OFlags::DIRECTORY, Mode::empty())?;
    let found = match open(&volume, sub) {
        Err(Errno::NOENT) => {
            create(&volume, sub)?;
            open(&volume, sub)?
        }
        other => other?,
    };
    // The kernel's own word for where that is; it began at `root`, so it lies in it.
    let real = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let base = std::fs::canonicalize(root)?;
    if !real.starts_with(&base) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "leads out of its volume"));
    }
    Ok(real)
}

fn open(volume: &OwnedFd, sub: &Path) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(volume, sub, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)
}

fn create(volume: &OwnedFd, sub: &Path) -> Result<(), Errno> {
    let mut done = PathBuf::new();
    for part in sub.components().filter(|c| matches!(c, Component::Normal(_))) {
        let parent = if done.as_os_str().is_empty() { open(volume, Path::new("."))? } else { open(volume, &done)? };
        match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        done.push(part);
    }
    Ok(())
}
