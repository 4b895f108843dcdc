//! Folders that a layer leaves out. An archive may hold `tmp/x` without `tmp/`; the layer's folder has
//! a `tmp` then, and an overlay shows it with that one's mode and owner, not with those of the layer
//! below that says what `tmp` is. A container's writable layer, which lies on top, begins with such
//! folders as they are meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
        fsetxattr, fstat, futimens, mkdirat, openat2,
    },
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{Image, ImageError, unpack::RESOLVE};

/// Of one image; no more are looked for in the layers below.
const PATHS_MAX: usize = 4096;
/// Attributes of one folder: what a layer may hold, and what the kernel gives at once.
const XATTR_MAX_BYTES: usize = 64 << 10;

/// A folder that a writable layer begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// From the root, without a slash before it.
    path: String,
    /// Which layer, counted from the lowest, says what it is like. None does: it is root's, 0755.
    from: Option<usize>,
}

/// What the layers of one image say about a folder.
struct Found {
    /// The topmost layer that has it has no entry for it.
    left_out: bool,
    from: Option<usize>,
}

/// The folders that an image's layers (lowest first) need to be lent, parents first; `implied` says
/// which each of them left out.
///
/// Cost: a few system calls for each folder left out, in each layer.
pub(crate) fn find(layers: &[PathBuf], implied: &[Vec<String>]) -> io::Result<Vec<Lent>> {
    let all: BTreeSet<&str> = implied.iter().flatten().map(String::as_str).take(PATHS_MAX).collect();
    // Below the lowest layer lies nothing.
    if all.is_empty() || implied.iter().skip(1).all(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let roots: Vec<OwnedFd> = layers.iter().map(|l| File::open(l).map(OwnedFd::from)).collect::<Result<_, _>>()?;
    let implied: Vec<BTreeSet<&str>> = implied.iter().map(|i| i.iter().map(String::as_str).collect()).collect();
    let mut lent = BTreeMap::new();
    for path in all {
        let found = look(&roots, &implied, path)?;
        if !found.left_out || found.from.is_none() {
            continue;
        }
        lent.insert(path.to_owned(), found.from);
        // Those above it are made with it, and must show what they would without.
        for (end, _) in path.match_indices('/') {
            if !lent.contains_key(&path[..end]) {
                lent.insert(path[..end].to_owned(), look(&roots, &implied, &path[..end])?.from);
            }
        }
    }
    Ok(lent.into_iter().map(|(path, from)| Lent { path, from }).collect())
}

fn look(roots: &[OwnedFd], implied: &[BTreeSet<&str>], path: &str) -> io::Result<Found> {
    let mut found = Found { left_out: false, from: None };
    for (number, root) in roots.iter().enumerate().rev() {
        let Some((is_there, hides)) = seen(root, path)? else { return Ok(found) };
        if is_there {
            if !implied.get(number).is_some_and(|i| i.contains(path)) {
                found.from = Some(number);
                return Ok(found);
            }
            found.left_out = true;
        }
        if hides {
            return Ok(found);
        }
    }
    Ok(found)
}

/// Has this layer the folder, and does it hide what the layers below have there? `None` where it has
/// something else in its place (a whiteout, too).
fn seen(root: &OwnedFd, path: &str) -> io::Result<Option<(bool, bool)>> {
    let mut hides = false;
    for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
        let folder = match open(root, OsStr::new(&path[..end])) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Some((false, hides))),
            // Too long for one call: nobody is lent that.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut value = [0_u8; 2];
        hides |= fgetxattr(&folder, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|n| value[..n] == *b"y");
    }
    Ok(Some((true, hides)))
}

fn open(root: impl AsFd, path: &OsStr) -> Result<OwnedFd, Errno> {
    openat2(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
}

impl Image {
    /// Makes the folder of a container's writable layer begin with what [`Image::lent`] says. Blocking.
    pub fn lend(&self, upper: &Path) -> Result<(), ImageError> {
        if self.lent.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(upper).map_err(ImageError::io(upper))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(0o755)).map_err(ImageError::io(upper))?;
        let root = File::open(upper).map_err(ImageError::io(upper))?;
        let mut times = Vec::new();
        for lent in &self.lent {
            let failed = |e: Errno| ImageError::io(upper.join(&lent.path))(e.into());
            match mkdirat(&root, &*lent.path, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(e)),
            }
            let made = open(&root, OsStr::new(&lent.path)).map_err(failed)?;
            let Some(layer) = lent.from.and_then(|n| self.layers.get(n)) else {
                fchmod(&made, Mode::from_raw_mode(0o755)).map_err(failed)?;
                continue;
            };
            let layer = File::open(layer).map_err(ImageError::io(layer))?;
            let stat = open(&layer, OsStr::new(&lent.path)).and_then(|from| alike(&from, &made)).map_err(failed)?;
            times.push((lent, made, stat));
        }
        // Last, and deepest first: a folder made in it changes them.
        for (lent, made, stat) in times.iter().rev() {
            let stamp = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
            futimens(made, &Timestamps { last_access: stamp, last_modification: stamp })
                .map_err(|e| ImageError::io(upper.join(&lent.path))(e.into()))?;
        }
        Ok(())
    }
}

/// Owner, mode and the users' attributes.
fn alike(from: &OwnedFd, to: &OwnedFd) -> Result<Stat, Errno> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0_u8; XATTR_MAX_BYTES];
    let length = match flistxattr(from, &mut names[..]) {
        // The file system keeps none.
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    for name in names[..length].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0_u8; XATTR_MAX_BYTES];
        let length = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(stat)
}
