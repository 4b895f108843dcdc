//! Who may do what. The whole of it is one table, [`rules::resources`], of role, verb and kind;
//! what a rule asks of the object at hand is decided by [`Rule`]'s users in `api/ops`, who hold
//! the object.
//!
//! A caller is what its certificate says (see `trellis_proto::identity`), or this process
//! itself. The port without a certificate leads to `Cluster.Join` alone.

pub mod references;
pub mod rules;

use std::fmt;

use trellis_proto::identity::Identity;

pub use rules::{Rule, Verb};

/// On whose behalf something is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The holder of a verified certificate.
    Peer(Identity),
    /// A part of this process, for the log.
    System(&'static str),
}

impl Caller {
    /// May it do everything that the API offers?
    pub fn is_trusted(&self) -> bool {
        matches!(self, Self::System(_) | Self::Peer(Identity::Admin(_) | Identity::Member(_)))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(identity) => write!(f, "{identity}"),
            Self::System(part) => write!(f, "system:{part}"),
        }
    }
}
