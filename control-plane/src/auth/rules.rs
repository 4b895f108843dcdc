//! The table of role, verb and kind.
//!
//! | role | may |
//! |---|---|
//! | admin, member, this process | everything |
//! | agent of n | read Pods bound to n, and the ConfigMaps and Secrets they refer to; read, create and update Node n; update the status of Pods bound to n; remove them once they terminate; create Events |
//! | netd of n | read Nodes, Namespaces, NetworkPolicies; read Pods in the network projection |
//! | nobody | nothing |
//!
//! Beside objects, every role may ask for the cluster's status (the members' addresses) and renew
//! its own certificate; agents renew their node's lease and netds report for theirs
//! ([`speaks_for`]). All else is for administrators and members.

use std::fmt;

use trellis_model::Kind;
use trellis_proto::identity::Identity;

use super::Caller;

/// What is to be done with objects of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make one.
    Create,
    /// Change one: Update, Patch, or Apply of an existing one.
    Update,
    /// Change the status of one.
    UpdateStatus,
    /// Remove one.
    Delete,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 7] =
        [Verb::Get, Verb::List, Verb::Watch, Verb::Create, Verb::Update, Verb::UpdateStatus, Verb::Delete];

    /// Only reads.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::UpdateStatus => "update the status of",
            Self::Delete => "delete",
        })
    }
}

/// What is granted, where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Any object of the kind.
    Any,
    /// Only the Pods bound to this node.
    BoundTo(String),
    /// Only terminating Pods bound to this node, with a grace period of 0.
    TerminatingOn(String),
    /// Only the object of this name, and nothing of it that the leader decides.
    Named(String),
    /// Only one object at a time, which a Pod bound to this node refers to.
    ReferencedOn(String),
    /// Any Pod, in the network projection.
    NetworkProjection,
}

/// The rule for a caller's verb on a kind; `None`: forbidden.
pub fn resources(caller: &Caller, verb: Verb, kind: Kind) -> Option<Rule> {
    let identity = match caller {
        Caller::System(_) => return Some(Rule::Any),
        Caller::Peer(identity) => identity,
    };
    match identity {
        Identity::Admin(_) | Identity::Member(_) => Some(Rule::Any),
        Identity::Agent(node) => agent(node, verb, kind),
        Identity::Netd(_) => match kind {
            Kind::Node | Kind::Namespace | Kind::NetworkPolicy if verb.is_read() => Some(Rule::Any),
            Kind::Pod if verb.is_read() => Some(Rule::NetworkProjection),
            _ => None,
        },
    }
}

fn agent(node: &str, verb: Verb, kind: Kind) -> Option<Rule> {
    let node = node.to_owned();
    match (kind, verb) {
        (Kind::Pod, Verb::Get | Verb::List | Verb::Watch | Verb::UpdateStatus) => Some(Rule::BoundTo(node)),
        (Kind::Pod, Verb::Delete) => Some(Rule::TerminatingOn(node)),
        (Kind::Node, Verb::Delete) => None,
        (Kind::Node, _) => Some(Rule::Named(node)),
        // No List: it would tell the names of what no Pod here refers to.
        (Kind::ConfigMap | Kind::Secret, Verb::Get | Verb::Watch) => Some(Rule::ReferencedOn(node)),
        (Kind::Event, Verb::Create) => Some(Rule::Any),
        _ => None,
    }
}

/// May the caller renew the lease of, or report for, this node? Agents renew, netds report,
/// each for its own node alone.
pub fn speaks_for(caller: &Caller, role: NodeRole, node: &str) -> bool {
    match (caller, role) {
        (Caller::Peer(Identity::Agent(own)), NodeRole::Agent) | (Caller::Peer(Identity::Netd(own)), NodeRole::Netd) => {
            own == node
        }
        _ => false,
    }
}

/// Which daemon of a node a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRole {
    /// The node agent.
    Agent,
    /// The network daemon.
    Netd,
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
