#![allow(clippy::unwrap_used, missing_docs)]
use futures::channel::mpsc;
use futures::{FutureExt, SinkExt};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::*;
use crate::raft::config::{Entry, LogId, Payload, Vote};

/// Longer than any test: what waits, waits.
const LONG: Duration = Duration::from_secs(3600);

fn id(index: u64) -> LogId {
    LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(1), index)
}

/// Entries `prev + 1` to `last`, and how far all is committed.
fn request(prev: u64, last: u64, committed: u64) -> Append {
    let entry = |i| Entry::new(id(i), EntryPayload::Normal(Payload(bytes::Bytes::from_static(b"x"))));
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: Some(id(prev)),
        entries: (prev + 1..=last).map(entry).collect(),
        leader_commit: Some(id(committed)),
    }
}

struct Rig {
    input: mpsc::Sender<Append>,
    output: futures::stream::BoxStream<'static, Append>,
    wanted: Wanted,
}

fn rig(hold: Duration) -> Rig {
    let (input, requests) = mpsc::channel(8);
    let wanted = Wanted::default();
    let output = Box::pin(joined(requests, &wanted, hold));
    Rig { input, output, wanted }
}

impl Rig {
    async fn give(&mut self, request: Append) {
        self.input.send(request).await.unwrap();
    }

    /// What comes out without waiting: how many entries, and the commit.
    fn at_once(&mut self) -> Option<(usize, u64)> {
        self.output.next().now_or_never().flatten().map(told)
    }

    async fn next(&mut self) -> Option<(usize, u64)> {
        self.output.next().await.map(told)
    }

    /// Two requests with entries, close to each other.
    async fn busy(&mut self) {
        self.give(request(0, 1, 0)).await;
        assert_eq!(self.at_once(), Some((1, 0)));
        self.give(request(1, 2, 0)).await;
        assert_eq!(self.at_once(), Some((1, 0)));
    }
}

fn told(request: Append) -> (usize, u64) {
    (request.entries.len(), request.leader_commit.unwrap().index)
}

#[tokio::test]
async fn under_load_a_notice_goes_with_the_next_entries() {
    let mut rig = rig(LONG);
    rig.busy().await;
    rig.give(request(2, 2, 1)).await;
    assert_eq!(rig.at_once(), None, "it waits");
    rig.give(request(2, 2, 2)).await;
    rig.give(request(2, 5, 2)).await;
    assert_eq!(rig.at_once(), Some((3, 2)), "both notices are in it");
    assert_eq!(rig.at_once(), None);
}

#[tokio::test]
async fn a_notice_that_nobody_joins_goes_when_its_time_is_up() {
    const HOLD: Duration = Duration::from_millis(200);
    let mut rig = rig(HOLD);
    // Beside other work two requests may come to lie further apart than that.
    loop {
        let begun = Instant::now();
        rig.busy().await;
        rig.give(request(2, 2, 2)).await;
        let out = rig.at_once();
        if begun.elapsed() < HOLD {
            assert_eq!(out, None, "it waits");
            break;
        }
    }
    assert_eq!(rig.next().await, Some((0, 2)));
}

#[tokio::test]
async fn a_notice_that_a_followers_caller_waits_for_goes_at_once() {
    let mut rig = rig(LONG);
    rig.busy().await;
    let call = rig.wanted.call();
    rig.give(request(2, 2, 1)).await;
    assert_eq!(rig.at_once(), Some((0, 1)), "a call is under way");
    call.done(3);
    rig.give(request(2, 2, 2)).await;
    assert_eq!(rig.at_once(), Some((0, 2)), "wanted before it was there");
    rig.give(request(2, 3, 2)).await;
    assert_eq!(rig.at_once(), Some((1, 2)));
    rig.give(request(3, 3, 3)).await;
    assert_eq!(rig.at_once(), None, "nobody waits for this one yet");
    rig.wanted.call().done(4);
    assert_eq!(rig.at_once(), Some((0, 3)));
    // What was wanted is told: the next waits again.
    rig.give(request(3, 4, 3)).await;
    assert_eq!(rig.at_once(), Some((1, 3)));
    rig.give(request(4, 4, 4)).await;
    assert_eq!(rig.at_once(), None);
    let call = rig.wanted.call();
    assert_eq!(rig.at_once(), Some((0, 4)), "a call begins meanwhile");
    // One that is given up leaves nothing behind.
    drop(call);
    rig.give(request(4, 5, 4)).await;
    rig.give(request(5, 5, 5)).await;
    assert_eq!(rig.at_once(), Some((1, 4)));
    assert_eq!(rig.at_once(), None);
}

#[tokio::test]
async fn a_notice_is_not_lost_when_the_requests_end() {
    let mut rig = rig(LONG);
    rig.busy().await;
    rig.give(request(2, 2, 2)).await;
    assert_eq!(rig.at_once(), None);
    rig.input.close_channel();
    assert_eq!(rig.at_once(), Some((0, 2)));
    assert_eq!(rig.next().await, None);
}

#[test]
fn a_notice_waits_only_where_entries_follow_each_other_closely() {
    const HOLD: Duration = Duration::from_millis(2);
    let begin = Instant::now();
    let at = |micros| begin + Duration::from_micros(micros);
    let (notice, nobody) = (request(2, 2, 2), Waiting::default());
    let mut pace = Pace::new(HOLD);
    assert_eq!(pace.wait(&notice, nobody, at(0)), None, "nothing was sent yet");
    pace.sent(&request(0, 1, 0), at(0));
    assert_eq!(pace.wait(&notice, nobody, at(1)), None, "one request is no load");
    pace.sent(&request(1, 2, 0), at(2_000));
    assert_eq!(pace.wait(&notice, nobody, at(2_001)), None, "nor are two that are far from each other");
    pace.sent(&request(2, 3, 0), at(3_999));
    assert_eq!(pace.wait(&notice, nobody, at(5_000)), Some(at(7_000)));
    assert_eq!(pace.wait(&request(3, 4, 2), nobody, at(5_000)), None, "entries never wait");
    assert_eq!(pace.wait(&notice, nobody, at(5_999)), None, "the load is over");
    pace.sent(&notice, at(5_999));
    assert_eq!(pace.told, 3);
    pace.sent(&request(3, 4, 1), at(5_999));
    assert_eq!(pace.told, 3, "it never goes back");
}
