//! Commit notices that wait for company.
//!
//! What a majority has, the leader tells its followers in the next request that carries entries, or, when
//! there is none, in one of its own. Under load there nearly always is one, a moment later: without
//! waiting for it, a third of all messages between members would be notices.
//!
//! ```text
//! entries 1..9 ── (committed: 9) ── entries 10..20, committed 9        busy: one message
//! entries 1..9 ── committed 9                                          quiet, or a follower waits for 9: at once
//! ```
//! A notice waits only while requests with entries follow each other closely, no longer than
//! [`HOLD`] and a timer's millisecond, and not at all when a follower has a caller who waits for what it says: one whose
//! write or read goes through that follower.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::TypeConfig;

/// Longest that a notice waits; and how close to each other requests with entries must be for one to wait at all.
pub(super) const HOLD: Duration = Duration::from_millis(2);

type Append = AppendEntriesRequest<TypeConfig>;

/// What followers' callers wait for. Shared by all links.
#[derive(Debug, Clone)]
pub(super) struct Wanted(Arc<watch::Sender<Waiting>>);

#[derive(Debug, Clone, Copy, Default)]
struct Waiting {
    /// Calls of followers under way: each will wait for what is committed next.
    calls: usize,
    /// What those before wait to see applied, as index + 1.
    next_index: u64,
}

impl Default for Wanted {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Waiting::default())))
    }
}

impl Wanted {
    /// A follower has called, and will wait for what the call does: until it is dropped no notice waits.
    pub(super) fn call(&self) -> Call {
        self.0.send_modify(|w| w.calls += 1);
        Call(self.clone())
    }
}

/// See [`Wanted::call`].
#[derive(Debug)]
pub(super) struct Call(Wanted);

impl Call {
    /// It is done: the follower waits until it has applied everything before `next_index`.
    pub(super) fn done(self, next_index: u64) {
        self.0.0.send_modify(|w| w.next_index = w.next_index.max(next_index));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.send_modify(|w| w.calls -= 1);
    }
}

impl Waiting {
    /// Somebody waits for more than a follower that was `told` so much knows.
    fn beyond(&self, told: u64) -> bool {
        self.calls > 0 || self.next_index > told
    }
}

/// What decides whether a notice may wait; knows no stream and no clock.
#[derive(Debug)]
struct Pace {
    hold: Duration,
    /// When entries were last sent, and whether closely after those before.
    last: Option<(Instant, bool)>,
    /// What the follower has been told to be committed, as index + 1.
    told: u64,
}

impl Pace {
    fn new(hold: Duration) -> Self {
        Self { hold, last: None, told: 0 }
    }

    /// `request` may wait until then; `None`: it goes now.
    fn wait(&self, request: &Append, waiting: Waiting, now: Instant) -> Option<Instant> {
        let busy = self.last.is_some_and(|(last, close)| close && now < last + self.hold);
        (request.entries.is_empty() && busy && !waiting.beyond(self.told)).then_some(now + self.hold)
    }

    /// `request` goes.
    fn sent(&mut self, request: &Append, now: Instant) {
        let committed = request.leader_commit.as_ref().map_or(0, |id| id.index + 1);
        self.told = self.told.max(committed);
        if !request.entries.is_empty() {
            let close = self.last.is_some_and(|(last, _)| now < last + self.hold);
            self.last = Some((now, close));
        }
    }
}

struct Held {
    request: Append,
    until: Instant,
}

enum Next {
    Came(Option<Append>),
    Due,
}

struct Requests<S> {
    input: S,
    wanted: watch::Receiver<Waiting>,
    pace: Pace,
    ended: bool,
}

impl<S: Stream<Item = Append> + Unpin> Requests<S> {
    async fn next(&mut self) -> Option<Append> {
        let mut held: Option<Held> = None;
        loop {
            let next = if self.ended { Next::Came(None) } else { self.wait(held.as_ref()).await };
            let now = Instant::now();
            let request = match (next, held.take()) {
                (Next::Due, None) => continue,
                (Next::Due, Some(held)) => held.request,
                (Next::Came(None), held) => {
                    self.ended = true;
                    held?.request
                }
                // Whatever came last says how far it is committed by now: what waited is told with it.
                (Next::Came(Some(request)), before) => match self.pace.wait(&request, *self.wanted.borrow(), now) {
                    Some(until) => {
                        held = Some(Held { request, until: before.map_or(until, |b| b.until) });
                        continue;
                    }
                    None => request,
                },
            };
            self.pace.sent(&request, now);
            return Some(request);
        }
    }

    /// The next request, or that the one held must go.
    async fn wait(&mut self, held: Option<&Held>) -> Next {
        let Some(held) = held else {
            return Next::Came(self.input.next().await);
        };
        let told = self.pace.told;
        tokio::select! {
            biased;
            came = self.input.next() => Next::Came(came),
            // The sender lives as long as any link.
            _ = self.wanted.wait_for(|waiting| waiting.beyond(told)) => Next::Due,
            () = tokio::time::sleep_until(held.until) => Next::Due,
        }
    }
}

/// The same requests without the notices that a later one makes needless. A request that is left out was
/// never sent: nobody may wait for its answer. `hold`: as [`HOLD`].
pub(super) fn joined<S>(input: S, wanted: &Wanted, hold: Duration) -> impl Stream<Item = Append> + Send + use<S>
where
    S: Stream<Item = Append> + Unpin + Send,
{
    let wanted = wanted.0.subscribe();
    let requests = Requests { input, wanted, pace: Pace::new(hold), ended: false };
    futures::stream::unfold(requests, |mut requests| async move { requests.next().await.map(|r| (r, requests)) })
}

#[cfg(test)]
#[path = "notices_tests.rs"]
mod tests;
