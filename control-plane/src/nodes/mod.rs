//! What the leader knows about nodes without asking the log: the agents' leases, how far each
//! netd has come, and what gossip says; and the verdict drawn from all of it.
//!
//! - [`leases`]: the lease table, in the leader's memory only. Every leader starts afresh.
//! - [`registry`]: the table behind a lock, shared between the API's hooks and the controllers.
//! - [`reach`]: whom each netd finds no route to, kept in the same table.
//! - [`gossip`]: the last membership view of the local netd; [`subscriber`] feeds it.
//! - [`verdict`]: the pure table that combines gossip and lease.
//! - [`handover`]: when a leader that cannot see gossip should give leadership away;
//!   [`presence`] tells all members who can.

pub mod gossip;
pub mod handover;
pub mod leases;
pub mod presence;
pub mod reach;
pub mod registry;
pub mod subscriber;
pub mod verdict;

pub use gossip::{GossipView, Liveness, SharedGossip};
pub use leases::{Grant, LeaseTable};
pub use registry::NodeRegistry;
pub use verdict::{Assessor, Standing};
