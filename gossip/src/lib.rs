//! Who is alive: cluster membership by SWIM gossip over UDP, without any I/O of its own.
//!
//! [`Gossip`] is a pure machine around foca's SWIM (suspicion, incarnations, indirect probes;
//! Das, Gupta, Motivala 2002). It gets packets, timer ticks and the time, and answers with
//! [`Effect`]s. What Trellis adds stands in rooms of its own:
//!
//! - `seal`: every packet is encrypted and authenticated with the cluster's gossip key, and is
//!   accepted once (sender epoch, counter, window; no clock involved);
//! - `health`: an observer that doubts itself (Lifeguard; Dadgar, Phillips, Currey 2018): one
//!   that was paused or starved withholds its verdicts and drops its suspicions;
//! - `identity`: what a node says about itself. A restarted node comes with a higher epoch and
//!   is taken back at once.
//!
//! This crate knows nothing of Pods, routes or the API; `netd` drives it.
#![forbid(unsafe_code)]

mod config;
mod health;
mod identity;
mod machine;
mod outbox;
mod seal;
mod view;

pub use config::{Config, Counters, Effect};
pub use identity::{IdentityError, NodeIdentity};
pub use machine::Gossip;
pub use seal::{GossipKey, Heard, MAX_PACKET_BYTES, SealError};
pub use view::{Liveness, MemberView, View};
