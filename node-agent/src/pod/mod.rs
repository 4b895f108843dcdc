//! The life of a Pod: a pure machine ([`machine::Machine`]) that is told what happened and
//! answers what to do, the words of its status ([`status`]), and the drivers that do it
//! ([`worker`] for one Pod, [`manager`] for the set of them).
pub mod backoff;
pub mod event;
pub mod keeper;
pub mod machine;
pub mod manager;
pub mod persist;
pub mod plan;
pub mod registry;
pub mod status;
pub mod steps;
pub mod worker;
