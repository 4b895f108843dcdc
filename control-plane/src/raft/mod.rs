//! Raft: openraft with a log and snapshots of our own on disk, and gRPC between members.

mod consensus;
mod types;

pub use consensus::Consensus;
pub use types::{
    LeaderError, LeaderHooks, Leadership, LeaseGrant, Member, MemberError, MemberStatus,
    ProposeError, RaftStats,
};
