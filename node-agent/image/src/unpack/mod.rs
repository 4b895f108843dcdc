//! Untarring a layer so that nothing in it can touch what lies outside its folder.
//!
//! Every path is resolved by the kernel itself with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`
//! from the folder's descriptor: there is no moment between a check and a use. Whiteouts become
//! overlayfs' own (a 0/0 character device; `trusted.overlay.opaque` on a folder), following the
//! OCI image specification, "layer.md".
//!
//! Refused, with the entry's name: absolute and `..` paths, ancestors that are symbolic links,
//! hard links out of the layer or through symbolic links, device nodes, `trusted.*` attributes,
//! sparse files, headers that contradict each other, more entries or bytes than the limits.

mod entry;
mod padded;
mod tree;

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

use padded::Padded;
pub(crate) use tree::RESOLVE;
use tree::Tree;

use crate::members::Members;

/// Bounds on one layer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Uncompressed bytes. A larger layer is a bomb or a mistake.
    pub layer_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of one path; the kernel's PATH_MAX.
    pub path_bytes: usize,
    /// Extended attributes of one entry, all values together.
    pub xattr_bytes: usize,
    /// One long name or PAX header, which is held in memory.
    pub extension_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 16 << 30,
            entries: 2_000_000,
            path_bytes: 4096,
            xattr_bytes: 64 << 10,
            extension_bytes: 1 << 20,
        }
    }
}

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tar or its compression is broken, or the connection broke.
    #[error("reading the layer: {0}")]
    Stream(#[source] io::Error),
    /// Writing failed.
    #[error("{entry}: {source}")]
    Disk {
        /// Path of the entry.
        entry: String,
        /// What the system said.
        source: io::Error,
    },
    /// The path leaves the root.
    #[error("entry {entry:?} has a path that is absolute or climbs with \"..\": refused")]
    Escapes {
        /// Path of the entry.
        entry: String,
    },
    /// An ancestor is a symbolic link.
    #[error("entry {entry:?} lies behind a symbolic link of the same layer: refused")]
    BehindSymlink {
        /// Path of the entry.
        entry: String,
    },
    /// A hard link to something that is not a file of this layer.
    #[error(
        "entry {entry:?} is a hard link to {target:?}, which is not a file of the same layer reached without symbolic links: refused"
    )]
    HardLink {
        /// Path of the entry.
        entry: String,
        /// Where it points.
        target: String,
    },
    /// A device node.
    #[error("entry {entry:?} is a {kind}: an image may hold none, the runtime makes /dev")]
    Device {
        /// Path of the entry.
        entry: String,
        /// Block or character device.
        kind: &'static str,
    },
    /// A tar type that layers do not have.
    #[error("entry {entry:?} has the unknown tar type {kind:?}")]
    UnknownType {
        /// Path of the entry.
        entry: String,
        /// The type byte.
        kind: char,
    },
    /// A file with holes: a few bytes of archive could stand for any number of them on disk.
    #[error("entry {entry:?} is a sparse file, which no image holds: make the archive without (tar's --sparse)")]
    Sparse {
        /// Path of the entry.
        entry: String,
    },
    /// Two statements about one entry that cannot both be true.
    #[error("entry {entry:?} has conflicting headers: {what}")]
    Conflict {
        /// Path of the entry.
        entry: String,
        /// Which.
        what: String,
    },
    /// An attribute that would speak to overlayfs.
    #[error("entry {entry:?} sets the attribute {name:?}, which an image may not")]
    Attribute {
        /// Path of the entry.
        entry: String,
        /// Name of the attribute.
        name: String,
    },
    /// Decompresses to more than allowed.
    #[error(
        "unpacks to more than {limit_bytes} bytes, the limit for one layer: a decompression bomb, or raise the limit"
    )]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// More entries, longer paths or larger attributes than allowed.
    #[error("entry {entry:?}: more than {limit} {what}, the limit for one layer")]
    TooMany {
        /// Path of the entry.
        entry: String,
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl UnpackError {
    pub(crate) fn disk(entry: &str, source: io::Error) -> Self {
        Self::Disk { entry: entry.to_owned(), source }
    }
}

/// Unpacks an uncompressed tar stream below `root`; answers which folders the archive left out, though
/// it has entries in them.
///
/// Cost: one pass over the stream; memory grows with the number of folders only (their time
/// stamps are set at the end).
pub fn unpack(reader: impl Read, root: &OwnedFd, limits: &Limits) -> Result<Vec<String>, UnpackError> {
    let mut members = Members::new(Padded::new(reader), limits.extension_bytes);
    let mut tree = Tree::new(root, limits)?;
    let mut count = 0_u64;
    while let Some(entry) = members.next().map_err(unwrapped)? {
        if entry.header.entry_type() == tar::EntryType::XGlobalHeader {
            // Words about the archive as a whole (git writes its commit); other readers do not apply
            // them to its entries either. It counts as an entry: a stream of them has an end.
            count += 1;
            within(count, "PAX global header", limits)?;
            continue;
        }
        let header = entry::Header::read(&entry, limits)?;
        count += 1;
        within(count, &header.shown(), limits)?;
        tree.add(&header, &mut members)?;
    }
    tree.finish()
}

fn within(count: u64, entry: &str, limits: &Limits) -> Result<(), UnpackError> {
    if count > limits.entries {
        return Err(UnpackError::TooMany { entry: entry.to_owned(), what: "entries", limit: limits.entries });
    }
    Ok(())
}

/// A limit that a wrapped reader hit arrives dressed as an I/O error.
fn stream(error: io::Error) -> UnpackError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<UnpackError>()) {
        Some(UnpackError::TooLarge { limit_bytes }) => UnpackError::TooLarge { limit_bytes: *limit_bytes },
        _ => UnpackError::Stream(error),
    }
}

fn unwrapped(error: UnpackError) -> UnpackError {
    match error {
        UnpackError::Stream(error) => stream(error),
        other => other,
    }
}

#[cfg(test)]
mod tests;
