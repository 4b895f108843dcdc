//! Contexts: which cluster the command line talks to, as whom.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Connection;
use crate::{
    file::{self, FileError},
    tls::{ClientTls, Credentials, TlsError},
};

/// The format this build writes, and the newest it reads.
const VERSION: u32 = 1;

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

impl Context {
    /// A connection as this context's identity. `name` is for the error.
    pub fn connect(&self, name: &str) -> Result<Connection, ContextError> {
        let tls = Credentials::from_pem(&self.ca, &self.certificate, &self.key)
            .and_then(|c| ClientTls::to_member(&c))
            .map_err(|source| ContextError::Tls { name: name.to_owned(), source })?;
        Ok(Connection::new(self.endpoints.clone(), tls))
    }
}
