//! What the rest of the control plane sees of Raft: members, leadership, errors.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::store::LimitExceeded;

/// A member of the control plane, as the replicated membership records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Raft id; never reused for another machine or a wiped one that kept no log.
    pub id: u64,
    /// Node name.
    pub name: String,
    /// "ip:6443".
    pub api_address: String,
    /// "ip:2380".
    pub peer_address: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.id, self.name, self.peer_address)
    }
}

/// A member and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Who.
    pub member: Member,
    /// It votes; false: a learner that is catching up.
    pub voter: bool,
    /// It leads, as far as this member knows.
    pub leader: bool,
    /// Last log index known to be on its disk; only the leader knows this of others.
    pub matched_index: Option<u64>,
    /// Milliseconds since the leader heard from it; only the leader knows.
    pub silent_millis: Option<u64>,
}

/// The members, as told by the leader; or by this member alone, when none is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// All of them, learners too, by id.
    pub members: Vec<MemberStatus>,
    /// Who leads, confirmed by a majority during the call.
    pub leader_id: Option<u64>,
    /// Why this is one member's own view; `None`: it is the leader's.
    pub note: Option<String>,
}

/// Who leads, as this member sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The present term.
    pub term: u64,
    /// The leader, when known.
    pub leader_id: Option<u64>,
    /// This member leads, and has applied an entry of its own term: its store is complete.
    pub is_leader: bool,
    /// Where members reach the leader.
    pub leader_peer_address: Option<String>,
    /// Where clients reach the leader.
    pub leader_api_address: Option<String>,
}

/// Figures of this member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RaftStats {
    /// This member's id.
    pub id: u64,
    /// The present term.
    pub term: u64,
    /// The leader, when known.
    pub leader_id: Option<u64>,
    /// "Leader", "Follower", "Learner", "Candidate", "Shutdown".
    pub state: String,
    /// Last entry in the log.
    pub last_log_index: Option<u64>,
    /// Last applied entry.
    pub applied_index: Option<u64>,
    /// Last entry in the snapshot on disk.
    pub snapshot_index: Option<u64>,
    /// Last entry no longer in the log.
    pub purged_index: Option<u64>,
}

/// What a lease renewal answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseGrant {
    /// How long the lease holds from when the renewal was sent.
    pub ttl_millis: u64,
    /// The granting leader's term.
    pub term: u64,
}

/// What a node's netd says every second.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkReport {
    /// Every change up to this revision is in the node's kernel.
    pub applied_revision: u64,
    /// The node's own network; empty: the report says nothing of routes.
    pub network: String,
    /// Nodes whose Pods no route leads to from there: name, underlay address.
    pub unrouted: Vec<(String, String)>,
}

/// What only the leader's memory knows; called on the leader alone. The controllers implement it.
pub trait LeaderHooks: Send + Sync + 'static {
    /// A node's agent lives.
    fn renew_lease(&self, node: &str, instance: &str) -> LeaseGrant;
    /// A node's netd says how far it has come and whom no route leads to; answers the least
    /// revision that all live netds have.
    fn report_network(&self, node: &str, report: NetworkReport) -> u64;
}

/// Why a proposal has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// It was certainly not applied: try again.
    #[error("no leader could take the write within {waited_millis} ms ({reason}); nothing was written, try again")]
    Unavailable {
        /// How long it was tried.
        waited_millis: u64,
        /// What the last try met.
        reason: String,
        /// The leader's API address, when one is known.
        leader_api_address: Option<String>,
    },
    /// It may or may not be applied. With a request id, repeating it is safe.
    #[error(
        "the write was sent, but its outcome is unknown ({reason}); read before writing again, or retry with the same request id"
    )]
    Unknown {
        /// What went wrong.
        reason: String,
    },
    /// Refused before it was sent.
    #[error(transparent)]
    TooLarge(#[from] LimitExceeded),
    /// It cannot be encoded.
    #[error("the command cannot be encoded: {0}")]
    Encode(String),
    /// This member is stopping, or its disk failed.
    #[error("this member has stopped: {0}")]
    Stopped(String),
}

/// Why something only the leader can do was not done.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum LeaderError {
    /// No leader answered in time.
    #[error("no leader answered within {waited_millis} ms: {reason}")]
    Unavailable {
        /// How long it was tried.
        waited_millis: u64,
        /// What the last try met.
        reason: String,
        /// The leader's API address, when one is known.
        leader_api_address: Option<String>,
    },
    /// This member is stopping, or its disk failed.
    #[error("this member has stopped: {0}")]
    Stopped(String),
}

/// Why the membership was not changed.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum MemberError {
    /// No such member.
    #[error("there is no member {id}; members are {members}")]
    Unknown {
        /// Asked for.
        id: u64,
        /// Who there is.
        members: String,
    },
    /// Another member has the id or an address of it.
    #[error("member {member} clashes with {other}: remove that one first")]
    Clash {
        /// Asked for.
        member: String,
        /// In its way.
        other: String,
    },
    /// The cluster would not be able to write afterwards.
    #[error(
        "member {id} cannot be removed: of the {voters} voters left only {alive} answer, and {needed} must; bring others back or add one first"
    )]
    WouldLoseQuorum {
        /// To be removed.
        id: u64,
        /// Voters that would remain.
        voters: usize,
        /// Of them, those that answer.
        alive: usize,
        /// The majority.
        needed: usize,
    },
    /// Nobody would be left.
    #[error("member {id} is the last voter: a cluster cannot remove it")]
    LastVoter {
        /// To be removed.
        id: u64,
    },
    /// A new member did not catch up.
    #[error(
        "member {id} did not catch up within {waited_millis} ms ({why}); it stays a learner, add it again once it answers at {peer_address}"
    )]
    NotCaughtUp {
        /// The new member.
        id: u64,
        /// How long it was waited for.
        waited_millis: u64,
        /// Where it stands.
        why: String,
        /// Its address.
        peer_address: String,
    },
    /// Leadership did not move.
    #[error("leadership did not move to member {to}: {why}")]
    NotTransferred {
        /// The intended leader.
        to: u64,
        /// Why.
        why: String,
    },
    /// Another change is in progress.
    #[error("another membership change is in progress: {0}; try again when it is done")]
    Busy(String),
    /// No leader, or it was lost on the way.
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// More voters than are of any use: each write would wait for more disks, and no more members
    /// may fail.
    // At the end: members of different versions send these to each other.
    #[error("member {id} cannot be added: the cluster has {voters} voters, and may have {limit}; remove one first")]
    TooMany {
        /// The new member.
        id: u64,
        /// How many there are.
        voters: usize,
        /// How many there may be.
        limit: usize,
    },
}
