//! The handle that the rest of the control plane holds.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{InitializeError, RaftError};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use trellis_proto::peer::leader_client::LeaderClient;
use trellis_proto::peer::{AddMember, ChangeMembersRequest, RenewLeaseRequest, change_members_request::Change};

use super::config::{Tuning, TypeConfig};
use super::leader::cut_off_text;
use super::machine::{Applied, Machine};
use super::network::Peers;
use super::proposer::Proposal;
use super::reads::{self, at_leader, at_leader_within, leader_channel};
use super::types::{
    LeaderError, LeaderHooks, Leadership, LeaseGrant, Member, MemberError, MemberStatus, NetworkReport, Overview,
    ProposeError, RaftStats,
};
use super::{membership, overview, wire};
use crate::store::{Command, Outcome, Store};

pub(super) type RaftHandle = openraft::Raft<TypeConfig, Machine>;

/// One member of the cluster; cheap to clone. Every method works on any member.
#[derive(Debug, Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
    proposals: mpsc::Sender<Proposal>,
    barriers: mpsc::Sender<reads::Waiter>,
}

pub(super) struct Inner {
    pub(super) id: u64,
    pub(super) store: Store,
    pub(super) raft: RaftHandle,
    pub(super) peers: Peers,
    pub(super) hooks: Arc<dyn LeaderHooks>,
    pub(super) tuning: Tuning,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) applied: watch::Receiver<Applied>,
    /// Membership changes run one at a time.
    pub(super) changing: Mutex<()>,
    pub(super) stopped: CancellationToken,
    /// When a leader was last heard.
    pub(super) heard: std::sync::Mutex<Instant>,
    /// Keeps others out of the folder until raft has stopped.
    lock: std::sync::Mutex<Option<Box<dyn Send + Sync>>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Inner {
    /// A running member's parts.
    pub(super) fn new(
        id: u64,
        store: Store,
        raft: RaftHandle,
        (peers, hooks, tuning): (Peers, Arc<dyn LeaderHooks>, Tuning),
        (leadership, applied): (watch::Receiver<Leadership>, watch::Receiver<Applied>),
        lock: Box<dyn Send + Sync>,
    ) -> Self {
        Self {
            id,
            store,
            raft,
            peers,
            hooks,
            tuning,
            leadership,
            applied,
            changing: Mutex::new(()),
            stopped: CancellationToken::new(),
            heard: std::sync::Mutex::new(Instant::now()),
            lock: std::sync::Mutex::new(Some(lock)),
        }
    }

    /// Waits until this member has applied everything before `next_index`.
    ///
    /// # Errors
    /// Why it has not: the entries are on their way from a leader that may have fallen silent since.
    pub(super) async fn wait_applied(&self, next_index: u64, deadline: Instant) -> Result<(), String> {
        let mut applied = self.applied.clone();
        tokio::select! {
            biased;
            // The sender lives as long as raft does.
            there = applied.wait_for(|a| a.next_index >= next_index) => {
                there.map(drop).map_err(|_| format!("member {} has stopped", self.id))
            }
            () = self.stopped.cancelled() => Err(format!("member {} has stopped", self.id)),
            silent = reads::cut_off(self) => Err(cut_off_text(self.id, silent)),
            () = tokio::time::sleep_until(deadline) => {
                let has = self.applied.borrow().next_index;
                Err(format!("member {} has applied the log up to {has}, not to {next_index} in time", self.id))
            }
        }
    }
}

impl Consensus {
    pub(super) fn new(
        inner: Arc<Inner>,
        proposals: mpsc::Sender<Proposal>,
        barriers: mpsc::Sender<reads::Waiter>,
    ) -> Self {
        Self { inner, proposals, barriers }
    }

    /// This member's id.
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// This member's store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Makes this member a cluster of its own. Does nothing when it belongs to one already.
    pub async fn bootstrap(&self, member: Member) -> Result<(), LeaderError> {
        let stopped = |e: String| LeaderError::Stopped(e);
        let members = std::collections::BTreeMap::from([(self.inner.id, member)]);
        self.inner.hear();
        match self.inner.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(e) => return Err(stopped(e.to_string())),
        }
        self.read_barrier().await
    }

    /// Whether this member belongs to a cluster (its log is not empty).
    pub async fn is_initialized(&self) -> bool {
        self.inner.raft.is_initialized().await.unwrap_or(false)
    }

    /// Writes. Answers once a majority has it on disk and this member has applied it, so the
    /// caller reads its own write here. Retried over leader changes when the command has a
    /// request id, or when it certainly was not taken.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        command.check_limits()?;
        let encoded = command.encode().map_err(|e| ProposeError::Encode(e.to_string()))?;
        let (answer, answered) = oneshot::channel();
        let proposal = Proposal {
            command: encoded,
            repeatable: command.request_id.is_some(),
            deadline: Instant::now() + self.inner.tuning.deadline,
            answer,
            unknown: false,
        };
        let stopped = || ProposeError::Stopped("it is shutting down".into());
        self.proposals.send(proposal).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Returns once this member's store shows every write acknowledged before the call.
    pub async fn read_barrier(&self) -> Result<(), LeaderError> {
        let (tell, told) = oneshot::channel();
        let stopped = || LeaderError::Stopped("it is shutting down".into());
        self.barriers.send(tell).await.map_err(|_| stopped())?;
        told.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Who leads; changes are seen at once.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Adds a member: first as a learner, then, caught up, as a voter. Repeating it is safe.
    pub async fn add_member(&self, member: Member) -> Result<(), MemberError> {
        self.change(&Change::Add(AddMember {
            id: member.id,
            name: member.name,
            api_address: member.api_address,
            peer_address: member.peer_address,
        }))
        .await
    }

    /// Removes a member. The leader hands over before it is removed itself.
    pub async fn remove_member(&self, id: u64) -> Result<(), MemberError> {
        self.change(&Change::Remove(id)).await
    }

    /// Hands leadership to another voter.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), MemberError> {
        self.change(&Change::TransferTo(to)).await
    }

    async fn change(&self, change: &Change) -> Result<(), MemberError> {
        let inner = &self.inner;
        // The leader's own time limits rule, so a little is added to their sum; repeated only
        // where nothing was done.
        let limit = membership::WAIT_FOR_OTHERS + inner.tuning.catch_up + inner.tuning.deadline;
        let result = at_leader_within(inner, limit, |leadership| async move {
            if leadership.leader_id == Some(inner.id) {
                inner.must_lead()?;
                let result = match change.clone() {
                    Change::Add(m) => membership::add(inner, m.into()).await,
                    Change::Remove(id) => membership::remove(inner, id).await,
                    Change::TransferTo(id) => membership::transfer(inner, id).await,
                };
                return match result {
                    Err(MemberError::Leader(e)) => Err(wire::not_leader(e)),
                    other => Ok(other),
                };
            }
            let mut client = LeaderClient::new(leader_channel(inner, &leadership)?);
            let request = ChangeMembersRequest { change: Some(change.clone()) };
            match client.change_members(request).await {
                Ok(_) => Ok(Ok(())),
                Err(status) => match wire::member_error(&status) {
                    Some(error) => Ok(Err(error)),
                    None => Err(status),
                },
            }
        });
        result.await?
    }

    /// The members as this one knows them, at no cost.
    pub fn members(&self) -> Vec<MemberStatus> {
        self.inner.members()
    }

    /// The members as the leader knows them.
    pub async fn overview(&self) -> Overview {
        overview::overview(&self.inner).await
    }

    /// How long this member has been without a majority, when that is too long to believe what
    /// it thinks of the cluster.
    pub fn cut_off(&self) -> Option<Duration> {
        self.inner.cut_off()
    }

    /// Figures of this member.
    pub fn stats(&self) -> RaftStats {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        RaftStats {
            id: metrics.id,
            term: metrics.current_term,
            leader_id: metrics.current_leader,
            state: format!("{:?}", metrics.state),
            last_log_index: metrics.last_log_index,
            applied_index: metrics.last_applied.map(|id| id.index),
            snapshot_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
        }
    }

    /// Renews a node's lease in the leader's memory.
    pub async fn renew_lease(&self, node: &str, instance: &str) -> Result<LeaseGrant, LeaderError> {
        let inner = &self.inner;
        at_leader(inner, |leadership| async move {
            if leadership.leader_id == Some(inner.id) {
                inner.must_lead()?;
                return Ok(inner.hooks.renew_lease(node, instance));
            }
            let request = RenewLeaseRequest { node: node.to_string(), instance: instance.to_string() };
            let mut client = LeaderClient::new(leader_channel(inner, &leadership)?);
            let reply = client.renew_lease(request).await?.into_inner();
            Ok(LeaseGrant { ttl_millis: reply.ttl_millis, term: reply.term })
        })
        .await
    }

    /// Tells the leader what a node's netd has in its kernel; answers the least of all.
    pub async fn report_network(&self, node: &str, report: &NetworkReport) -> Result<u64, LeaderError> {
        let inner = &self.inner;
        at_leader(inner, |leadership| async move {
            if leadership.leader_id == Some(inner.id) {
                inner.must_lead()?;
                return Ok(inner.hooks.report_network(node, report.clone()));
            }
            let request = wire::network_report(node, report);
            let mut client = LeaderClient::new(leader_channel(inner, &leadership)?);
            let reply = client.report_network(request).await?.into_inner();
            Ok::<_, Status>(reply.min_applied_revision)
        })
        .await
    }

    /// Writes a snapshot now, as before a backup.
    pub async fn snapshot(&self) -> Result<(), LeaderError> {
        let stopped = |e: openraft::error::Fatal<TypeConfig>| LeaderError::Stopped(e.to_string());
        self.inner.raft.trigger().snapshot().await.map_err(stopped)
    }

    /// Ends when this member has stopped, by [`Consensus::shutdown`] or because its disk
    /// failed; the process should then end too.
    pub async fn stopped(&self) {
        self.inner.stopped.cancelled().await;
    }

    /// Stops this member.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop in order");
        }
        self.inner.stopped.cancel();
        let lock = self.inner.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        drop(lock);
    }
}

impl From<AddMember> for Member {
    fn from(m: AddMember) -> Self {
        Member { id: m.id, name: m.name, api_address: m.api_address, peer_address: m.peer_address }
    }
}
