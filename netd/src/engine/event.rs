//! What the engine is told, and what it answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use trellis_gossip::View;

use crate::cluster::{Incoming, Kind};
use crate::ipam::IpamError;
use crate::kernel::KernelError;
use crate::store::StoreError;

/// Why a request about a Pod cannot be carried out.
#[derive(Debug, Error)]
pub enum EngineError {
    /// No descriptors were handed over.
    #[error("pod {0}: its network namespace was not handed over; send it on handoff.sock first")]
    NotHandedOver(String),
    /// The API does not show the Pod to netd.
    #[error("pod {0}: the control plane has not shown it to netd yet; try again")]
    UnknownPod(String),
    /// The node has no pod CIDR.
    #[error("pod {0}: the node has no pod CIDR yet; try again")]
    NoPodCidr(String),
    /// No address is free.
    #[error(transparent)]
    Address(#[from] IpamError),
    /// The allocation cannot be stored.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The kernel refused.
    #[error("pod {0}: {1}")]
    Kernel(String, Arc<KernelError>),
}

/// What an attached Pod is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// Bytes.
    pub mtu: u32,
    /// The revision whose policy is in force.
    pub revision: u64,
}

/// One attached Pod, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedPod {
    /// The Pod.
    pub uid: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node's side of its veth pair.
    pub interface: String,
    /// Is its namespace's socket held?
    pub netns_held: bool,
}

/// The engine's state, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Attached Pods.
    pub attached: Vec<AttachedPod>,
    /// The node's pod CIDR.
    pub pod_cidr: Option<Ipv4Network>,
    /// Every change up to here is in the kernel.
    pub applied_revision: u64,
    /// Repairs of drift since start.
    pub repairs: u64,
}

/// What the engine is told.
#[derive(Debug)]
pub enum Event {
    /// Everything there is of some kinds, of all of them as a rule. What comes later, of whatever
    /// kind, comes in the order of revisions.
    Listed {
        /// The lists' revision.
        revision: u64,
        /// All objects of each kind that is in it.
        objects: BTreeMap<Kind, Vec<Incoming>>,
    },
    /// An object is new or changed.
    Changed {
        /// Which kind.
        kind: Kind,
        /// Its revision.
        revision: u64,
        /// The object.
        object: Incoming,
    },
    /// An object is gone.
    Removed {
        /// Which kind.
        kind: Kind,
        /// The revision of its removal.
        revision: u64,
        /// Its last state.
        object: Incoming,
    },
    /// Nothing else happened up to `revision`.
    Bookmark {
        /// The revision.
        revision: u64,
    },
    /// The control plane answered; every live netd has acted on this revision.
    MinApplied(u64),
    /// Who is alive.
    View(Arc<View>),
    /// A Pod's namespace and an rtnetlink socket opened in it.
    Handoff {
        /// The Pod.
        uid: String,
        /// Its network namespace.
        netns: OwnedFd,
        /// The socket.
        socket: OwnedFd,
        /// Told when both are held.
        reply: oneshot::Sender<()>,
    },
    /// Connect a Pod.
    Attach {
        /// The Pod.
        uid: String,
        /// The answer.
        reply: oneshot::Sender<Result<Attachment, EngineError>>,
    },
    /// Disconnect a Pod.
    Detach {
        /// The Pod.
        uid: String,
        /// The answer.
        reply: oneshot::Sender<Result<(), EngineError>>,
    },
    /// Tell how it stands.
    Status {
        /// The answer.
        reply: oneshot::Sender<Status>,
    },
    /// Something in the kernel changed, perhaps by us.
    KernelChanged,
    /// Time passes.
    Tick,
    /// Keep what is known, and end.
    Stop,
}

/// What others of this process follow.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The node's pod CIDR, for gossip.
    pub pod_cidr: watch::Receiver<Option<Ipv4Network>>,
    /// Underlay addresses of all known Nodes, as gossip's seeds.
    pub nodes: watch::Receiver<Vec<IpAddr>>,
    /// Every change up to here is in the kernel.
    pub applied: watch::Receiver<u64>,
    /// Which nodes' Pods cannot be reached from here.
    pub unrouted: watch::Receiver<super::Unrouted>,
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its Node's name.
    pub node_name: String,
    /// Its underlay address.
    pub advertise: Ipv4Addr,
}
