//! A Pod's files on this node's disk: the machine's state and the object it was last seen as,
//! each replaced atomically. What a power cut may take away says each function; how the object and
//! the final state get on disk for good: [`super::keeper`].
use super::machine::Machine;
use k8s_openapi::api::core::v1::Pod;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use trellis_proto::node_config::write_private;

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct PersistError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Where things of one Pod lie below the data folder.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// `<data>/pods/<uid>`
    pub fn new(data: &Path, uid: &str) -> Self {
        Self(data.join("pods").join(uid))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The machine's state.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// The object as last acted on.
    pub fn object(&self) -> PathBuf {
        self.0.join("pod.json")
    }

    /// `<container>/<attempt>.log` below it.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The log of one run of a container.
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs().join(container).join(format!("{attempt}.log"))
    }

    /// Removes the logs of a container's runs before the one that precedes `attempt`: `logs` reads
    /// the present run's and, with --previous, the one before it; as in Kubernetes nobody asks for more.
    pub fn prune_logs(&self, container: &str, attempt: u32) -> Result<(), PersistError> {
        let folder = self.logs().join(container);
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|source| PersistError { path: folder, source })?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // `3.log`, and what was rotated of it: `3.log.1` …
            let run = name.split_once(".log").and_then(|(n, _)| n.parse::<u32>().ok());
            if run.is_some_and(|run| run.saturating_add(2) <= attempt) {
                fs::remove_file(entry.path()).map_err(|source| PersistError { path: entry.path(), source })?;
            }
        }
        Ok(())
    }

    /// Volumes that live on disk.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    /// Writable layers, one folder a run of a container.
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// hosts, resolv.conf, hostname.
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }

    /// Writes the machine's state. What a power cut takes of it is lost with the containers it
    /// speaks of, except how a Pod ended: see [`PodDir::sync_state`].
    pub fn save_state(&self, machine: &Machine) -> Result<(), PersistError> {
        match machine.snapshot() {
            Some(s) => write_json(&self.state(), s),
            None => Ok(()),
        }
    }

    /// When this returns, the state that was written last is on disk. Waits for the disk.
    pub fn sync_state(&self) -> Result<(), PersistError> {
        for path in [self.state(), self.0.clone()] {
            let synced = fs::File::open(&path).and_then(|f| f.sync_all());
            synced.map_err(|source| PersistError { path, source })?;
        }
        Ok(())
    }

    /// Writes the object, so that others find it; not durably.
    pub fn write_object(&self, pod: &Pod) -> Result<(), PersistError> {
        write_json(&self.object(), pod)
    }

    /// Writes the object; when this returns it is on disk. Waits for the disk.
    pub fn save_object(&self, pod: &Pod) -> Result<(), PersistError> {
        let path = self.object();
        let saved = serde_json::to_vec(pod).map_err(io::Error::other).and_then(|json| write_private(&path, &json));
        saved.map_err(|source| PersistError { path, source })
    }
}

/// What a file holds.
#[derive(Debug)]
pub enum Kept<T> {
    /// What was written.
    Whole(T),
    /// It was never written.
    Missing,
    /// It is there and cannot be used, and why: a power cut left it empty or a part of it.
    Broken(String),
}

/// Reads a file that may not be there.
pub fn read_kept<T: DeserializeOwned>(path: &Path) -> Kept<T> {
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Kept::Broken("it is empty".to_owned()),
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Kept::Whole(value),
            Err(error) => Kept::Broken(format!("its {} bytes are not what this agent writes: {error}", bytes.len())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::Missing,
        Err(error) => Kept::Broken(error.to_string()),
    }
}

/// The same where a broken file counts as none, loudly: it is better to start a Pod afresh than
/// never.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    match read_kept(path) {
        Kept::Whole(value) => Some(value),
        Kept::Missing => None,
        Kept::Broken(why) => {
            tracing::error!(path = %path.display(), why, "a file kept of a Pod is broken, as a power cut leaves it: \
                going on without it");
            None
        }
    }
}

/// Replaces a file as a whole for whoever reads it; not durably.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), PersistError> {
    let fail = |source| PersistError { path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(|e| fail(io::Error::other(e)))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let next = path.with_extension("json.new");
    fs::write(&next, bytes).map_err(fail)?;
    fs::rename(&next, path).map_err(fail)
}

/// The uids that have a folder below `<data>/pods`.
pub fn known_uids(data: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(data.join("pods")) else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn logs_of_the_present_and_the_previous_run_stay() {
        let data = tempfile::tempdir().unwrap();
        let dir = PodDir::new(data.path(), "u");
        dir.prune_logs("a", 7).unwrap();
        let folder = dir.logs().join("a");
        fs::create_dir_all(&folder).unwrap();
        for name in ["0.log", "0.log.1", "4.log", "5.log", "5.log.2", "6.log", "6.log.1", "7.log", "10.log", "other"] {
            fs::write(folder.join(name), "").unwrap();
        }
        dir.prune_logs("a", 7).unwrap();
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["10.log", "6.log", "6.log.1", "7.log", "other"]);
    }

    #[test]
    fn a_file_is_whole_missing_or_broken_and_a_broken_one_is_replaced() {
        let data = tempfile::tempdir().unwrap();
        let dir = PodDir::new(data.path(), "u");
        let pod =
            Pod { metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta::default(), ..Pod::default() };
        assert!(matches!(read_kept::<Pod>(&dir.object()), Kept::Missing));
        dir.save_object(&pod).unwrap();
        assert!(matches!(read_kept::<Pod>(&dir.object()), Kept::Whole(found) if found == pod));
        let whole = fs::read(dir.object()).unwrap();
        for (left, why) in [(&whole[..0], "it is empty"), (&whole[..whole.len() / 2], "bytes are not what this agent")]
        {
            fs::write(dir.object(), left).unwrap();
            let Kept::Broken(found) = read_kept::<Pod>(&dir.object()) else { panic!("{left:?}") };
            assert!(found.contains(why), "{found}");
            assert!(read_json::<Pod>(&dir.object()).is_none());
            dir.save_object(&pod).unwrap();
            assert!(matches!(read_kept::<Pod>(&dir.object()), Kept::Whole(_)));
        }
    }
}
