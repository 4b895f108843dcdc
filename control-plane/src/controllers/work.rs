//! What the controllers work on: keys, by urgency.

use std::sync::Arc;

use super::object::ObjKey;
use super::queue::Class;
use crate::scheduler::pod::PodKey;

/// Namespace and name.
pub type Named = (Arc<str>, Arc<str>);

/// One thing to plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// A Node's object.
    Node(Arc<str>),
    /// The Pods on a Node that must leave.
    Evict(Arc<str>),
    /// A ReplicaSet.
    ReplicaSet(Named),
    /// A Deployment.
    Deployment(Named),
    /// A Namespace that goes.
    Namespace(Arc<str>),
    /// An object as owner or dependent.
    Collect(ObjKey),
    /// Pods that no agent cleans up.
    PodGc,
    /// Old Events.
    Retention,
}

impl Class for Work {
    fn class(&self) -> u8 {
        match self {
            Work::Node(_) | Work::Evict(_) => 0,
            Work::ReplicaSet(_) => 1,
            Work::Deployment(_) => 2,
            Work::Namespace(_) | Work::Collect(_) => 3,
            Work::PodGc | Work::Retention => 4,
        }
    }
}

/// Who asked for a transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// A controller.
    Work(Work),
    /// The scheduler: Pods bound, each with the version it was scheduled from.
    Binds(Vec<(PodKey, u64)>),
    /// The scheduler: why Pods wait.
    Words(Vec<PodKey>),
    /// The recorder.
    Events,
}
