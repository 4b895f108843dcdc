//! The control plane of Trellis: a Raft-replicated store, the API above it, and, on the
//! leader, scheduler and controllers.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod raft;
pub mod store;
