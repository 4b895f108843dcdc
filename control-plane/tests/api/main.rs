//! One real member with real TLS on loopback, and clients of every role.
#![allow(clippy::unwrap_used, missing_docs)]

mod bed;
mod join;
mod log;
mod members;
mod objects;
mod secrets;
mod trust;
mod writes;
