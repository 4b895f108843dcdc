//! The cluster's own facts: seeded once, by the first leader, from what `cluster init` wrote.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trellis_model::Object;
use trellis_model::k8s_openapi::api::core::v1::Namespace;
use trellis_proto::file::{self, FileError};
use trellis_proto::node_config::NodeConfig;
use trellis_proto::pki;

use crate::api::names;
use crate::api::ops::{ApiError, Ops, now_millis};
use crate::store::{Command, Op, OpError, Outcome, Store, SysWhen, When};

/// Format of what is written here.
const VERSION: u32 = 1;
/// Namespaces of every cluster.
const NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// What `cluster init` leaves for the first leader: `bootstrap.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Bootstrap {
    /// Format version.
    pub version: u32,
    /// The cluster's name.
    pub cluster_name: String,
    /// "10.244.0.0/16"
    pub pod_cidr: String,
    /// 24: each Node gets a /24 of it.
    pub node_prefix: u8,
    /// "10.96.0.0/16"
    pub service_cidr: String,
    /// The CA's key, sealed with the key-encryption key; base64.
    pub ca_key_sealed: String,
    /// How long certificates live; left out: a year.
    #[serde(default)]
    pub certificate_lifetime_seconds: Option<u64>,
}

/// The cluster's facts, as the store keeps them under [`names::CLUSTER_CONFIG`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Format version.
    pub version: u32,
    /// The cluster's name.
    pub cluster_name: String,
    /// Further ones may be appended.
    pub pod_cidrs: Vec<String>,
    /// Length of each Node's prefix.
    pub node_prefix: u8,
    /// Addresses of Services.
    pub service_cidr: String,
    /// How long certificates live; left out: [`pki::CERTIFICATE_LIFETIME`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_lifetime_seconds: Option<u64>,
}

impl ClusterConfig {
    /// How long the certificates live that this cluster signs.
    pub fn certificate_lifetime(store: &Store) -> Duration {
        let said = Self::read(store).and_then(|c| c.certificate_lifetime_seconds);
        said.map_or(pki::CERTIFICATE_LIFETIME, Duration::from_secs)
    }

    /// As seeded; `None` before.
    pub fn read(store: &Store) -> Option<Self> {
        let found = store.sys_get(names::CLUSTER_CONFIG)?;
        serde_json::from_slice(&found.value)
            .map_err(|error| tracing::error!(%error, "the cluster's configuration is broken"))
            .ok()
    }
}

/// A member that joined, as the store keeps it under [`names::member`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Raft id.
    pub id: u64,
    /// `ip:6443`
    pub api_address: String,
    /// `ip:2380`
    pub peer_address: String,
    /// It asked to be added with this id: a member that lost its log needs another one.
    pub used: bool,
}

impl Bootstrap {
    /// Reads the file; `None` when there is none.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn load(path: &Path) -> Result<Option<Self>, FileError> {
        file::read(path, VERSION)
    }
}

/// Writes the cluster's facts and default objects, unless it was done before. Answers whether
/// this call did it.
///
/// # Errors
/// [`ApiError::Internal`] for a broken bootstrap file, and those of proposing.
pub async fn seed(ops: &Ops, bootstrap: &Bootstrap, node: &NodeConfig) -> Result<bool, ApiError> {
    if ops.store().sys_get(names::CLUSTER_CONFIG).is_some() {
        return Ok(false);
    }
    let commands = seed_ops(ops, bootstrap, node)?;
    let command = Command::new(now_millis(), commands);
    match ops.backend().propose(command).await? {
        Outcome::Done { .. } => Ok(true),
        Outcome::Failed { why: OpError::AlreadyExists, .. } => Ok(false),
        other => Err(ApiError::Internal(format!("seeding the cluster: {other:?}"))),
    }
}

fn seed_ops(ops: &Ops, from: &Bootstrap, node: &NodeConfig) -> Result<Vec<Op>, ApiError> {
    let config = ClusterConfig {
        version: VERSION,
        cluster_name: from.cluster_name.clone(),
        pod_cidrs: vec![from.pod_cidr.clone()],
        node_prefix: from.node_prefix,
        service_cidr: from.service_cidr.clone(),
        certificate_lifetime_seconds: from.certificate_lifetime_seconds,
    };
    let sealed =
        pki::from_base64(&from.ca_key_sealed).map_err(|e| ApiError::Internal(format!("bootstrap.json: {e}")))?;
    let put = |key: String, value: Bytes| Op::SysPut { key, when: SysWhen::Absent, value };
    let mut all = vec![put(names::CLUSTER_CONFIG.into(), to_json(&config)?), put(names::CA_KEY.into(), sealed.into())];
    for member in &node.members {
        let record = MemberRecord {
            id: member.id,
            api_address: member.api_address.clone(),
            peer_address: member.peer_address.clone(),
            used: true,
        };
        all.push(put(names::member(&member.name), to_json(&record)?));
    }
    let next = node.members.iter().map(|m| m.id).max().unwrap_or(0) + 1;
    all.push(put(names::NEXT_MEMBER_ID.into(), next.to_string().into()));
    all.push(put(names::registration(&node.node_name), Bytes::from_static(b"{}")));
    for name in NAMESPACES {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        let object = Object::from(namespace);
        let prepared = ops.admission().prepare_create(object, super::now())?;
        all.push(Op::Put { key: prepared.key, when: When::Absent, object: prepared.stored });
    }
    Ok(all)
}

/// JSON for the system keyspace.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Bytes, ApiError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| ApiError::Internal(e.to_string()))
}
