//! What can be broken between the nodes.

pub mod underlay;
