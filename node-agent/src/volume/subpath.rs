//! A folder or file inside a volume. A container may write links into its volume, so the path is
//! resolved with the volume as root ([`trellis_sandbox::subpath`]): `..` and absolute links stay
//! inside, and links made by the kernel (/proc) are refused. What the shim mounts it opens again
//! in the same way, so a link exchanged in between gains nothing.
use std::{
    io,
    os::fd::AsRawFd,
    path::{Component, Path, PathBuf},
};
use trellis_sandbox::subpath::{make_folders, open};

/// The real path of `sub` in `root`; missing folders are made (0755), as Kubernetes does.
pub fn resolve(root: &Path, sub: &str) -> io::Result<PathBuf> {
    let sub = Path::new(sub);
    if sub.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be relative and must not contain \"..\""));
    }
    let found = match open(root, sub) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make_folders(root, sub)?;
            open(root, sub)?
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
