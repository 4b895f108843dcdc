//! Proposing: concurrent proposals share batches; a batch goes to whoever leads, wherever that
//! is, again and again until its deadline, as long as repeating is safe.
//!
//! Safe to repeat is what was certainly not taken, and what carries a request id, which the
//! state machine answers from memory the second time. Anything else ends as "outcome unknown".

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use trellis_proto::peer::ProposeRequest;
use trellis_proto::peer::leader_client::LeaderClient;

use super::consensus::Inner;
use super::leader::{Unanswered, Written, cut_off_text};
use super::network::Purpose;
use super::types::{Leadership, ProposeError};
use super::{reads, wire};
use crate::store::Outcome;

/// Proposals waiting for a batch; more wait in their callers.
pub(super) const QUEUE: usize = 4096;
/// Most commands in a batch …
const BATCH_COMMANDS: usize = 256;
/// … and bytes, beyond the first.
const BATCH_BYTES: usize = 1024 * 1024;
/// Batches under way at most: enough to cover a slow fsync and a round trip.
const BATCHES: usize = 8;
/// Pause before trying again while nobody leads.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// One command on its way.
pub(super) struct Proposal {
    pub command: Bytes,
    /// It has a request id.
    pub repeatable: bool,
    pub deadline: Instant,
    pub answer: oneshot::Sender<Result<Outcome, ProposeError>>,
    /// It may have been taken by an earlier try.
    pub unknown: bool,
}

impl Proposal {
    fn answer(self, result: Result<Outcome, ProposeError>) {
        // A caller that gave up needs no answer.
        drop(self.answer.send(result));
    }
}

/// What a batch must hold to start beside `batches` others that hold `commands`: with nothing under
/// way a lone command goes at once; else it waits for company, because each batch costs the same
/// hop, log append, fsync and replication, whatever it holds. Beside a single batch, as many as are
/// in it are company enough: were they made to wait for its end, a few callers would fall into two
/// groups that wait for each other by turns, each write taking twice its time.
fn least_batch(batches: usize, commands: usize) -> usize {
    match batches {
        0 => 1,
        1 => commands.clamp(1, 16),
        2 => 64,
        _ => BATCH_COMMANDS,
    }
}

/// The next batch off the front, in order.
fn take(waiting: &mut VecDeque<Proposal>) -> Vec<Proposal> {
    let mut bytes = 0;
    let fits = |p: &&Proposal| {
        let first = bytes == 0;
        bytes += p.command.len().max(1);
        first || bytes <= BATCH_BYTES
    };
    let count = waiting.iter().take(BATCH_COMMANDS).take_while(fits).count();
    waiting.drain(..count).collect()
}

/// Lets the tasks that are ready run first, as long as they bring more: whoever was answered
/// together asks again together.
async fn gather(queue: &mut mpsc::Receiver<Proposal>, waiting: &mut VecDeque<Proposal>) {
    while waiting.len() < BATCH_COMMANDS {
        tokio::task::yield_now().await;
        let before = waiting.len();
        while waiting.len() < BATCH_COMMANDS
            && let Ok(next) = queue.try_recv()
        {
            waiting.push_back(next);
        }
        if waiting.len() == before {
            return;
        }
    }
}

pub(super) async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Proposal>) {
    let mut waiting: VecDeque<Proposal> = VecDeque::new();
    let mut came = Vec::new();
    let mut under_way = JoinSet::new();
    let mut commands = 0;
    loop {
        // Large commands fill a batch with less than the least number.
        let full = |w: &VecDeque<Proposal>| w.iter().map(|p| p.command.len()).sum::<usize>() >= BATCH_BYTES;
        while !waiting.is_empty()
            && under_way.len() < BATCHES
            && (waiting.len() >= least_batch(under_way.len(), commands) || full(&waiting))
        {
            let (inner, batch) = (inner.clone(), take(&mut waiting));
            let count = batch.len();
            commands += count;
            under_way.spawn(async move {
                deliver(&inner, batch).await;
                count
            });
        }
        let room = (2 * BATCH_COMMANDS).saturating_sub(waiting.len());
        tokio::select! {
            count = queue.recv_many(&mut came, room), if room > 0 => {
                if count == 0 {
                    return;
                }
                waiting.extend(came.drain(..));
                gather(&mut queue, &mut waiting).await;
            }
            Some(done) = under_way.join_next() => {
                commands = if under_way.is_empty() { 0 } else { commands - done.unwrap_or(0) };
            }
        }
    }
}

async fn deliver(inner: &Inner, mut batch: Vec<Proposal>) {
    let started = Instant::now();
    let mut leadership = inner.leadership.clone();
    let mut reason = "no leader is known".to_string();
    loop {
        if let Some(silent) = inner.cut_off() {
            // Nothing has been sent, or nothing will come of it: another member may do better.
            reason = cut_off_text(inner.id, silent);
            let now = Instant::now();
            batch.iter_mut().for_each(|p| p.deadline = now);
        }
        batch = expire(inner, batch, started, &reason);
        let Some(deadline) = batch.iter().map(|p| p.deadline).max() else {
            return;
        };
        let now = leadership.borrow_and_update().clone();
        if now.leader_id.is_some() {
            let commands = batch.iter().map(|p| p.command.clone()).collect();
            let sent = tokio::select! {
                sent = send(inner, &now, commands) => sent,
                () = tokio::time::sleep_until(deadline) => Err(Status::unknown("no answer in time")),
                _ = reads::cut_off(inner) => Err(Status::unknown("the majority fell silent meanwhile")),
                () = superseded(&mut leadership, &now) => Err(Status::unknown("leadership moved meanwhile")),
            };
            match sent {
                Ok(written) => {
                    let local = now.leader_id == Some(inner.id);
                    (batch, reason) = settle(inner, batch, written, (local, deadline), reason).await;
                }
                Err(status) if wire::is_not_leader(&status) => reason = status.message().to_string(),
                Err(status) => (batch, reason) = doubt(batch, status.message()),
            }
            if batch.is_empty() {
                return;
            }
        }
        if inner.stopped.is_cancelled() {
            for proposal in batch {
                proposal.answer(Err(ProposeError::Stopped(reason.clone())));
            }
            return;
        }
        // Whatever comes first: news about the leader, or another try.
        let _ = tokio::time::timeout(PAUSE, leadership.changed()).await;
    }
}

/// Ends when somebody else leads, or in another term, than `then`.
async fn superseded(leadership: &mut tokio::sync::watch::Receiver<Leadership>, then: &Leadership) {
    let moved = |l: &Leadership| l.term > then.term && l.leader_id.is_some();
    if leadership.wait_for(moved).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn send(inner: &Inner, leadership: &Leadership, commands: Vec<Bytes>) -> Result<Written, Status> {
    if leadership.leader_id == Some(inner.id) {
        return inner.write_as_leader(commands).await;
    }
    let Some(address) = &leadership.leader_peer_address else {
        return Err(wire::not_leader("the leader's address is not known here"));
    };
    let channel = inner.peers.channel(address, Purpose::Leader)?;
    let mut client = LeaderClient::new(channel)
        .max_decoding_message_size(wire::MAX_MESSAGE)
        .max_encoding_message_size(wire::MAX_MESSAGE);
    let reply = client.propose(ProposeRequest { commands }).await?.into_inner();
    let answers = reply.outcomes.iter().map(|o| wire::decode(o)).collect::<Result<_, _>>()?;
    Ok(Written { answers, next_index: reply.log_index })
}

/// Answers what has an outcome, once it is applied here; keeps what may be tried again.
async fn settle(
    inner: &Inner,
    batch: Vec<Proposal>,
    written: Written,
    (local, deadline): (bool, Instant),
    mut reason: String,
) -> (Vec<Proposal>, String) {
    let mut unread = None;
    if !local && written.next_index > 0 {
        // The caller shall read its own write on this member.
        unread = inner.wait_applied(written.next_index, deadline).await.err();
    }
    let mut again = Vec::new();
    for (mut proposal, answer) in batch.into_iter().zip(written.answers) {
        match answer {
            Ok(outcome) => proposal.answer(match &unread {
                None => Ok(outcome),
                Some(why) => {
                    Err(ProposeError::Unknown { reason: format!("it was answered, but cannot be read here: {why}") })
                }
            }),
            Err(Unanswered::NotTaken(why)) => {
                reason = why;
                again.push(proposal);
            }
            Err(Unanswered::Unknown(why)) if proposal.repeatable => {
                reason = why;
                proposal.unknown = true;
                again.push(proposal);
            }
            Err(Unanswered::Unknown(reason)) => proposal.answer(Err(ProposeError::Unknown { reason })),
        }
    }
    (again, reason)
}

/// Nobody knows whether the batch was taken: keeps what may be repeated all the same.
fn doubt(batch: Vec<Proposal>, why: &str) -> (Vec<Proposal>, String) {
    let mut again = Vec::new();
    for mut proposal in batch {
        if proposal.repeatable {
            proposal.unknown = true;
            again.push(proposal);
        } else {
            proposal.answer(Err(ProposeError::Unknown { reason: why.to_string() }));
        }
    }
    (again, why.to_string())
}

fn expire(inner: &Inner, batch: Vec<Proposal>, started: Instant, reason: &str) -> Vec<Proposal> {
    let now = Instant::now();
    let (late, live): (Vec<_>, Vec<_>) = batch.into_iter().partition(|p| p.deadline <= now);
    for proposal in late {
        let error = if proposal.unknown {
            ProposeError::Unknown { reason: reason.to_string() }
        } else {
            ProposeError::Unavailable {
                waited_millis: started.elapsed().as_millis() as u64,
                reason: reason.to_string(),
                leader_api_address: inner.leader_hint(),
            }
        };
        proposal.answer(Err(error));
    }
    live
}
