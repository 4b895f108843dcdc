//! The control plane of Trellis: a Raft-replicated store, the API above it, and, on the
//! leader, scheduler and controllers.
#![forbid(unsafe_code)]

pub mod raft;
pub mod store;
