//! The control plane of Trellis: a Raft-replicated store, the API above it, and, on the
//! leader, scheduler and controllers.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod config;
pub mod controllers;
pub mod nodes;
pub mod raft;
pub mod run;
pub mod scheduler;
pub mod store;
