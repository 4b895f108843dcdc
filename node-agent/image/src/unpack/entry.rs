//! One tar entry, read and checked before anything is done with it.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use super::{Limits, UnpackError, stream};
use crate::members::Member;

/// What the entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink(OsString),
    HardLink(PathBuf),
    Fifo,
    /// `.wh.<name>`: hides the name in the layers below.
    Whiteout(OsString),
    /// `.wh..wh..opq`: hides everything in the folder in the layers below.
    Opaque,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    /// Relative, of normal components only; empty for the root itself. For whiteouts: the folder
    /// they lie in.
    pub path: PathBuf,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 (signed) and nanoseconds.
    pub mtime: (i64, i64),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Header {
    pub fn shown(&self) -> String {
        self.path.display().to_string()
    }

    pub fn read(entry: &Member, limits: &Limits) -> Result<Self, UnpackError> {
        let raw = entry.path();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        if raw.len() > limits.path_bytes {
            let entry = shown.chars().take(80).collect();
            return Err(UnpackError::TooMany { entry, what: "bytes in a path", limit: limits.path_bytes as u64 });
        }
        let mut path = clean(&raw).ok_or_else(|| UnpackError::Escapes { entry: shown.clone() })?;
        let extensions = Extensions::read(entry, &shown, limits)?;
        let header = &entry.header;
        let number = |value: std::io::Result<u64>, what: &'static str| {
            let value =
                value.map_err(|e| UnpackError::Conflict { entry: shown.clone(), what: format!("{what}: {e}") })?;
            u32::try_from(value).map_err(|_| UnpackError::Conflict {
                entry: shown.clone(),
                what: format!("{what} {value} is too large"),
            })
        };
        // Some writers leave the field blank for root.
        let blank = |field: &[u8; 8]| field.iter().all(|b| matches!(b, 0 | b' '));
        let owner = |field: &[u8; 8], value, what| if blank(field) { Ok(0) } else { number(value, what) };
        let old = header.as_old();
        let uid = extensions.uid.map_or_else(|| owner(&old.uid, header.uid(), "uid"), Ok)?;
        let gid = extensions.gid.map_or_else(|| owner(&old.gid, header.gid(), "gid"), Ok)?;
        let mode =
            header.mode().map_err(|e| UnpackError::Conflict { entry: shown.clone(), what: format!("mode: {e}") })?;
        let mtime = extensions.mtime.unwrap_or_else(|| (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0));
        let mut kind = kind(entry, &shown)?;
        if let Some((folder, whiteout)) = whiteout(&path) {
            if kind != Kind::File {
                return Err(UnpackError::Conflict {
                    entry: shown,
                    what: "a whiteout that is no plain file".to_owned(),
                });
            }
            (path, kind) = (folder, whiteout?);
        }
        Ok(Self { path, kind, mode: mode & 0o7777, uid, gid, mtime, xattrs: extensions.xattrs })
    }
}

fn kind(entry: &Member, shown: &str) -> Result<Kind, UnpackError> {
    use tar::EntryType as T;
    let target = || {
        entry.link_name().filter(|t| !t.is_empty()).ok_or_else(|| UnpackError::Conflict {
            entry: shown.to_owned(),
            what: "a link without a target".to_owned(),
        })
    };
    Ok(match entry.header.entry_type() {
        T::Regular | T::Continuous => Kind::File,
        T::Directory => Kind::Folder,
        T::Symlink => Kind::Symlink(OsString::from_vec(target()?)),
        T::Link => {
            let target = target()?;
            let shown_target = String::from_utf8_lossy(&target).into_owned();
            // Archives name the target from the root; some write it with a leading slash.
            let stripped = target.strip_prefix(b"/").unwrap_or(&target);
            let path = clean(stripped)
                .filter(|p| !p.as_os_str().is_empty())
                .ok_or_else(|| UnpackError::HardLink { entry: shown.to_owned(), target: shown_target })?;
            Kind::HardLink(path)
        }
        T::Fifo => Kind::Fifo,
        T::Char => return Err(UnpackError::Device { entry: shown.to_owned(), kind: "character device" }),
        T::Block => return Err(UnpackError::Device { entry: shown.to_owned(), kind: "block device" }),
        other => return Err(UnpackError::UnknownType { entry: shown.to_owned(), kind: char::from(other.as_byte()) }),
    })
}

/// Splits `dir/.wh.name`; None when the name is an ordinary one.
fn whiteout(path: &std::path::Path) -> Option<(PathBuf, Result<Kind, UnpackError>)> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.file_name()?.as_bytes();
    let hidden = name.strip_prefix(b".wh.")?;
    let folder = path.parent().unwrap_or_else(|| std::path::Path::new("")).to_owned();
    let kind = match hidden {
        b".wh..opq" => Ok(Kind::Opaque),
        b"" | b"." | b".." => Err(UnpackError::Escapes { entry: path.display().to_string() }),
        other => Ok(Kind::Whiteout(OsString::from_vec(other.to_vec()))),
    };
    Some((folder, kind))
}

/// A relative path of normal components, or None if it is absolute, climbs, or holds a NUL.
fn clean(raw: &[u8]) -> Option<PathBuf> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    // The root itself is called "/" by some writers (umoci); below it no name begins so.
    let root = raw.iter().all(|b| *b == b'/');
    if (raw.starts_with(b"/") && !root) || raw.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            name => path.push(OsStr::from_bytes(name)),
        }
    }
    Some(path)
}

/// What a PAX header adds.
#[derive(Default)]
struct Extensions {
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Extensions {
    fn read(entry: &Member, shown: &str, limits: &Limits) -> Result<Self, UnpackError> {
        let mut all = Self::default();
        let mut bytes = 0;
        for record in entry.pax() {
            let (key, value) = record.map_err(stream)?;
            let Ok(key) = std::str::from_utf8(key) else { continue };
            let conflict = |what: String| UnpackError::Conflict { entry: shown.to_owned(), what };
            let text = || std::str::from_utf8(value).map_err(|_| conflict(format!("PAX {key} is not text")));
            let parsed = |t: &str| t.parse::<u64>().map_err(|_| conflict(format!("PAX {key} {t:?} is no number")));
            let narrow = |n: u64| u32::try_from(n).map_err(|_| conflict(format!("PAX {key} {n} is too large")));
            match key {
                "uid" => all.uid = Some(narrow(parsed(text()?)?)?),
                "gid" => all.gid = Some(narrow(parsed(text()?)?)?),
                "mtime" => all.mtime = time(text()?),
                _ => {
                    let Some(name) = key.strip_prefix("SCHILY.xattr.") else { continue };
                    bytes += name.len() + value.len();
                    if bytes > limits.xattr_bytes {
                        let limit = limits.xattr_bytes as u64;
                        return Err(UnpackError::TooMany {
                            entry: shown.to_owned(),
                            what: "bytes of attributes",
                            limit,
                        });
                    }
                    if name.starts_with("trusted.") {
                        return Err(UnpackError::Attribute { entry: shown.to_owned(), name: name.to_owned() });
                    }
                    // The host's own labels are not the image's to give.
                    if name == "security.capability" || name.starts_with("user.") {
                        all.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(all)
    }
}

/// PAX times are decimal seconds, perhaps with a fraction.
fn time(text: &str) -> Option<(i64, i64)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = seconds.parse().ok()?;
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some((seconds, nanos.parse().ok()?))
}
