//! The work queue: keys, never events.
//!
//! ```text
//!            add                    pop                 done(Ok, revision)
//!  (absent) -----> waiting/due ----------> in flight -----------------------> settling
//!                     ^                      |  add: marked dirty                |
//!                     |   done(Err): back-off|                                   | cache reached
//!                     +----------------------+<------- dirty, or asked again ----+ the revision
//! ```
//!
//! - A key is in the queue once, however often it is added; it is never worked on twice at a
//!   time, and an add while it is in flight is remembered, never dropped.
//! - After a write the key *settles* until the cache has seen the write's revision: the next
//!   plan is never made from a state that lacks what the last one did.
//! - Bounded by the number of objects, since each key names one. Everything costs O(log keys).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// First pause after a failure: a conflict is gone as soon as the watch brings the newer version.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// Longest pause; Kubernetes' controllers wait up to 1000 s, far too long for a cluster that
/// promises seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Keys order by class first: a lower class is worked on before all higher ones.
pub trait Class {
    /// 0 is the most urgent.
    fn class(&self) -> u8;
}

#[derive(Debug, Clone, Default)]
struct Slot {
    /// Sequence number while it is in `due`.
    due: Option<u64>,
    timer: Option<Instant>,
    in_flight: bool,
    settle_at: Option<u64>,
    dirty: bool,
    failures: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Queue<K> {
    slots: HashMap<K, Slot>,
    due: BTreeSet<(u8, u64, K)>,
    timers: BTreeSet<(Instant, K)>,
    settling: BTreeMap<u64, Vec<K>>,
    sequence: u64,
}

impl<K: Class + Clone + Ord + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self {
            slots: HashMap::new(),
            due: BTreeSet::new(),
            timers: BTreeSet::new(),
            settling: BTreeMap::new(),
            sequence: 0,
        }
    }
}

impl<K: Class + Clone + Ord + Hash> Queue<K> {
    /// Something about `key` changed.
    pub fn add(&mut self, key: K) {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.in_flight || slot.settle_at.is_some() {
            slot.dirty = true;
        } else if slot.due.is_none() {
            // During a back-off a change waits for it too: else a hot object would defeat it.
            if slot.failures > 0 && slot.timer.is_some() {
                return;
            }
            self.sequence += 1;
            slot.due = Some(self.sequence);
            self.due.insert((key.class(), self.sequence, key));
        }
    }

    /// Looks at `key` at `at`, unless an earlier time is set.
    pub fn add_at(&mut self, key: K, at: Instant) {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.timer.is_some_and(|t| t <= at) {
            return;
        }
        if let Some(t) = slot.timer.replace(at) {
            self.timers.remove(&(t, key.clone()));
        }
        self.timers.insert((at, key));
    }

    /// The next key to work on; it is then in flight until [`Queue::done`] or
    /// [`Queue::failed`].
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        self.fire(now);
        let (_, _, key) = self.due.pop_first()?;
        let slot = self.slots.get_mut(&key)?;
        slot.due = None;
        slot.in_flight = true;
        Some(key)
    }

    /// Work on `key` succeeded. `wrote`: the revision of its last write, which the cache must
    /// reach before the key is worked on again.
    pub fn done(&mut self, key: &K, wrote: Option<u64>, cache_revision: u64) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.in_flight = false;
        slot.failures = 0;
        match wrote {
            Some(revision) if revision > cache_revision => {
                slot.settle_at = Some(revision);
                self.settling.entry(revision).or_default().push(key.clone());
            }
            _ => self.release(key),
        }
    }

    /// Work on `key` failed: it is due again after a back-off.
    pub fn failed(&mut self, key: &K, now: Instant) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.in_flight = false;
        slot.dirty = false;
        let pause = BACKOFF_FIRST.saturating_mul(1 << slot.failures.min(16)).min(BACKOFF_MAX);
        slot.failures += 1;
        self.add_at(key.clone(), now + pause);
    }

    /// The cache has reached `revision`.
    pub fn reached(&mut self, revision: u64) {
        while let Some(entry) = self.settling.first_entry()
            && *entry.key() <= revision
        {
            for key in entry.remove() {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.settle_at = None;
                }
                self.release(&key);
            }
        }
    }

    /// When the next timer fires; now, if something is due.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        if self.due.is_empty() { self.timers.first().map(|(t, _)| *t) } else { Some(now) }
    }

    /// Keys that wait to be worked on now.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// Whether nothing is due now.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    fn release(&mut self, key: &K) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if std::mem::take(&mut slot.dirty) {
            self.add(key.clone());
        } else if slot.timer.is_none() && slot.due.is_none() {
            self.slots.remove(key);
        }
    }

    fn fire(&mut self, now: Instant) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            let Some((_, key)) = self.timers.pop_first() else { return };
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.timer = None;
            }
            self.add(key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use proptest::prelude::*;

    impl Class for u8 {
        fn class(&self) -> u8 {
            *self / 100
        }
    }

    #[test]
    fn a_key_is_queued_once_and_an_add_in_flight_is_not_lost() {
        let now = Instant::now();
        let mut q: Queue<u8> = Queue::default();
        q.add(1);
        q.add(1);
        assert_eq!(q.pop(now), Some(1));
        assert_eq!(q.pop(now), None);
        q.add(1);
        assert_eq!(q.pop(now), None, "in flight");
        q.done(&1, None, 0);
        assert_eq!(q.pop(now), Some(1));
    }

    #[test]
    fn a_key_waits_until_the_cache_has_seen_its_write() {
        let now = Instant::now();
        let mut q: Queue<u8> = Queue::default();
        q.add(1);
        q.pop(now);
        q.done(&1, Some(7), 5);
        q.add(1);
        q.reached(6);
        assert_eq!(q.pop(now), None);
        q.reached(7);
        assert_eq!(q.pop(now), Some(1));
    }

    #[test]
    fn urgent_classes_come_first_and_failures_back_off() {
        let now = Instant::now();
        let mut q: Queue<u8> = Queue::default();
        q.add(150);
        q.add(20);
        assert_eq!(q.pop(now), Some(20));
        q.failed(&20, now);
        q.add(20);
        assert_eq!(q.pop(now), Some(150));
        assert_eq!(q.pop(now), None);
        assert_eq!(q.next_deadline(now), Some(now + BACKOFF_FIRST));
        assert_eq!(q.pop(now + BACKOFF_FIRST), Some(20));
        q.failed(&20, now);
        assert_eq!(q.next_deadline(now), Some(now + BACKOFF_FIRST * 2));
    }

    proptest! {
        /// Whatever is added is popped after its last add; never twice at a time.
        #[test]
        fn nothing_is_dropped(ops in proptest::collection::vec((0u8..5, 0u8..4), 1..200)) {
            let mut now = Instant::now();
            let mut q: Queue<u8> = Queue::default();
            let mut flying: Vec<u8> = Vec::new();
            let mut wanted: BTreeSet<u8> = BTreeSet::new();
            let mut revision = 0;
            for (op, k) in ops {
                match op {
                    0 => { q.add(k); wanted.insert(k); }
                    1 => if let Some(k) = q.pop(now) {
                        prop_assert!(!flying.contains(&k));
                        flying.push(k);
                        wanted.remove(&k);
                    },
                    2 => if let Some(k) = flying.pop() { revision += 2; q.done(&k, Some(revision), revision - 2); },
                    3 => if let Some(k) = flying.pop() { q.failed(&k, now); wanted.insert(k); },
                    _ => { q.reached(revision); now += Duration::from_millis(1); }
                }
            }
            for k in flying { q.done(&k, None, revision); }
            q.reached(revision);
            now += Duration::from_secs(100);
            while let Some(k) = q.pop(now) { wanted.remove(&k); q.done(&k, None, revision); }
            prop_assert!(wanted.is_empty());
            prop_assert!(q.slots.is_empty());
        }
    }
}
