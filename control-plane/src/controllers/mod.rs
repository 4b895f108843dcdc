//! The controllers: what keeps the cluster as its objects say it should be. They run, with the
//! scheduler, on the leader only.
//!
//! Each controller is a plain function from what the cache holds to a [`object::Plan`]: one
//! transaction, what to tell about it, and when to look again. Around them:
//!
//! - [`cache`]: every object, decoded once per change, as of exactly one revision;
//! - [`queue`]: keys to plan, never events; nothing is dropped, repeated, or planned before the
//!   cache shows what the last plan wrote;
//! - [`engine`]: all of it as one machine without I/O ([`dispatch`]: which change asks for which
//!   work; [`plans`]: from a key to a planner's input);
//! - [`writer`]: admits and proposes transactions, fenced by the leader's term;
//! - [`driver`]: the task that moves messages between store, engine and writer.
//!
//! Level, not edge: whatever was missed, a new leader's first list asks for all of it again.

pub mod cache;
pub mod deployment;
mod dispatch;
pub mod driver;
pub mod engine;
pub mod gc;
pub mod meta;
pub mod namespace;
pub mod node;
pub mod object;
mod plans;
pub mod pod_gc;
pub mod pods;
pub mod queue;
pub mod recorder;
pub mod replicaset;
pub mod retention;
pub mod shelf;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
pub(crate) mod testing;
pub mod work;
pub mod writer;

pub use driver::{Controllers, run};
pub use engine::{Config, Engine};
pub use node::cidr::PodRange;
pub use writer::{AdmittedWriter, ClusterWriter};
