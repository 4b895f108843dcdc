//! Keeps the log short: snapshots by entries and by bytes, purging behind them.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio_util::sync::CancellationToken;

use super::config::Tuning;
use super::consensus::RaftHandle;
use super::log::LogStore;
use crate::store::Store;

/// How often it is looked: the log grows by some 10 MB in between at most.
const PERIOD: Duration = Duration::from_millis(500);

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Snapshot,
    /// The log is too large although a snapshot covers it: keep nothing behind it.
    Purge(u64),
}

struct Sizes {
    applied: u64,
    snapshot: u64,
    purged: u64,
    log_bytes: u64,
    state_bytes: u64,
    /// Objects, events and remembered requests: what a snapshot writes one by one.
    state_records: u64,
}

/// A snapshot may write this many records for each entry since the one before: as much work again
/// as applying them was, about.
const RECORDS_AN_ENTRY: u64 = 2;

fn plan(tuning: &Tuning, now: &Sizes) -> Step {
    // Writing a state of 1 GB after every 32 MB of log would write far more than the log.
    let limit = tuning.snapshot_bytes.max(now.state_bytes);
    let since = now.applied.saturating_sub(now.snapshot);
    if now.log_bytes >= limit && now.snapshot > now.purged {
        Step::Purge(now.snapshot)
    } else if since >= tuning.snapshot_entries.max(now.state_records / RECORDS_AN_ENTRY)
        || (now.log_bytes >= limit && since > 0)
    {
        Step::Snapshot
    } else {
        Step::Nothing
    }
}

pub(super) async fn run(raft: RaftHandle, log: LogStore, store: Store, tuning: Tuning, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let sizes = {
            let metrics = raft.data_metrics();
            let metrics = metrics.borrow_watched();
            let index = |id: &Option<super::config::LogId>| id.as_ref().map_or(0, |id| id.index + 1);
            let state = store.stats();
            Sizes {
                applied: index(&metrics.last_applied),
                snapshot: index(&metrics.snapshot),
                purged: index(&metrics.purged),
                log_bytes: log.bytes(),
                state_bytes: (state.object_bytes + state.history_bytes) as u64,
                state_records: (state.objects + state.events + state.requests) as u64,
            }
        };
        let done = match plan(&tuning, &sizes) {
            Step::Nothing => Ok(()),
            Step::Snapshot => raft.trigger().snapshot().await,
            Step::Purge(next) => raft.trigger().purge_log(next - 1).await,
        };
        if done.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(applied: u64, snapshot: u64, purged: u64, log_bytes: u64) -> Sizes {
        Sizes { applied, snapshot, purged, log_bytes, state_bytes: 1_000, state_records: 100 }
    }

    #[test]
    fn snapshots_by_entries_and_bytes_and_purges_what_they_cover() {
        let tuning = Tuning { snapshot_entries: 100, snapshot_bytes: 500, ..Tuning::default() };
        assert_eq!(plan(&tuning, &sizes(99, 0, 0, 999)), Step::Nothing);
        assert_eq!(plan(&tuning, &sizes(100, 0, 0, 10)), Step::Snapshot);
        // The state is larger than the byte limit: it rules.
        assert_eq!(plan(&tuning, &sizes(50, 40, 0, 1_000)), Step::Purge(40));
        assert_eq!(plan(&tuning, &sizes(50, 40, 40, 1_000)), Step::Snapshot);
        assert_eq!(plan(&tuning, &sizes(40, 40, 40, 1_000)), Step::Nothing);
    }
}
