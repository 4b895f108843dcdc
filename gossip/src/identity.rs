//! What a node says about itself, and when one saying replaces another.
//!
//! The underlay address is the unique key: of two identities with one address the one with the
//! higher epoch is the node. An epoch is the wall clock in milliseconds at start, or more: it
//! only has to grow, and it grows by one whenever the node says something new about itself or
//! must come back after having been declared dead.

use std::net::SocketAddr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes an encoded identity may take. Three of them (source, destination, target of an
/// indirect probe) must fit into one packet beside the payload.
const MAX_IDENTITY_BYTES: usize = 380;

/// An identity that cannot be gossiped.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The encoded form would not leave room in a packet.
    #[error(
        "gossip identity of node {name:?} takes {bytes} bytes, {MAX_IDENTITY_BYTES} are allowed: \
         shorten the node name or the list of API addresses"
    )]
    TooLarge {
        /// The node's name.
        name: String,
        /// Its encoded size.
        bytes: usize,
    },
    /// Serialization failed.
    #[error("gossip identity of node {name:?} cannot be encoded: {source}")]
    Encode {
        /// The node's name.
        name: String,
        /// Why.
        source: postcard::Error,
    },
}

/// One node as gossip knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// The Node object's name.
    pub name: String,
    /// Underlay address and gossip port.
    pub address: SocketAddr,
    /// The node's pod CIDR, once the leader has given one.
    pub pod_cidr: Option<Ipv4Network>,
    /// Version of the software, as `MAJOR.MINOR.PATCH`.
    pub version: String,
    /// Grows with every start and every change of what the node says about itself.
    pub epoch: u64,
    /// `host:port` of the API, on machines that carry a control-plane member.
    pub api_addresses: Vec<String>,
}

impl NodeIdentity {
    /// An identity that stands for whoever answers at `address`; only announcements go to it.
    pub(crate) fn nameless(address: SocketAddr) -> Self {
        Self {
            name: String::new(),
            address,
            pod_cidr: None,
            version: String::new(),
            epoch: 0,
            api_addresses: Vec::new(),
        }
    }

    /// Refuses an identity that would not fit into packets.
    pub fn check(&self) -> Result<(), IdentityError> {
        let bytes = postcard::to_stdvec(self)
            .map_err(|source| IdentityError::Encode { name: self.name.clone(), source })?
            .len();
        if bytes > MAX_IDENTITY_BYTES {
            return Err(IdentityError::TooLarge { name: self.name.clone(), bytes });
        }
        Ok(())
    }
}

impl foca::Identity for NodeIdentity {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Self> {
        Some(Self { epoch: self.epoch.saturating_add(1), ..self.clone() })
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.epoch > adversary.epoch
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use foca::Identity;

    fn identity() -> NodeIdentity {
        NodeIdentity {
            name: "n1".into(),
            address: "172.30.0.11:7946".parse().unwrap(),
            pod_cidr: Some("10.244.1.0/24".parse().unwrap()),
            version: "0.1.0".into(),
            epoch: 7,
            api_addresses: vec!["172.30.0.11:6443".into()],
        }
    }

    #[test]
    fn a_renewed_identity_wins() {
        let old = identity();
        let new = old.renew().unwrap();
        assert!(new.win_addr_conflict(&old));
        assert!(!old.win_addr_conflict(&new));
        assert!(!old.win_addr_conflict(&old));
    }

    #[test]
    fn too_large_is_refused() {
        assert_eq!(identity().check(), Ok(()));
        let huge = NodeIdentity { name: "n".repeat(400), ..identity() };
        assert!(matches!(huge.check(), Err(IdentityError::TooLarge { .. })));
    }
}
