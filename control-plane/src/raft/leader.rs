//! What a member does for others while it leads, and what it knows about who does.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::Instant as _;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{ClientWriteError, LinearizableReadError, RaftError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use super::config::Payload;
use super::consensus::{Inner, RaftHandle};
use super::machine::Applied;
use super::types::Leadership;
use super::wire;
use crate::store::Outcome;

/// A member without a quorum for this many election timeouts (2 s) says so at once, so that its
/// clients turn to others: an election is over by then, or more than one failed.
const CUT_OFF_ELECTIONS: u32 = 4;

/// Why a command has no outcome (yet).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Unanswered {
    /// Certainly not in the log.
    NotTaken(String),
    /// Perhaps in the log.
    Unknown(String),
}

/// What became of a batch of commands.
pub(super) struct Written {
    pub answers: Vec<Result<Outcome, Unanswered>>,
    /// One more than the highest log index among them; who has applied up to here sees all.
    pub next_index: u64,
}

impl Inner {
    /// Writes a batch through this member's own raft, which must lead.
    pub(super) async fn write_as_leader(&self, commands: Vec<Bytes>) -> Result<Written, Status> {
        let count = commands.len();
        let stopped = |e| Status::unavailable(format!("this member has stopped: {e}"));
        let mut results = self.raft.client_write_many(commands.into_iter().map(Payload)).await.map_err(stopped)?;
        let mut written = Written { answers: Vec::with_capacity(count), next_index: 0 };
        while let Some(result) = results.next().await {
            written.answers.push(match result {
                Ok(Ok(done)) => {
                    written.next_index = written.next_index.max(done.log_id.index + 1);
                    Ok(done.response)
                }
                Ok(Err(ClientWriteError::ForwardToLeader(e))) => Err(Unanswered::NotTaken(e.to_string())),
                Ok(Err(e)) => Err(Unanswered::Unknown(e.to_string())),
                Err(fatal) => Err(Unanswered::Unknown(fatal.to_string())),
            });
        }
        let missing = || Err(Unanswered::Unknown("this member has stopped".into()));
        written.answers.resize_with(count, missing);
        let refused = |a: &Result<Outcome, Unanswered>| matches!(a, Err(Unanswered::NotTaken(_)));
        match written.answers.first() {
            Some(Err(Unanswered::NotTaken(why))) if written.answers.iter().all(refused) => Err(wire::not_leader(why)),
            _ => Ok(written),
        }
    }

    /// Confirms leadership with a majority; answers how far one must have applied to read.
    pub(super) async fn read_index_as_leader(&self) -> Result<u64, Status> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index() + 1),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(e))) => Err(wire::not_leader(e)),
            Err(RaftError::APIError(e)) => Err(Status::unavailable(e.to_string())),
            Err(RaftError::Fatal(e)) => Err(Status::unavailable(format!("this member has stopped: {e}"))),
        }
    }

    /// A leader was heard just now.
    pub(super) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long this member has been without a quorum, when that is too long: as leader since a
    /// majority acknowledged it, else since it heard a leader. A leader cut off from the others
    /// does not notice otherwise: nobody can tell it of the next term.
    pub(super) fn cut_off(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let silent = if metrics.current_leader == Some(self.id) {
            if metrics.membership_config.voter_ids().count() <= 1 {
                return None;
            }
            metrics.last_quorum_acked.as_ref()?.elapsed()
        } else {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
        };
        (silent >= self.tuning.election_max * CUT_OFF_ELECTIONS).then_some(silent)
    }

    /// Where a client may find the leader; nothing while this member has lost the others, since
    /// whom it holds for the leader, itself perhaps, is of yesterday.
    pub(super) fn leader_hint(&self) -> Option<String> {
        if self.cut_off().is_some() { None } else { self.leadership.borrow().leader_api_address.clone() }
    }

    /// Refuses unless this member leads with a complete store, and others still follow.
    pub(super) fn must_lead(&self) -> Result<(), Status> {
        if let Some(silent) = self.cut_off() {
            return Err(wire::not_leader(cut_off_text(self.id, silent)));
        }
        let leadership = self.leadership.borrow();
        if leadership.is_leader {
            return Ok(());
        }
        Err(wire::not_leader(format!("member {} follows {:?}", self.id, leadership.leader_id)))
    }
}

/// What a member without a quorum says.
pub(super) fn cut_off_text(id: u64, silent: Duration) -> String {
    format!("member {id} has been without a majority for {} ms", silent.as_millis())
}

fn observe(raft: &RaftHandle, id: u64, applied: Applied) -> Leadership {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let term = metrics.vote.leader_id.term;
    let leader = metrics.current_leader;
    let member = leader.and_then(|l| metrics.membership_config.get_node(&l).cloned());
    Leadership {
        term,
        leader_id: leader,
        // An applied entry of its own term proves that all earlier ones are applied too.
        is_leader: leader == Some(id) && applied.term == term,
        leader_peer_address: member.as_ref().map(|m| m.peer_address.clone()),
        leader_api_address: member.map(|m| m.api_address),
    }
}

/// News of the leadership counts as hearing one: who led until now, or begins alone, is not cut
/// off for that.
pub(super) async fn hear_news(inner: Arc<Inner>) {
    let mut leadership = inner.leadership.clone();
    while leadership.changed().await.is_ok() {
        inner.hear();
    }
}

/// Keeps [`Leadership`] up to date until raft stops.
pub(super) async fn follow(
    raft: RaftHandle,
    id: u64,
    mut applied: watch::Receiver<Applied>,
    tell: watch::Sender<Leadership>,
) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = observe(&raft, id, *applied.borrow_and_update());
        let becoming = now.leader_id == Some(id) && !now.is_leader;
        tell.send_if_modified(|known| {
            let changed = *known != now;
            if changed {
                tracing::info!(term = now.term, leader = ?now.leader_id, leads = now.is_leader, "leadership");
                *known = now;
            }
            changed
        });
        let alive = tokio::select! {
            changed = metrics.changed() => changed.is_ok(),
            // Every applied entry: of interest only until the first of its own term.
            changed = applied.changed(), if becoming => changed.is_ok(),
        };
        if !alive {
            // A stopped member leads nobody.
            tell.send_modify(|l| l.is_leader = false);
            return;
        }
    }
}
