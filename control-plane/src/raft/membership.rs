//! Membership changes, run on the leader, one at a time: a new member first learns, and votes
//! only when it has caught up; nobody is removed whom the cluster needs to go on writing.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, LogIdOptionExt, ServerState};
use tokio::time::Instant;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use trellis_proto::patience::stretched;

use super::config::TypeConfig;
use super::consensus::Inner;
use super::types::{LeaderError, Member, MemberError};

/// A member that lags less than this many entries votes without holding up commits.
const CAUGHT_UP: u64 = 256;
/// A voter not heard of for this long counts as absent: several heartbeats and a keepalive.
const SILENT: Duration = Duration::from_millis(1_500);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a handover may take: two elections.
const HANDOVER: Duration = Duration::from_secs(3);
/// How long one change waits for another: most take milliseconds, and whoever waits longer for a
/// member that does not catch up is better told so.
pub(super) const WAIT_FOR_OTHERS: Duration = Duration::from_secs(5);

/// Most voters: five survive two failures; more only make each write slower.
pub(crate) const MAX_VOTERS: usize = 5;

type WriteError = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

fn map(error: WriteError) -> MemberError {
    match error {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => match e {
            ChangeMembershipError::InProgress(e) => MemberError::Busy(e.to_string()),
            other => MemberError::Busy(other.to_string()),
        },
        RaftError::APIError(other) => lost(other),
        RaftError::Fatal(e) => LeaderError::Stopped(e.to_string()).into(),
    }
}

fn lost(why: impl std::fmt::Display) -> MemberError {
    MemberError::Leader(LeaderError::Unavailable {
        waited_millis: 0,
        reason: why.to_string(),
        leader_api_address: None,
    })
}

fn known(inner: &Inner) -> Vec<Member> {
    let metrics = inner.raft.metrics().borrow_watched().clone();
    metrics.membership_config.nodes().map(|(_, n)| n.clone()).collect()
}

fn voters(inner: &Inner) -> BTreeSet<u64> {
    inner.raft.metrics().borrow_watched().membership_config.voter_ids().collect()
}

fn unknown(inner: &Inner, id: u64) -> MemberError {
    let members: Vec<String> = known(inner).iter().map(ToString::to_string).collect();
    MemberError::Unknown { id, members: members.join(", ") }
}

/// Waits until no other change is under way.
async fn turn(inner: &Inner) -> Result<tokio::sync::MutexGuard<'_, ()>, MemberError> {
    let turn = tokio::time::timeout(WAIT_FOR_OTHERS, inner.changing.lock()).await;
    turn.map_err(|_| MemberError::Busy(format!("it has not ended within {WAIT_FOR_OTHERS:?}")))
}

pub(super) async fn add(inner: &Inner, member: Member) -> Result<(), MemberError> {
    let _one_at_a_time = turn(inner).await?;
    let members = known(inner);
    let same = |o: &Member| o.id == member.id && o.peer_address == member.peer_address && o.name == member.name;
    let clash =
        |o: &&Member| !same(o) && (o.id == member.id || o.peer_address == member.peer_address || o.name == member.name);
    if let Some(other) = members.iter().find(clash) {
        return Err(MemberError::Clash { member: member.to_string(), other: other.to_string() });
    }
    let voting = voters(inner);
    if voting.contains(&member.id) {
        return Ok(());
    }
    let id = member.id;
    if voting.len() >= MAX_VOTERS {
        return Err(MemberError::TooMany { id, voters: voting.len(), limit: MAX_VOTERS });
    }
    let peer_address = member.peer_address.clone();
    if !members.iter().any(|o| o.id == id) {
        inner.raft.add_learner(id, member, false).await.map_err(map)?;
    }
    wait_caught_up(inner, id, &peer_address).await?;
    let promote = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
    inner.raft.change_membership(promote, false).await.map_err(map)?;
    tracing::info!(member = id, "a member joined and votes");
    Ok(())
}

async fn wait_caught_up(inner: &Inner, id: u64, peer_address: &str) -> Result<(), MemberError> {
    let started = Instant::now();
    let limit = inner.tuning.catch_up;
    loop {
        let (last, matched) = {
            let metrics = inner.raft.metrics().borrow_watched().clone();
            if metrics.state != ServerState::Leader {
                return Err(lost("leadership moved while the new member was catching up"));
            }
            let matched = metrics.replication.as_ref().and_then(|r| r.get(&id).cloned()).flatten();
            (metrics.last_log_index.map_or(0, |i| i + 1), matched.next_index())
        };
        if matched > 0 && matched + CAUGHT_UP >= last {
            return Ok(());
        }
        if started.elapsed() > limit {
            return Err(MemberError::NotCaughtUp {
                id,
                waited_millis: limit.as_millis() as u64,
                why: format!("it has {matched} of {last} log entries"),
                peer_address: peer_address.to_string(),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn remove(inner: &Inner, id: u64) -> Result<(), MemberError> {
    let _one_at_a_time = turn(inner).await?;
    if !known(inner).iter().any(|m| m.id == id) {
        return Err(unknown(inner, id));
    }
    let before = voters(inner);
    if !before.contains(&id) {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
        inner.raft.change_membership(change, false).await.map_err(map)?;
        return Ok(());
    }
    if before.len() == 1 {
        return Err(MemberError::LastVoter { id });
    }
    let remaining: Vec<u64> = before.iter().copied().filter(|v| *v != id).collect();
    let alive = remaining.iter().filter(|v| answers(inner, **v)).count();
    let needed = remaining.len() / 2 + 1;
    if alive < needed {
        return Err(MemberError::WouldLoseQuorum { id, voters: remaining.len(), alive, needed });
    }
    if id == inner.id {
        let to = remaining.iter().copied().find(|v| answers(inner, *v)).unwrap_or(remaining[0]);
        hand_over(inner, to).await?;
        return Err(lost("this member was the leader and has handed over to remove itself"));
    }
    let change = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
    inner.raft.change_membership(change, false).await.map_err(map)?;
    tracing::info!(member = id, "a member was removed");
    Ok(())
}

/// Whether the leader hears of a voter.
fn answers(inner: &Inner, id: u64) -> bool {
    if id == inner.id {
        return true;
    }
    let metrics = inner.raft.metrics().borrow_watched().clone();
    let heard = metrics.heartbeat.as_ref().and_then(|h| h.get(&id).cloned()).flatten();
    heard.is_some_and(|at| at.elapsed() < stretched(SILENT))
}

pub(super) async fn transfer(inner: &Inner, to: u64) -> Result<(), MemberError> {
    let _one_at_a_time = turn(inner).await?;
    if !known(inner).iter().any(|m| m.id == to) {
        return Err(unknown(inner, to));
    }
    if !voters(inner).contains(&to) {
        let why = "it is still a learner".to_string();
        return Err(MemberError::NotTransferred { to, why });
    }
    if to == inner.id {
        return Ok(());
    }
    if !answers(inner, to) {
        let why = "the leader does not hear from it".to_string();
        return Err(MemberError::NotTransferred { to, why });
    }
    hand_over(inner, to).await
}

async fn hand_over(inner: &Inner, to: u64) -> Result<(), MemberError> {
    let stopped = |e: openraft::error::Fatal<TypeConfig>| LeaderError::Stopped(e.to_string());
    inner.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
    let mut leadership = inner.leadership.clone();
    let led = leadership.wait_for(|l| l.leader_id == Some(to));
    match tokio::time::timeout(HANDOVER, led).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(LeaderError::Stopped("it is shutting down".into()).into()),
        Err(_) => {
            let why = format!("it did not take over within {HANDOVER:?}");
            Err(MemberError::NotTransferred { to, why })
        }
    }
}
