//! The types and timings Raft runs with.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::{Config, ConfigError, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use trellis_proto::patience::stretched;

use super::types::Member;
use crate::store::Outcome;

/// What an ordinary log entry carries: an encoded [`Command`](crate::store::Command). It is
/// encoded once by its proposer and decoded only where it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// At most one leader a term (`leader_id_std`): a command's fence is its term alone.
    pub TypeConfig:
        D = Payload,
        R = Outcome,
        NodeId = u64,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

/// Short names for openraft's generic types.
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;

/// Timings and sizes.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// How often a leader shows itself.
    pub heartbeat: Duration,
    /// A follower stands for election after a random time between these two.
    pub election_min: Duration,
    /// See `election_min`; openraft adds this to the leader's lease.
    pub election_max: Duration,
    /// A snapshot is due after this many applied entries …
    pub snapshot_entries: u64,
    /// … or when the log holds this many bytes (or as many as the state, if that is more, so
    /// that writing snapshots costs at most as much as writing the log).
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot, so that a follower who was briefly away needs none.
    pub keep_entries: u64,
    /// Size at which a log segment is finished.
    pub segment_bytes: u64,
    /// Entries kept in memory beside those not on disk yet, in bytes.
    pub cache_bytes: usize,
    /// Elections are preceded by a pre-vote. Only tests turn it off, to see what it prevents.
    pub pre_vote: bool,
    /// How long a proposal or a read is tried.
    pub deadline: Duration,
    /// How long a new member may take to catch up.
    pub catch_up: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat: stretched(Duration::from_millis(100)),
            election_min: stretched(Duration::from_millis(300)),
            election_max: stretched(Duration::from_millis(500)),
            // Replaying 20,000 entries takes well under a second.
            snapshot_entries: 20_000,
            snapshot_bytes: 32 * 1024 * 1024,
            // A second or so of the fastest churn aimed at.
            keep_entries: 5_000,
            // A preallocated file of this size is cheap, and purging frees space in such steps.
            segment_bytes: 16 * 1024 * 1024,
            // Followers in step read what was just appended.
            cache_bytes: 8 * 1024 * 1024,
            pre_vote: true,
            // Three failovers.
            deadline: Duration::from_secs(5),
            // 1.5 GB at 25 MB/s.
            catch_up: Duration::from_secs(60),
        }
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Tuning {
    pub(super) fn raft_config(&self, cluster_name: &str) -> Result<Arc<Config>, ConfigError> {
        let config = Config {
            cluster_name: cluster_name.to_string(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            enable_pre_vote: Some(self.pre_vote),
            // A restarted leader must stand for election again. Entries go to followers while
            // they are still on their way to the leader's own disk: restored in its old term,
            // it would reuse the indexes of those that a majority holds and it has lost, and
            // the members diverge (tests/raft_crash.rs finds that within fifty kills).
            enable_leader_restore: Some(false),
            // A member whose disk was lost comes back with less than it had acknowledged. The
            // leader then starts it from the beginning, rather than panicking; that it does not
            // help to elect a leader meanwhile is `RaftService::blank`'s business.
            allow_log_reversion: Some(true),
            // Snapshots are triggered by bytes too, see `upkeep`.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.keep_entries,
            // Purging happens after a snapshot only: no need to batch it.
            purge_batch_size: 1,
            max_payload_entries: 512,
            install_snapshot_timeout: millis(self.catch_up),
            // An unreachable follower is tried again ten times a second.
            backoff: "100ms".to_string(),
            api_channel_size: Some(4096),
            notification_channel_size: Some(4096),
            ..Config::default()
        };
        config.validate().map(Arc::new)
    }
}
