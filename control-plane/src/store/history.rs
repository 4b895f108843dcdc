//! The bounded history of changes: watches are cursors in it, and lists of an older revision
//! undo it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{Key, Versioned};

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The change's revision: the new version's, or the deletion's own.
    pub revision: u64,
    /// Revision of the last change of the same transaction.
    pub txn_end: u64,
    /// The version before; `None`: created.
    pub old: Option<Arc<Versioned>>,
    /// The version after; `None`: deleted.
    pub new: Option<Arc<Versioned>>,
}

impl Event {
    /// The newest version there is: for a deletion the last one before it.
    pub fn latest(&self) -> Option<&Arc<Versioned>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Which object changed.
    pub fn key(&self) -> Option<&Key> {
        self.latest().map(|v| &v.key)
    }

    fn weight(&self) -> usize {
        // The event's own slot. The new version is counted where it lives: in the state, or
        // as the old version of a later event.
        const SLOT: usize = 48;
        SLOT + self.old.as_ref().map_or(0, |v| v.weight())
    }
}

/// How much history a member keeps. Memory only: no outcome depends on it.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Most events.
    pub events: usize,
    /// Most bytes that only the history keeps alive.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    /// 50,000 events: ten seconds of the fastest churn aimed at (5,000 objects a second); and
    /// 24 MiB, so that it fits a control plane of 50 MB.
    fn default() -> Self {
        Self { events: 50_000, bytes: 24 * 1024 * 1024 }
    }
}

#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    limits: HistoryLimits,
    /// Everything after this revision is here.
    floor: u64,
    /// Per kind, the newest revision that is no longer here: a watch of a quiet kind stays
    /// valid however much other kinds churn.
    dropped: BTreeMap<String, u64>,
}

impl History {
    pub(super) fn new(limits: HistoryLimits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits, floor: 0, dropped: BTreeMap::new() }
    }

    /// Restores what [`History::parts`] gave.
    pub(super) fn restore(limits: HistoryLimits, floor: u64, dropped: BTreeMap<String, u64>) -> Self {
        Self { floor, dropped, ..Self::new(limits) }
    }

    pub(super) fn limits(&self) -> HistoryLimits {
        self.limits
    }

    pub(super) fn parts(&self) -> (&VecDeque<Event>, u64, &BTreeMap<String, u64>) {
        (&self.events, self.floor, &self.dropped)
    }

    pub(super) fn push(&mut self, event: Event) {
        self.bytes += event.weight();
        self.events.push_back(event);
    }

    /// Drops what exceeds the limits, whole transactions only.
    pub(super) fn trim(&mut self) {
        while self.events.len() > self.limits.events || self.bytes > self.limits.bytes {
            let Some(end) = self.events.front().map(|e| e.txn_end) else {
                return;
            };
            while self.events.front().is_some_and(|e| e.txn_end == end) {
                self.drop_first();
            }
        }
    }

    fn drop_first(&mut self) {
        let Some(event) = self.events.pop_front() else {
            return;
        };
        self.bytes -= event.weight();
        self.floor = event.revision;
        if let Some(key) = event.key() {
            if let Some(last) = self.dropped.get_mut(&key.kind) {
                *last = event.revision;
            } else {
                self.dropped.insert(key.kind.clone(), event.revision);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest revision from which everything (of all kinds) can still be told.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// The same for some kinds only (empty: all).
    pub(super) fn floor_of(&self, kinds: &[String]) -> u64 {
        if kinds.is_empty() {
            return self.floor;
        }
        kinds.iter().filter_map(|k| self.dropped.get(k).copied()).max().unwrap_or(0)
    }

    /// Events after `revision`, oldest first.
    pub(super) fn after(&self, revision: u64) -> impl DoubleEndedIterator<Item = &Event> {
        let start = self.events.partition_point(|e| e.revision <= revision);
        self.events.range(start..)
    }
}
