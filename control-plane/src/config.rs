//! What the program is told: flags, and the files that `cluster init` or `cluster join` wrote.
//! A file that is not there yet is waited for.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use trellis_proto::file::FileError;
use trellis_proto::node_config::{MemberAddress, NodeConfig};
use trellis_proto::pki::{Key, PkiError};
use trellis_proto::tls::{Credentials, TlsError};

use crate::api::cluster::Bootstrap;
use crate::raft::Tuning;

/// How often a missing file is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the log says what is missing.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A member of Trellis' control plane: Raft, API, and, on the leader, scheduler and controllers.
#[derive(Debug, Clone, Parser)]
#[command(name = "trellis-control-plane", version)]
pub struct Args {
    /// Folder that `trellis cluster init` or `trellis cluster join` wrote.
    #[arg(long, env = "TRELLIS_CONFIG_DIR", default_value = "/etc/trellis")]
    pub config_dir: PathBuf,
    /// Folder of the Raft log and snapshots; nobody else may use it.
    #[arg(long, default_value = "/var/lib/trellis/control-plane")]
    pub data_dir: PathBuf,
    /// Folder of the machine's unix sockets.
    #[arg(long, env = "TRELLIS_RUN_DIR", default_value = "/run/trellis")]
    pub run_dir: PathBuf,
    /// Address that the API and peer ports are bound to; the ports are node.json's.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub listen: IpAddr,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Everything a member starts from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the files are.
    pub config_dir: PathBuf,
    /// The member's own data.
    pub data_dir: PathBuf,
    /// The machine's unix sockets.
    pub run_dir: PathBuf,
    /// Address to listen on.
    pub listen: IpAddr,
    /// node.json.
    pub node: NodeConfig,
    /// member.crt, member.key and ca.crt.
    pub credentials: Arc<Credentials>,
    /// keys/kek.
    pub kek: Key,
    /// keys/gossip.
    pub gossip_key: Key,
    /// bootstrap.json, on the machine of `cluster init`, until the cluster is seeded.
    pub bootstrap: Option<Bootstrap>,
    /// Raft's timings.
    pub tuning: Tuning,
}

/// Why a member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// node.json or bootstrap.json.
    #[error(transparent)]
    File(#[from] FileError),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A key file.
    #[error("{path}: {source}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PkiError,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// node.json does not make this machine a member.
    #[error("node.json in {0} names no member {1:?}: join with `trellis cluster join --control-plane`")]
    NotAMember(PathBuf, String),
}

impl Settings {
    /// Reads all files.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file.
    pub fn load(args: &Args) -> Result<Self, ConfigError> {
        let dir = &args.config_dir;
        let node = NodeConfig::load(dir)?;
        let settings = Self {
            config_dir: dir.clone(),
            data_dir: args.data_dir.clone(),
            run_dir: args.run_dir.clone(),
            listen: args.listen,
            node,
            credentials: Credentials::load(&dir.join("pki"), "member")?,
            kek: read_key(&dir.join("keys/kek"))?,
            gossip_key: read_key(&dir.join("keys/gossip"))?,
            bootstrap: Bootstrap::load(&dir.join("bootstrap.json"))?,
            tuning: Tuning::default(),
        };
        settings.me()?;
        Ok(settings)
    }

    /// Reads all files, waiting for those that are not there yet, or that are broken: somebody
    /// may mend them.
    pub async fn wait(args: &Args) -> Self {
        let mut said: Option<Instant> = None;
        loop {
            match Self::load(args) {
                Ok(settings) => return settings,
                Err(error) => {
                    if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                        tracing::info!(%error, "waiting for the configuration");
                        said = Some(Instant::now());
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// This machine's entry among the members.
    ///
    /// # Errors
    /// [`ConfigError::NotAMember`].
    pub fn me(&self) -> Result<&MemberAddress, ConfigError> {
        let name = &self.node.node_name;
        self.node
            .members
            .iter()
            .find(|m| m.name == *name)
            .ok_or_else(|| ConfigError::NotAMember(self.config_dir.clone(), name.clone()))
    }
}

fn read_key(path: &Path) -> Result<Key, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    let text = zeroize::Zeroizing::new(text);
    Key::from_hex(&text).map_err(|source| ConfigError::KeyFile { path: path.to_owned(), source })
}
