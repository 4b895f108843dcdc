//! Folders: emptyDir on disk or in memory, hostPath's checks; and taking them away again.
use super::VolumeError;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use rustix::{
    fs::{Gid, chown},
    mount::{MountFlags, UnmountFlags},
};
use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};
use trellis_model::Quantity;

/// Makes an emptyDir; one that exists is kept with what is in it.
pub fn empty_dir(
    dir: &Path,
    volume: &str,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
) -> Result<(), VolumeError> {
    let fail = |source| VolumeError::Io { volume: volume.to_owned(), path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(fail)?;
    if source.medium.as_deref() == Some("Memory") && !is_mount_point(dir).map_err(fail)? {
        let limit = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(Quantity::bytes);
        let size = limit.filter(|b| *b > 0).map(|b| format!("size={b}")).unwrap_or_default();
        let options = CString::new(size).map_err(|e| fail(e.into()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("tmpfs", dir, "tmpfs", flags, options.as_c_str()).map_err(|e| fail(e.into()))?;
    }
    let mode = if let Some(gid) = group {
        chown(dir, None, Some(Gid::from_raw(gid))).map_err(|e| fail(e.into()))?;
        0o2777
    } else {
        0o777
    };
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(fail)
}

/// Is something mounted on this very folder?
pub fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// Checks, and where `type` says so creates, what a hostPath names.
pub fn host_path(volume: &str, source: &HostPathVolumeSource) -> Result<(), VolumeError> {
    let path = Path::new(&source.path);
    let fail = |error| VolumeError::Io { volume: volume.to_owned(), path: path.to_owned(), source: error };
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(fail)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(fail)?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new().create(true).append(true).open(path).map_err(fail)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(fail)?;
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|m| m.file_type());
    let is = |what: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(what);
    let (fits, wanted) = match kind {
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        _ => return found.map(drop).map_err(fail),
    };
    if fits {
        return Ok(());
    }
    Err(VolumeError::HostPath { volume: volume.to_owned(), path: path.to_owned(), wanted })
}

/// Unmounts what is mounted below a Pod's volume folder and removes it. hostPaths do not lie there,
/// and links are not followed.
pub fn remove(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && is_mount_point(&entry.path())? {
            rustix::mount::unmount(entry.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
    }
    fs::remove_dir_all(dir)
}
