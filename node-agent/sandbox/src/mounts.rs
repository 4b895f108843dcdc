//! Mounts: overlay roots, binds, and finding and removing what is left below a folder.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};

use crate::SandboxError;

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// The part of the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// The file system's type, e.g. `cgroup2`.
    pub fs_type: String,
    /// The superblock's options, e.g. `rw,memory`.
    pub super_options: String,
}

/// This process' mounts, in the order they were made.
///
/// # Errors
/// When /proc is not mounted.
pub fn all() -> Result<Vec<MountInfo>, SandboxError> {
    let path = "/proc/self/mountinfo";
    let text = fs::read(path).map_err(|e| SandboxError::new("read", path, e))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// See proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, options, optional
/// fields, `-`, type, source, super options.
fn parse(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |i: usize| fields.get(i).map(|f| String::from_utf8_lossy(f).into_owned());
    Some(MountInfo {
        root: unescape(fields.get(3)?),
        mount_point: unescape(fields.get(4)?),
        fs_type: text(dash + 1)?,
        super_options: text(dash + 3)?,
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&out))
}

/// An overlay: lower folders topmost first, a writable upper folder and its work folder.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// At least one; the kernel takes 500.
    pub lower: &'a [PathBuf],
    /// The writable layer.
    pub upper: &'a Path,
    /// On the same file system as `upper`.
    pub work: &'a Path,
}

/// Mounts an overlay at `target`: through `fsopen` with one `lowerdir+` a layer (Linux 6.7), which
/// no path length limits and no character needs escaping; otherwise with one option string.
///
/// # Errors
/// What the kernel says.
pub fn overlay(overlay: Overlay<'_>, target: &Path) -> Result<(), SandboxError> {
    match overlay_by_descriptor(overlay, target) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => overlay_by_string(overlay, target)
            .map_err(|second| SandboxError::new("mount an overlay at", target.display(), second)),
        other => other.map_err(|e| SandboxError::new("mount an overlay at", target.display(), e)),
    }
}

fn overlay_by_descriptor(overlay: Overlay<'_>, target: &Path) -> io::Result<()> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &Path| rustix::mount::fsconfig_set_string(context.as_fd(), key, value);
    for lower in overlay.lower {
        set("lowerdir+", lower)?;
    }
    set("upperdir", overlay.upper)?;
    set("workdir", overlay.work)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn overlay_by_string(overlay: Overlay<'_>, target: &Path) -> io::Result<()> {
    let escape = |path: &Path| {
        let mut out = Vec::new();
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b'\\' | b':' | b',') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
        out
    };
    let lowers: Vec<Vec<u8>> = overlay.lower.iter().map(|p| escape(p)).collect();
    let mut options = b"lowerdir=".to_vec();
    options.extend(lowers.join(&b':'));
    options.extend(b",upperdir=");
    options.extend(escape(overlay.upper));
    options.extend(b",workdir=");
    options.extend(escape(overlay.work));
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    Ok(())
}

/// Mounts a file system that has no device (`tmpfs`, `proc`, `cgroup`, …).
///
/// # Errors
/// What the kernel says.
pub fn filesystem(kind: &str, target: &Path, flags: MountFlags, options: &str) -> Result<(), SandboxError> {
    let error = |e: io::Error| SandboxError::new("mount a file system at", target.display(), e);
    let options = std::ffi::CString::new(options).map_err(|e| error(e.into()))?;
    rustix::mount::mount(kind, target, kind, flags, Some(options.as_c_str())).map_err(|e| error(e.into()))
}

/// Binds `source` (with what is mounted below, if `recursive`) over `target`.
///
/// # Errors
/// What the kernel says.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<(), SandboxError> {
    let done = if recursive {
        rustix::mount::mount_bind_recursive(source, target)
    } else {
        rustix::mount::mount_bind(source, target)
    };
    done.map_err(|e| SandboxError::new("bind", format!("{} over {}", source.display(), target.display()), e))
}

/// Makes all mounts receive what the original namespace mounts and send nothing back.
///
/// # Errors
/// What the kernel says.
pub fn all_downstream() -> Result<(), SandboxError> {
    propagation(MountPropagationFlags::DOWNSTREAM)
}

/// Cuts all mounts off from the original namespace.
///
/// # Errors
/// What the kernel says.
pub fn all_private() -> Result<(), SandboxError> {
    propagation(MountPropagationFlags::PRIVATE)
}

fn propagation(kind: MountPropagationFlags) -> Result<(), SandboxError> {
    rustix::mount::mount_change("/", kind | MountPropagationFlags::REC)
        .map_err(|e| SandboxError::new("change propagation of", "/", e))
}

/// Detaches the topmost mount at a path; no mount there is fine.
///
/// # Errors
/// What the kernel says.
pub fn detach(target: &Path) -> Result<(), SandboxError> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(SandboxError::new("unmount", target.display(), e)),
    }
}

/// Detaches everything mounted at or below `dir`, the latest first.
///
/// # Errors
/// When something stays mounted: what lies below must not be removed then.
pub fn detach_below(dir: &Path) -> Result<usize, SandboxError> {
    let below = || -> Result<Vec<PathBuf>, SandboxError> {
        Ok(all()?.into_iter().map(|m| m.mount_point).filter(|p| p.starts_with(dir)).collect())
    };
    let found = below()?;
    for mount_point in found.iter().rev() {
        detach(mount_point)?;
    }
    match below()?.first() {
        None => Ok(found.len()),
        Some(left) => Err(SandboxError::new("unmount", left.display(), io::Error::from_raw_os_error(libc::EBUSY))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_optional_fields_and_escapes() {
        let line = br"36 35 98:0 /mnt1 /with\040space rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let info = parse(line).unwrap();
        assert_eq!(info.mount_point, Path::new("/with space"));
        assert_eq!(info.root, Path::new("/mnt1"));
        assert_eq!((info.fs_type.as_str(), info.super_options.as_str()), ("ext3", "rw,errors=continue"));
        assert_eq!(parse(b""), None);
        assert!(all().unwrap().iter().any(|m| m.mount_point == Path::new("/")));
    }
}
