//! Whom a node's netd finds no route to. Kept in the leader's memory beside the leases; what it
//! means for the Nodes is planned by [`crate::controllers::node::reach`].

use std::collections::BTreeMap;
use std::sync::Arc;

/// What one netd says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// The node's own network, `172.30.0.0/24`.
    pub network: String,
    /// Nodes whose Pods no route leads to from there: name to underlay address.
    pub unrouted: BTreeMap<String, String>,
}

/// What all say who spoke in this term, by node.
pub type Reports = BTreeMap<Arc<str>, Arc<Reach>>;
