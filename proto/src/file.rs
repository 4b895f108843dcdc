//! Files with a format version: JSON that an older release refuses politely.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::node_config::write_atomically;

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading or writing failed.
    #[error("{path}: {source}{}", advice(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not the JSON it should be.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Written by a newer release.
    #[error(
        "{path}: format version {found} is newer than {newest}, the newest this release reads: install a newer release"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What can be read.
        newest: u32,
    },
}

impl FileError {
    /// For a file's I/O.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// Is it just not there?
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What to do about it, where that is known.
fn advice(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let folder = path.parent().unwrap_or(path).display();
    format!(
        " (the user as whom this process runs must be able to use the file and to enter {folder}: \
         see `ls -ld {folder} {}`)",
        path.display()
    )
}

/// All that is read of a file whose version may be anything.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a file, whose field `version` must be `newest` at most; `None` when there is none.
///
/// # Errors
/// [`FileError`].
pub fn read<T: DeserializeOwned>(path: &Path, newest: u32) -> Result<Option<T>, FileError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::io(path)(source)),
    };
    let parse = |source| FileError::Parse { path: path.to_owned(), source };
    // The version first: what a newer release wrote may not fit our types at all.
    let found = serde_json::from_slice::<Versioned>(&bytes).map_err(parse)?.version;
    if found > newest {
        return Err(FileError::TooNew { path: path.to_owned(), found, newest });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(parse)
}

/// Writes a file atomically, readable by its owner only; when this returns it is on disk. The
/// value has the field `version`.
///
/// # Errors
/// [`FileError::Io`], and [`FileError::Parse`] for what JSON cannot express.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    store(path, serde_json::to_vec_pretty(value), 0o600)
}

/// The same, readable by everybody.
///
/// # Errors
/// Those of [`write()`].
pub fn write_public<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    store(path, serde_json::to_vec_pretty(value), 0o644)
}

/// The same on one line: for files that are written often and read by nobody but us.
///
/// # Errors
/// Those of [`write()`].
pub fn write_compact<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    store(path, serde_json::to_vec(value), 0o600)
}

fn store(path: &Path, json: serde_json::Result<Vec<u8>>, mode: u32) -> Result<(), FileError> {
    let json = json.map_err(|source| FileError::Parse { path: path.to_owned(), source })?;
    write_atomically(path, &json, mode).map_err(FileError::io(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Ours {
        version: u32,
        name: String,
    }

    #[test]
    fn who_must_be_able_to_read_is_said() {
        let path = Path::new("/etc/trellis/node.json");
        let denied = FileError::io(path)(io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(denied.contains("enter /etc/trellis: see `ls -ld /etc/trellis /etc/trellis/node.json`"), "{denied}");
        let missing = FileError::io(path)(io::ErrorKind::NotFound.into()).to_string();
        assert_eq!(missing, "/etc/trellis/node.json: entity not found");
    }

    #[test]
    fn what_a_newer_release_wrote_is_refused_by_its_version_whatever_else_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert_eq!(read::<Ours>(&path, 1).unwrap(), None);
        let ours = Ours { version: 1, name: "n".into() };
        write(&path, &ours).unwrap();
        assert_eq!(read::<Ours>(&path, 1).unwrap(), Some(ours));
        std::fs::write(&path, r#"{"version": 2, "title": ["no name any more"]}"#).unwrap();
        let refused = read::<Ours>(&path, 1).unwrap_err();
        assert!(matches!(refused, FileError::TooNew { found: 2, newest: 1, .. }), "{refused}");
        assert!(refused.to_string().contains("a.json: format version 2"), "{refused}");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(read::<Ours>(&path, 1).unwrap_err(), FileError::Parse { .. }));
        assert!(matches!(read::<Ours>(dir.path(), 1).unwrap_err(), FileError::Io { .. }));
    }
}
