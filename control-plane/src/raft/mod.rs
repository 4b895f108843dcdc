//! Raft: openraft with a log and snapshots of our own on disk, and gRPC between members.
//!
//! ```text
//! propose ─ proposer (batches) ─┬─ this member leads: openraft ─ log ─ fsync ─ majority ─ machine ─ store
//!                               └─ another leads: Leader.Propose on 2380, then wait until applied here
//! read_barrier ─ reads (one round for many) ─ read index at the leader ─ wait until applied here
//! ```
//! Owners: [`log`] what is durable, [`snapshots`] and [`machine`] the state, [`network`] and
//! [`server`] what members say to each other, [`notices`] which of it waits for company,
//! [`membership`] who they are, [`upkeep`] that log and disk stay bounded; [`Consensus`] is all that
//! others hold.
//!
//! A member with an empty folder waits to be added; only [`Consensus::bootstrap`] makes a
//! cluster. Elections are preceded by a pre-vote, so that a member returning from a partition
//! disturbs nobody.

mod config;
mod consensus;
pub mod disk;
mod leader;
mod log;
mod machine;
mod membership;
mod network;
mod notices;
mod overview;
mod proposer;
mod reads;
mod server;
pub mod simdisk;
mod snapshots;
mod start;
mod types;
mod upkeep;
mod wire;

pub use config::{Payload, Tuning, TypeConfig};
pub use consensus::Consensus;
pub use log::LogStore;
pub use machine::{Applied, Machine};
pub(crate) use membership::MAX_VOTERS;
pub use network::{Dialer, TlsDialer};
pub use server::{LeaderService, PeerServices, RaftService};
pub use snapshots::{Draft, SnapshotFile, Snapshots, check_snapshot};
pub use start::{Options, StartError, start};
pub use types::{
    LeaderError, LeaderHooks, Leadership, LeaseGrant, Member, MemberError, MemberStatus, NetworkReport, Overview,
    ProposeError, RaftStats,
};
