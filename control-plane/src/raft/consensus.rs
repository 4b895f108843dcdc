//! The handle that the rest of the control plane holds.

use std::sync::Arc;

use tokio::sync::watch;

use super::types::{
    LeaderError, Leadership, LeaseGrant, Member, MemberError, MemberStatus, ProposeError, RaftStats,
};
use crate::store::{Command, Outcome, Store};

/// One member of the cluster; cheap to clone. Every method works on any member.
#[derive(Debug, Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: u64,
    store: Store,
    leadership: watch::Receiver<Leadership>,
}

fn not_yet() -> LeaderError {
    LeaderError::Stopped("not started".into())
}

impl Consensus {
    /// This member's id.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// This member's store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Writes. Answers once a majority has it on disk and this member has applied it, so the
    /// caller reads its own write here. Retried over leader changes when the command has a
    /// request id, or when it certainly was not taken.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        command.check_limits()?;
        Err(ProposeError::Stopped("not started".into()))
    }

    /// Returns once this member's store shows every write acknowledged before the call.
    pub async fn read_barrier(&self) -> Result<(), LeaderError> {
        Err(not_yet())
    }

    /// Who leads; changes are seen at once.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Adds a member: first as a learner, then, caught up, as a voter.
    pub async fn add_member(&self, member: Member) -> Result<(), MemberError> {
        let _ = member;
        Err(not_yet().into())
    }

    /// Removes a member.
    pub async fn remove_member(&self, id: u64) -> Result<(), MemberError> {
        let _ = id;
        Err(not_yet().into())
    }

    /// Hands leadership to another voter.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), MemberError> {
        let _ = to;
        Err(not_yet().into())
    }

    /// The members as this one knows them.
    pub fn members(&self) -> Vec<MemberStatus> {
        Vec::new()
    }

    /// Figures of this member.
    pub fn stats(&self) -> RaftStats {
        RaftStats::default()
    }

    /// Renews a node's lease in the leader's memory.
    pub async fn renew_lease(&self, node: &str, instance: &str) -> Result<LeaseGrant, LeaderError> {
        let _ = (node, instance);
        Err(not_yet())
    }

    /// Tells the leader what a node's netd has in its kernel; answers the least of all.
    pub async fn report_network(&self, node: &str, revision: u64) -> Result<u64, LeaderError> {
        let _ = (node, revision);
        Err(not_yet())
    }

    /// Stops this member.
    pub async fn shutdown(&self) {}
}
