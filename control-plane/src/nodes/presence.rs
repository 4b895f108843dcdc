//! Which members have a gossip view: each writes it into the system keyspace when it changes
//! (and stays changed for a second), so that a blind leader knows whom to hand over to.
//!
//! Keys: `gossip-view/<member id>` = `1` or `0`; `gossip-handover` = the last handover's time,
//! Unix milliseconds as text.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::gossip::SharedGossip;
use super::handover::{self, Situation};
use crate::raft::Consensus;
use crate::store::{Command, Op, Store, SysWhen};

const VIEW_PREFIX: &str = "gossip-view/";
const HANDOVER_KEY: &str = "gossip-handover";
/// A netd restart shall not be written about.
const STEADY: Duration = Duration::from_secs(1);
/// How often a blind leader thinks again, and an unwritten change is tried again.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// A voter that the leader has not heard from for so long is no candidate.
const ANSWERS_WITHIN_MILLIS: u64 = 1_000;

/// Runs on every member until `stop`: publishes whether it has a view, and, while it leads
/// blind, hands leadership over.
pub async fn run(consensus: Consensus, gossip: SharedGossip, stop: CancellationToken) {
    let mut steady: Option<(bool, Instant)> = None;
    let mut led_since: Option<Instant> = None;
    let leadership = consensus.leadership();
    let mut views = gossip.subscribe();
    loop {
        let now = Instant::now();
        let has_view = views.borrow_and_update().fresh();
        if steady.is_none_or(|(v, _)| v != has_view) {
            steady = Some((has_view, now));
        }
        if steady.is_some_and(|(_, since)| now.duration_since(since) >= STEADY) {
            publish(&consensus, has_view).await;
        }
        let leads = leadership.borrow().is_leader;
        led_since = if leads { led_since.or(Some(now)) } else { None };
        if let Some(since) = led_since
            && let Some(to) = handover::decide(&situation(&consensus, &gossip, since, now))
        {
            hand_over(&consensus, to).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = views.changed() => {}
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
}

fn view_key(id: u64) -> String {
    format!("{VIEW_PREFIX}{id}")
}

fn says_view(store: &Store, id: u64) -> Option<bool> {
    store.sys_get(&view_key(id)).map(|v| v.value.as_ref() == b"1")
}

async fn publish(consensus: &Consensus, has_view: bool) {
    let id = consensus.id();
    // A member that never had one says nothing: absent means no.
    if says_view(consensus.store(), id).unwrap_or(false) == has_view {
        return;
    }
    let value = Bytes::from_static(if has_view { b"1" } else { b"0" });
    let op = Op::SysPut { key: view_key(id), when: SysWhen::Always, value };
    if let Err(error) = consensus.propose(Command::new(unix_millis(), vec![op])).await {
        tracing::debug!(%error, "gossip view not published yet");
    }
}

fn situation(consensus: &Consensus, gossip: &SharedGossip, led_since: Instant, now: Instant) -> Situation {
    let subscription = gossip.current();
    let store = consensus.store();
    let last = store
        .sys_get(HANDOVER_KEY)
        .and_then(|v| std::str::from_utf8(&v.value).ok()?.parse::<u64>().ok())
        .map(|at| Duration::from_millis(store.logged_millis().max(unix_millis()).saturating_sub(at)));
    let me = consensus.id();
    let answers = |silent: Option<u64>| silent.is_some_and(|ms| ms <= ANSWERS_WITHIN_MILLIS);
    let others = consensus.members().into_iter().filter(|m| m.voter && m.member.id != me && answers(m.silent_millis));
    Situation {
        without_view: subscription.lost_at.map(|at| now.saturating_duration_since(at)),
        seen_netd: subscription.seen_netd,
        leading: now.saturating_duration_since(led_since),
        since_last: last,
        candidates: others.map(|m| m.member.id).filter(|id| says_view(store, *id) == Some(true)).collect(),
    }
}

async fn hand_over(consensus: &Consensus, to: u64) {
    let term = consensus.leadership().borrow().term;
    let value = Bytes::from(unix_millis().to_string());
    let op = Op::SysPut { key: HANDOVER_KEY.to_owned(), when: SysWhen::Always, value };
    // Recorded first: a handover that cannot be recorded could not be limited either.
    match consensus.propose(Command::new(unix_millis(), vec![op]).fenced(term)).await {
        Ok(outcome) if outcome.done().is_some() => {}
        Ok(_) | Err(_) => return,
    }
    tracing::warn!(to, "no gossip view for 3 s while member {to} has one: handing leadership over");
    if let Err(error) = consensus.transfer_leader(to).await {
        tracing::warn!(to, %error, "leadership was not handed over");
    }
}

fn unix_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
