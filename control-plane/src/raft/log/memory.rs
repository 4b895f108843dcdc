//! What the log knows in memory: where each live entry lies, and the newest entries themselves.

use std::collections::VecDeque;

use crate::raft::config::{Entry, LogId, Payload, Vote};

/// Where an entry's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u64,
    pub offset: u64,
    pub length: u32,
}

#[derive(Debug)]
struct Slot {
    log_id: LogId,
    /// Which append it came with: an index can be appended anew after a truncation.
    append: u64,
    /// Kept until it is on disk, and as long as there is room.
    cached: Option<Box<Entry>>,
    place: Option<Place>,
}

/// An entry as it can be had now.
pub(super) enum Looked {
    Here(Entry),
    OnDisk(Place),
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    slots: VecDeque<Slot>,
    appends: u64,
    cached_bytes: usize,
    /// Slots before this position (from the front) hold no cached entry.
    cold: usize,
    disk_bytes: u64,
}

fn weight(entry: &Entry) -> usize {
    const OVERHEAD: usize = 96;
    let payload: Option<&Payload> = match &entry.payload {
        openraft::EntryPayload::Normal(p) => Some(p),
        // Memberships are rare and small.
        _ => None,
    };
    OVERHEAD + payload.map_or(0, |p| p.0.len())
}

impl Memory {
    pub(super) fn first_index(&self) -> u64 {
        let empty = self.purged.as_ref().map_or(0, |p| p.index + 1);
        self.slots.front().map_or(empty, |s| s.log_id.index)
    }

    pub(super) fn next_index(&self) -> u64 {
        self.first_index() + self.slots.len() as u64
    }

    pub(super) fn last_log_id(&self) -> Option<LogId> {
        self.slots.back().map(|s| s.log_id).or(self.purged)
    }

    /// Bytes of live entries' records on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Takes entries in and answers the append's number.
    pub(super) fn append(&mut self, entries: &[Entry]) -> u64 {
        self.appends += 1;
        for entry in entries {
            self.cached_bytes += weight(entry);
            self.slots.push_back(Slot {
                log_id: entry.log_id,
                append: self.appends,
                cached: Some(Box::new(entry.clone())),
                place: None,
            });
        }
        self.appends
    }

    /// Takes in an entry found on disk at start.
    pub(super) fn recovered(&mut self, log_id: LogId, place: Place) {
        self.disk_bytes += u64::from(place.length);
        self.slots.push_back(Slot { log_id, append: 0, cached: None, place: Some(place) });
        self.cold = self.slots.len();
    }

    /// An append is on disk: notes where, and makes room in the cache.
    pub(super) fn placed(&mut self, append: u64, places: &[(u64, Place)], cache_bytes: usize) {
        for (index, place) in places {
            let Some(at) = index.checked_sub(self.first_index()) else {
                continue;
            };
            if let Some(slot) = self.slots.get_mut(at as usize)
                && slot.append == append
            {
                slot.place = Some(*place);
                self.disk_bytes += u64::from(place.length);
            }
        }
        while self.cached_bytes > cache_bytes {
            let Some(slot) = self.slots.get_mut(self.cold) else {
                return;
            };
            if slot.place.is_none() {
                return;
            }
            if let Some(entry) = slot.cached.take() {
                self.cached_bytes -= weight(&entry);
            }
            self.cold += 1;
        }
    }

    fn dropped(&mut self, slot: Slot) {
        if let Some(entry) = &slot.cached {
            self.cached_bytes -= weight(entry);
        }
        self.disk_bytes -= slot.place.map_or(0, |p| u64::from(p.length));
    }

    /// Drops entries after `keep`; `None`: all.
    pub(super) fn truncate(&mut self, keep: Option<u64>) {
        let end = keep.map_or(0, |k| k + 1);
        while self.next_index() > end {
            let Some(slot) = self.slots.pop_back() else {
                break;
            };
            self.dropped(slot);
        }
        self.cold = self.cold.min(self.slots.len());
    }

    /// Drops entries up to `upto`, which may lie beyond the end (after a snapshot came).
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.purged.as_ref().is_some_and(|p| p.index >= upto.index) {
            return;
        }
        while self.slots.front().is_some_and(|s| s.log_id.index <= upto.index) {
            if let Some(slot) = self.slots.pop_front() {
                self.dropped(slot);
                self.cold = self.cold.saturating_sub(1);
            }
        }
        self.purged = Some(upto);
    }

    /// The segment of the oldest live entry; `None`: no live entry is on disk yet.
    pub(super) fn first_segment(&self) -> Option<u64> {
        self.slots.front().and_then(|s| s.place).map(|p| p.segment)
    }

    /// Entries of `start..end`, as far as there are any, up to `max_bytes` but at least one.
    pub(super) fn look(&self, start: u64, end: u64, max_bytes: usize) -> Vec<(LogId, Looked)> {
        let first = self.first_index();
        if start < first {
            // Purged: nothing, rather than what lies behind the gap.
            return Vec::new();
        }
        let from = (start - first) as usize;
        let until = (end.saturating_sub(first) as usize).min(self.slots.len());
        let mut bytes = 0;
        let mut found = Vec::new();
        for slot in self.slots.range(from.min(until)..until) {
            let looked = match (&slot.cached, slot.place) {
                (Some(entry), _) => {
                    bytes += weight(entry);
                    Looked::Here(Entry::clone(entry))
                }
                (None, Some(place)) => {
                    bytes += place.length as usize;
                    Looked::OnDisk(place)
                }
                (None, None) => break,
            };
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push((slot.log_id, looked));
        }
        found
    }
}
