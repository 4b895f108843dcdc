//! Installing the real cluster on a lab's nodes, as an administrator would: `init` on the first,
//! a token and a `join` on each other, daemons on all; then waiting until all are Ready.

pub mod api;
pub mod contexts;
pub mod up;

pub use api::Api;
