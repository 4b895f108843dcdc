//! Linearizable reads: concurrent barriers share one read-index round with the leader.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;
use trellis_proto::peer::ReadIndexRequest;
use trellis_proto::peer::leader_client::LeaderClient;

use super::consensus::Inner;
use super::leader::cut_off_text;
use super::network::Purpose;
use super::proposer::PAUSE;
use super::types::{LeaderError, Leadership};
use super::wire;

/// Barriers waiting for a round; more wait in their callers.
pub(super) const QUEUE: usize = 4096;

/// How often a call under way looks whether there is a quorum still.
const LOOK: Duration = Duration::from_millis(200);

/// Whom to tell that the barrier is passed.
pub(super) type Waiter = oneshot::Sender<Result<(), LeaderError>>;

pub(super) async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiter>) {
    let mut waiters = Vec::new();
    while let Some(first) = queue.recv().await {
        waiters.push(first);
        // All that came before the round starts may share it; later ones need the next.
        while waiters.len() < QUEUE
            && let Ok(next) = queue.try_recv()
        {
            waiters.push(next);
        }
        let result = round(&inner).await;
        for waiter in waiters.drain(..) {
            // A caller that gave up needs no answer.
            drop(waiter.send(result.clone()));
        }
    }
}

async fn round(inner: &Inner) -> Result<(), LeaderError> {
    let started = Instant::now();
    let next_index = at_leader(inner, |leadership| async move {
        if leadership.leader_id == Some(inner.id) {
            return inner.read_index_as_leader().await;
        }
        let mut client = LeaderClient::new(leader_channel(inner, &leadership)?);
        Ok(client.read_index(ReadIndexRequest {}).await?.into_inner().log_index)
    })
    .await?;
    let applied = inner.wait_applied(next_index, started + inner.tuning.deadline).await;
    applied.map_err(|reason| LeaderError::Unavailable {
        waited_millis: started.elapsed().as_millis() as u64,
        reason,
        leader_api_address: inner.leader_hint(),
    })
}

/// The channel to the present leader.
pub(super) fn leader_channel(inner: &Inner, leadership: &Leadership) -> Result<tonic::transport::Channel, Status> {
    match &leadership.leader_peer_address {
        Some(address) => inner.peers.channel(address, Purpose::Leader),
        None => Err(wire::not_leader("the leader's address is not known here")),
    }
}

/// Ends when this member has been without a quorum for too long, and says for how long.
pub(super) async fn cut_off(inner: &Inner) -> Duration {
    loop {
        if let Some(silent) = inner.cut_off() {
            return silent;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Repeats a call that may be repeated, to whoever leads, until the deadline.
pub(super) async fn at_leader<T, F, Fut>(inner: &Inner, call: F) -> Result<T, LeaderError>
where
    F: Fn(Leadership) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    at_leader_within(inner, inner.tuning.deadline, call).await
}

/// The same with a deadline of its own, for what takes longer than a write.
pub(super) async fn at_leader_within<T, F, Fut>(inner: &Inner, limit: Duration, call: F) -> Result<T, LeaderError>
where
    F: Fn(Leadership) -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let started = Instant::now();
    let deadline = started + limit;
    let mut leadership = inner.leadership.clone();
    let mut reason = "no leader is known".to_string();
    while Instant::now() < deadline {
        if inner.stopped.is_cancelled() {
            return Err(LeaderError::Stopped(reason));
        }
        if let Some(silent) = inner.cut_off() {
            reason = cut_off_text(inner.id, silent);
            break;
        }
        let now = leadership.borrow_and_update().clone();
        if now.leader_id.is_some() {
            let moved = |l: &Leadership| l.term > now.term && l.leader_id.is_some();
            let result = tokio::select! {
                result = call(now.clone()) => result,
                () = tokio::time::sleep_until(deadline) => Err(Status::unavailable("no answer in time")),
                _ = cut_off(inner) => Err(Status::unavailable("the majority fell silent meanwhile")),
                Ok(_) = leadership.wait_for(moved) => Err(Status::unavailable("leadership moved meanwhile")),
            };
            match result {
                Ok(value) => return Ok(value),
                Err(status) => reason = status.message().to_string(),
            }
        }
        let _ = tokio::time::timeout(PAUSE, leadership.changed()).await;
    }
    Err(LeaderError::Unavailable {
        waited_millis: started.elapsed().as_millis() as u64,
        reason,
        leader_api_address: inner.leader_hint(),
    })
}
