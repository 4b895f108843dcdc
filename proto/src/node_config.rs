//! `node.json`: what a machine knows of itself and of the cluster before it can ask anybody.
//!
//! Written by `trellis cluster init` and `trellis cluster join`, read by every daemon, and
//! rewritten when the membership of the control plane changes.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::file::{self, FileError};

/// The format this build writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// A control-plane member as a machine remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAddress {
    /// Raft id.
    pub id: u64,
    /// Node name.
    pub name: String,
    /// `host:port` of the API.
    pub api_address: String,
    /// `host:port` for Raft peers.
    pub peer_address: String,
}

/// What runs on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A Raft member.
    ControlPlane,
    /// Runs Pods.
    Worker,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// Format version.
    pub version: u32,
    /// This machine's Node name.
    pub node_name: String,
    /// The cluster's name.
    pub cluster_name: String,
    /// The address other machines reach this one at (no port).
    pub advertise_address: std::net::IpAddr,
    /// The control plane's members as last known.
    pub members: Vec<MemberAddress>,
    /// What runs here.
    pub roles: Vec<Role>,
    /// A unix socket the API is served on as well, with the same mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_unix_socket: Option<PathBuf>,
    /// Labels the Node is registered with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints the Node is registered with (Kubernetes' Taint objects).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<serde_json::Value>,
    /// Registries spoken to over plain HTTP, by `host[:port]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub insecure_registries: Vec<String>,
}

impl NodeConfig {
    /// The file's place below the configuration folder.
    #[must_use]
    pub fn path(config_dir: &Path) -> PathBuf {
        config_dir.join("node.json")
    }

    /// Reads `<config_dir>/node.json`.
    pub fn load(config_dir: &Path) -> Result<Self, FileError> {
        let path = Self::path(config_dir);
        file::read(&path, VERSION)?.ok_or_else(|| FileError::io(&path)(std::io::ErrorKind::NotFound.into()))
    }

    /// Writes `<config_dir>/node.json` atomically, readable by everybody: nothing in it is secret,
    /// and daemons of different users read it.
    pub fn store(&self, config_dir: &Path) -> Result<(), FileError> {
        file::write_public(&Self::path(config_dir), self)
    }

    /// Writes the membership into `<config_dir>/node.json` and leaves the rest as it is there now: a person
    /// may have changed it since this was read.
    pub fn store_members(config_dir: &Path, members: &[MemberAddress]) -> Result<(), FileError> {
        Self { members: members.to_vec(), ..Self::load(config_dir)? }.store(config_dir)
    }

    /// Does this machine carry a control-plane member?
    #[must_use]
    pub fn is_control_plane(&self) -> bool {
        self.roles.contains(&Role::ControlPlane)
    }

    /// Does this machine run Pods?
    #[must_use]
    pub fn is_worker(&self) -> bool {
        self.roles.contains(&Role::Worker)
    }

    /// The API endpoints of all members, as [`crate::client::Connection`] takes them.
    #[must_use]
    pub fn api_endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("https://{}", m.api_address)).collect()
    }
}

/// Writes a file that only its owner may read so that a crash leaves the old or the new content,
/// never a part: temporary file, fsync, rename, fsync of the folder.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    write_atomically(path, content, 0o600)
}

/// As [`write_private`], with another mode.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // Several users write in pki/: what lies there under our name, a link perhaps, is not written
    // through. It is a leftover of a process that had our number, or a trap.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    // A process's umask takes from what it makes: under a service's of 0077 nobody else could read.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> NodeConfig {
        NodeConfig {
            version: VERSION,
            node_name: "n1".into(),
            cluster_name: "c".into(),
            advertise_address: "172.30.0.11".parse().unwrap(),
            members: vec![MemberAddress {
                id: 1,
                name: "n1".into(),
                api_address: "172.30.0.11:6443".into(),
                peer_address: "172.30.0.11:2380".into(),
            }],
            roles: vec![Role::ControlPlane, Role::Worker],
            api_unix_socket: None,
            labels: BTreeMap::new(),
            taints: vec![],
            insecure_registries: vec![],
        }
    }

    #[test]
    fn a_new_membership_leaves_what_a_person_wrote_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let edited = NodeConfig { insecure_registries: vec!["10.0.0.5:5000".into()], ..sample() };
        edited.store(dir.path()).unwrap();
        NodeConfig::store_members(dir.path(), &[]).unwrap();
        assert_eq!(NodeConfig::load(dir.path()).unwrap(), NodeConfig { members: vec![], ..edited });
        // Nor does it bring back a file that was taken away.
        std::fs::remove_file(NodeConfig::path(dir.path())).unwrap();
        NodeConfig::store_members(dir.path(), &[]).unwrap_err();
        assert!(!NodeConfig::path(dir.path()).exists());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        sample().store(dir.path()).unwrap();
        assert_eq!(NodeConfig::load(dir.path()).unwrap(), sample());
        let mode = fs::metadata(NodeConfig::path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_link_in_the_way_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, victim) = (dir.path().join("key"), dir.path().join("victim"));
        fs::write(&victim, "untouched").unwrap();
        let temporary = dir.path().join(format!("key.{}.tmp", std::process::id()));
        std::os::unix::fs::symlink(&victim, temporary).unwrap();
        write_private(&secret, b"k").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        assert_eq!(fs::read(&secret).unwrap(), b"k");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_newer_format_is_refused_politely() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = sample();
        c.version = VERSION + 1;
        c.store(dir.path()).unwrap();
        let e = NodeConfig::load(dir.path()).unwrap_err().to_string();
        assert!(e.contains("newer"), "{e}");
    }
}
