//! Replacing a folder's content at once, the way Kubernetes' AtomicWriter does, so that software
//! that watches `..data` works unchanged:
//!
//! ```text
//! volume/..2026_11_21_10_00_00.7/app.conf    the files
//! volume/..data -> ..2026_11_21_10_00_00.7   replaced by rename: the moment of change
//! volume/app.conf -> ..data/app.conf         what the container opens
//! ```
use super::payload::Payload;
use rustix::fs::{Gid, chown};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Makes `dir` hold `payload`; `group` owns it where fsGroup is set. Answers whether anything changed.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    own(dir, group, 0o755, true)?;
    if current(dir).as_ref() == Some(&masked(payload, group)) {
        link_names(dir, payload)?;
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut serial = 0u32;
    let fresh = loop {
        let name = format!("{stamp}.{serial}");
        match fs::create_dir(dir.join(&name)) {
            Ok(()) => break name,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && serial < 1000 => serial += 1,
            Err(e) => return Err(e),
        }
    };
    let root = dir.join(&fresh);
    own(&root, group, 0o755, true)?;
    for (path, file) in payload {
        let target = root.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
            let mut up = Some(parent);
            while let Some(folder) = up.filter(|f| *f != root) {
                own(folder, group, 0o755, true)?;
                up = folder.parent();
            }
        }
        fs::write(&target, &file.data)?;
        own(&target, group, file.mode, false)?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    drop(fs::remove_file(dir.join(DATA_NEXT)));
    symlink(&fresh, dir.join(DATA_NEXT))?;
    fs::rename(dir.join(DATA_NEXT), dir.join(DATA))?;
    link_names(dir, payload)?;
    remove_stale(dir, payload, &fresh)?;
    tracing::debug!(dir = %dir.display(), was = ?old, "volume content replaced");
    Ok(true)
}

/// Kubernetes gives fsGroup read access, and set-gid on folders.
fn own(path: &Path, group: Option<u32>, mode: u32, folder: bool) -> io::Result<()> {
    let mode = mode_with_group(mode, group, folder);
    if let Some(gid) = group {
        chown(path, None, Some(Gid::from_raw(gid)))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn mode_with_group(mode: u32, group: Option<u32>, folder: bool) -> u32 {
    match (group, folder) {
        (None, _) => mode,
        (Some(_), false) => mode | 0o440,
        (Some(_), true) => mode | 0o2550,
    }
}

fn masked(payload: &Payload, group: Option<u32>) -> Payload {
    let mut out = payload.clone();
    for file in out.values_mut() {
        file.mode = mode_with_group(file.mode, group, false);
    }
    out
}

/// What `..data` holds now; `None` where there is nothing whole.
fn current(dir: &Path) -> Option<Payload> {
    let root = dir.join(fs::read_link(dir.join(DATA)).ok()?);
    let mut out = Payload::new();
    collect(&root, "", &mut out).ok()?;
    Some(out)
}

fn collect(root: &Path, below: &str, out: &mut Payload) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let meta = entry.metadata()?;
        if meta.is_dir() {
            collect(root, &path, out)?;
        } else {
            let file = super::payload::File { data: fs::read(entry.path())?, mode: meta.permissions().mode() & 0o7777 };
            out.insert(path, file);
        }
    }
    Ok(())
}

fn top_names(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_names(payload) {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn remove_stale(dir: &Path, payload: &Payload, fresh: &str) -> io::Result<()> {
    let wanted = top_names(payload);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATA || name == fresh || wanted.contains(name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
