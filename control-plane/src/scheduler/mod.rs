//! The scheduler: which node each waiting Pod is bound to.
//!
//! A pure machine ([`Scheduler`]) fed with changed Pods and Nodes, which answers decisions; the
//! controllers' driver writes them. It keeps its own account of each node, changed by one Pod at
//! a time, and *assumes* a binding from the moment it decides until the cache shows it, so that
//! it need not wait for writes.
//!
//! ```text
//!  Pod seen ──> active ──schedule──> assumed ──cache shows nodeName──> placed
//!                 ^  │                  │
//!                 │  └─no node fits─> waiting ──a node that changed fits──> assumed
//!                 └──────bind refused───┘
//! ```
//!
//! A waiting Pod is tried again only against nodes that changed in its favour: it fitted none of
//! the others, and they are as they were. Nothing is polled.
//!
//! - [`node`]: one node's account; [`pod`]: what of a Pod matters; [`filter`]: where it may run;
//!   [`score`]: where it runs best; [`explain`]: Kubernetes' words for why it runs nowhere.

pub mod explain;
pub mod filter;
pub mod machine;
pub mod node;
pub mod pod;
pub mod score;
#[cfg(test)]
mod tests;
pub mod write;

pub use machine::{Decision, Scheduler};
