//! Contexts: which cluster the command line talks to, as whom.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Connection;
use crate::{
    file::{self, FileError},
    tls::{ClientTls, Credentials, TlsError},
};

/// The format this build writes, and the newest it reads.
const VERSION: u32 = 1;
/// To change the file takes milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries to begin with it.
const LOCK_PERIOD: Duration = Duration::from_millis(5);

/// One cluster and one identity in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// `https://IP:PORT` or `unix:///PATH`, tried in turn.
    pub endpoints: Vec<String>,
    /// The cluster's CA, PEM.
    pub ca: String,
    /// The client's certificate, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
    /// The namespace of calls that name none.
    #[serde(default = "default_namespace")]
    pub namespace: String,
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contexts {
    /// Format version.
    pub version: u32,
    /// Name of the context in use; empty when there is none.
    #[serde(default)]
    pub current: String,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Default for Contexts {
    fn default() -> Self {
        Self { version: VERSION, current: String::new(), contexts: BTreeMap::new() }
    }
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// No such name.
    #[error("context {name:?} is not in {path} (it has: {known}): see `trellis config get-contexts`")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The file.
        path: PathBuf,
        /// The names there.
        known: String,
    },
    /// Nothing to talk to.
    #[error(
        "no context is current in {path}: `trellis-lab up` or `trellis cluster init` make one, `trellis config use-context` picks one"
    )]
    NoneCurrent {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else is at it, and does not end.
    #[error("{path} has been held by another program for {} s: `fuser -v {folder}` shows it", LOCK_LIMIT.as_secs())]
    Busy {
        /// The file.
        path: PathBuf,
        /// Its folder, whose lock it is.
        folder: PathBuf,
    },
    /// The certificate or key do not fit.
    #[error("context {name:?}: {source}")]
    Tls {
        /// The context.
        name: String,
        /// What is wrong.
        source: TlsError,
    },
}

impl Contexts {
    /// `$TRELLIS_CONFIG`, else `$XDG_CONFIG_HOME/trellis/config.json`, else
    /// `~/.config/trellis/config.json`.
    #[must_use]
    pub fn default_path() -> PathBuf {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        set("TRELLIS_CONFIG").unwrap_or_else(|| {
            set("XDG_CONFIG_HOME")
                .or_else(|| set("HOME").map(|h| h.join(".config")))
                .unwrap_or_else(|| PathBuf::from("/etc"))
                .join("trellis/config.json")
        })
    }

    /// Reads the file; one that does not exist holds no contexts.
    pub fn load(path: &Path) -> Result<Self, ContextError> {
        Ok(file::read(path, VERSION)?.unwrap_or_default())
    }

    /// Writes the file atomically, readable by its owner only: it holds keys.
    pub fn store(&self, path: &Path) -> Result<(), ContextError> {
        Ok(file::write(path, self)?)
    }

    /// Reads the file, changes what it holds, and writes it; nothing when `how` refuses. Whoever else changes it
    /// this way waits, so that nobody writes back what was there before another's change.
    pub fn change<T, E: From<ContextError>>(path: &Path, how: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let _held = lock(path)?;
        let mut contexts = Self::load(path)?;
        let answer = how(&mut contexts)?;
        contexts.store(path)?;
        Ok(answer)
    }

    /// The named context, or the current one.
    pub fn pick(&self, name: Option<&str>, path: &Path) -> Result<(&str, &Context), ContextError> {
        let name = name.unwrap_or(&self.current);
        if name.is_empty() {
            return Err(ContextError::NoneCurrent { path: path.to_owned() });
        }
        self.contexts.get_key_value(name).map(|(n, c)| (n.as_str(), c)).ok_or_else(|| ContextError::Unknown {
            name: name.to_owned(),
            path: path.to_owned(),
            known: self.contexts.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Held until it is dropped. It is the folder's own lock: the file is replaced as a whole, and one beside it
/// would be left.
fn lock(path: &Path) -> Result<File, ContextError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = || FileError::io(folder);
    fs::create_dir_all(folder).map_err(io())?;
    let file = File::open(folder).map_err(io())?;
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_PERIOD),
            Err(TryLockError::WouldBlock) => {
                return Err(ContextError::Busy { path: path.to_owned(), folder: folder.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(io()(e).into()),
        }
    }
}

impl Context {
    /// A connection as this context's identity. `name` is for the error.
    pub fn connect(&self, name: &str) -> Result<Connection, ContextError> {
        let tls = Credentials::from_pem(&self.ca, &self.certificate, &self.key)
            .and_then(|c| ClientTls::to_member(&c))
            .map_err(|source| ContextError::Tls { name: name.to_owned(), source })?;
        Ok(Connection::new(self.endpoints.clone(), tls))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn changes_side_by_side_are_all_kept_and_a_refused_one_is_not() {
        const WRITERS: usize = 4;
        const EACH: usize = 8;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        let context = || Context {
            endpoints: vec!["unix:///x".to_owned()],
            ca: String::new(),
            certificate: String::new(),
            key: String::new(),
            namespace: default_namespace(),
        };
        let add = |name: String| {
            Contexts::change(&path, |all| -> Result<(), ContextError> {
                // Between reading and writing everybody else gets a chance.
                thread::yield_now();
                all.contexts.insert(name, context());
                Ok(())
            })
        };
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let add = &add;
                scope.spawn(move || (0..EACH).for_each(|i| add(format!("{writer}-{i}")).unwrap()));
            }
        });
        assert_eq!(Contexts::load(&path).unwrap().contexts.len(), WRITERS * EACH);
        let refused = Contexts::change(&path, |all| {
            all.contexts.clear();
            Err::<(), _>(ContextError::NoneCurrent { path: path.clone() })
        });
        assert!(refused.is_err());
        assert_eq!(Contexts::load(&path).unwrap().contexts.len(), WRITERS * EACH);
        let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, ["config.json"], "nothing is left beside it");
    }
}
