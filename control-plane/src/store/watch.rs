//! Watches: cursors in the shared history. Nothing is queued for a watcher; it is rung when
//! a kind it follows changed, and reads on from its cursor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use super::history::Event;
use super::state::State;
use super::{Store, Versioned};

/// Most events in one batch, except that a transaction is never cut in two.
const BATCH_EVENTS: usize = 512;

/// Which changes a watcher wants. An event counts when the old or the new version matches,
/// so that an object leaving the filter is noticed.
#[derive(Debug, Clone, Default)]
pub struct WatchFilter {
    /// Kinds; empty: all.
    pub kinds: Vec<String>,
    /// One namespace; `None`: all.
    pub namespace: Option<String>,
    /// One name; `None`: all.
    pub name: Option<String>,
    /// A field of [`Index::fields`](super::Index::fields) with its value.
    pub field: Option<(String, String)>,
}

impl WatchFilter {
    /// All objects of one kind.
    pub fn kind(kind: impl Into<String>) -> Self {
        Self { kinds: vec![kind.into()], ..Self::default() }
    }

    /// All objects of some kinds.
    pub fn kinds<K: Into<String>>(kinds: impl IntoIterator<Item = K>) -> Self {
        Self { kinds: kinds.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Whether one version matches.
    pub fn matches(&self, v: &Versioned) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&v.key.kind))
            && self.namespace.as_ref().is_none_or(|n| v.key.namespace == *n)
            && self.name.as_ref().is_none_or(|n| v.key.name == *n)
            && self.field.as_ref().is_none_or(|(f, value)| v.object.index.field(f).unwrap_or("") == value)
    }

    fn matches_event(&self, event: &Event) -> bool {
        [&event.old, &event.new].into_iter().flatten().any(|v| self.matches(v))
    }
}

/// The history no longer reaches back to where a watcher wants to go on: list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "changes after revision {requested} are compacted: the oldest kept are after {oldest}; list again and watch from there"
)]
pub struct Compacted {
    /// Where the watcher wanted to go on.
    pub requested: u64,
    /// The oldest revision that works.
    pub oldest: u64,
}

/// What happened since the batch before.
#[derive(Debug, Clone)]
pub struct WatchBatch {
    /// Matching events in order.
    pub events: Vec<Event>,
    /// Everything up to here has been delivered: the end of a transaction, fit for a bookmark.
    pub revision: u64,
}

/// One watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    store: Store,
    filter: WatchFilter,
    cursor: u64,
    bell: Arc<Notify>,
}

impl Watcher {
    pub(super) fn start(store: Store, filter: WatchFilter, from: u64) -> Result<Self, Compacted> {
        let bell = Arc::new(Notify::new());
        // Registered before the first look, so that no change falls in between.
        store.bells().add(&filter.kinds, &bell);
        let watcher = Self { store, filter, cursor: from, bell };
        watcher.store.read(|state| watcher.reachable(state))?;
        Ok(watcher)
    }

    /// Everything up to here has been delivered.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Waits for matching changes. Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Result<WatchBatch, Compacted> {
        loop {
            let batch = self.poll()?;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            self.bell.notified().await;
        }
    }

    /// What there is now, perhaps nothing; `revision` is then a bookmark.
    pub fn poll(&mut self) -> Result<WatchBatch, Compacted> {
        let store = self.store.clone();
        let batch = store.read(|state| self.collect(state))?;
        self.cursor = batch.revision;
        Ok(batch)
    }

    fn reachable(&self, state: &State) -> Result<(), Compacted> {
        let oldest = state.history().floor_of(&self.filter.kinds);
        if self.cursor < oldest {
            return Err(Compacted { requested: self.cursor, oldest });
        }
        Ok(())
    }

    fn collect(&self, state: &State) -> Result<WatchBatch, Compacted> {
        self.reachable(state)?;
        let mut events = Vec::new();
        let mut last_end = 0;
        for event in state.history().after(self.cursor) {
            if events.len() >= BATCH_EVENTS && event.txn_end != last_end {
                return Ok(WatchBatch { events, revision: last_end });
            }
            last_end = event.txn_end;
            if self.filter.matches_event(event) {
                events.push(event.clone());
            }
        }
        // A watcher that came from a member further on waits for this one to catch up.
        Ok(WatchBatch { events, revision: self.cursor.max(state.revision()) })
    }
}

/// Who is to be woken by which kind. Bounded by the number of watchers: bells of dropped ones
/// are swept whenever a list has doubled.
#[derive(Debug, Default)]
pub(super) struct Bells {
    by_kind: Mutex<BTreeMap<String, Ringers>>,
}

#[derive(Debug, Default)]
struct Ringers {
    bells: Vec<Weak<Notify>>,
    sweep_at: usize,
}

/// Stands for "any kind" among the kinds.
const ANY: &str = "";

impl Bells {
    fn add(&self, kinds: &[String], bell: &Arc<Notify>) {
        let mut map = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        let any = [ANY.to_string()];
        for kind in if kinds.is_empty() { &any } else { kinds } {
            let ringers = map.entry(kind.clone()).or_default();
            if ringers.bells.len() >= ringers.sweep_at {
                ringers.bells.retain(|b| b.strong_count() > 0);
                ringers.sweep_at = (ringers.bells.len() * 2).max(64);
            }
            ringers.bells.push(Arc::downgrade(bell));
        }
    }

    /// Rings for these kinds; `None`: everybody, the whole state was replaced.
    pub(super) fn ring<'a>(&self, kinds: Option<impl Iterator<Item = &'a str>>) {
        let map = self.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = |ringers: &Ringers| {
            for bell in ringers.bells.iter().filter_map(Weak::upgrade) {
                bell.notify_one();
            }
        };
        match kinds {
            None => map.values().for_each(ring),
            Some(kinds) => {
                let mut any = false;
                for kind in kinds {
                    any = true;
                    if let Some(ringers) = map.get(kind) {
                        ring(ringers);
                    }
                }
                if any && let Some(ringers) = map.get(ANY) {
                    ring(ringers);
                }
            }
        }
    }
}
