//! The handle that readers and the applier share.
//!
//! One `RwLock` around the state: apply holds it for one batch of entries (microseconds an
//! entry), readers only to copy `Arc`s out. Nothing is cloned but pointers.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use super::history::HistoryLimits;
use super::page::{self, ListQuery, Page, RevisionError};
use super::requests::{Requests, Revisions};
use super::state::State;
use super::watch::Bells;
use super::{Command, Compacted, Key, Outcome, SysValue, Versioned, WatchFilter, Watcher};

/// The store of one member; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: RwLock<State>,
    bells: Bells,
}

/// Sizes, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// The present revision.
    pub revision: u64,
    /// Live objects.
    pub objects: usize,
    /// What they take, roughly.
    pub object_bytes: usize,
    /// Events in the history.
    pub events: usize,
    /// What only the history keeps alive, roughly.
    pub history_bytes: usize,
    /// Remembered request ids.
    pub requests: usize,
    /// Entries of the system keyspace.
    pub system: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(HistoryLimits::default())
    }
}

impl Store {
    /// An empty store.
    pub fn new(limits: HistoryLimits) -> Self {
        Self { inner: Arc::new(Inner { state: RwLock::new(State::new(limits)), bells: Bells::default() }) }
    }

    pub(super) fn bells(&self) -> &Bells {
        &self.inner.bells
    }

    /// Runs `f` on a consistent state. Keep it short: it holds up apply.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        // A panic inside apply would leave a half-applied state; the raft layer stops the
        // member on it, so readers need not.
        f(&self.inner.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies encoded commands in order, each with its entry's term. Only the raft layer
    /// (and tests) may call this.
    pub fn apply<'a>(&self, batch: impl IntoIterator<Item = (u64, &'a [u8])>) -> Vec<Outcome> {
        // Decoded before the lock is taken: readers wait for the changes only.
        let decode = |(term, bytes)| (term, Command::decode(bytes));
        let commands: Vec<_> = batch.into_iter().map(decode).collect();
        let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
        let before = state.revision();
        let outcomes = commands
            .into_iter()
            .map(|(term, command)| match command {
                Ok(command) => state.apply(term, &command),
                Err(e) => Outcome::Refused(e.to_string()),
            })
            .collect();
        let kinds: BTreeSet<String> =
            state.history().after(before).filter_map(|e| e.key()).map(|k| k.kind.clone()).collect();
        drop(state);
        self.inner.bells.ring(Some(kinds.iter().map(String::as_str)));
        outcomes
    }

    /// Replaces everything by a restored state. Watchers go on where they are, when the new
    /// history reaches back to there.
    pub fn replace(&self, state: State) {
        let old = {
            let mut guard = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *guard, state)
        };
        // Freed outside the lock: it may be hundreds of megabytes.
        drop(old);
        self.inner.bells.ring(None::<std::iter::Empty<&str>>);
    }

    /// How much history this store keeps.
    pub fn history_limits(&self) -> HistoryLimits {
        self.read(|s| s.history().limits())
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Versioned>> {
        self.read(|s| s.objects().get(key).cloned())
    }

    /// One object and the revision it was looked at.
    pub fn get_at(&self, key: &Key) -> (Option<Arc<Versioned>>, u64) {
        self.read(|s| (s.objects().get(key).cloned(), s.revision()))
    }

    /// A page of a kind's objects in key order. `limit` 0: all. Later pages: `after` the last
    /// key, `at_revision` the first page's.
    pub fn list(
        &self,
        kind: &str,
        namespace: Option<&str>,
        after: Option<&Key>,
        limit: usize,
        at_revision: Option<u64>,
    ) -> Result<Page, RevisionError> {
        let query = ListQuery { kind, namespace, after, limit, at_revision };
        self.read(|s| page::list(s, &query))
    }

    /// All of a kind's objects, present ones, whose field of
    /// [`INDEXED_FIELDS`](super::INDEXED_FIELDS) has a value other than "", in key order. Costs
    /// O(answers); `None`: not an indexed field.
    pub fn list_by_field(&self, kind: &str, namespace: Option<&str>, field: &str, value: &str) -> Option<Page> {
        let (mut items, revision) =
            self.read(|s| s.objects().by_field(kind, field, value).map(|found| (found, s.revision())))?;
        items.retain(|o| namespace.is_none_or(|ns| o.key.namespace == ns));
        Some(Page { items, revision, more: false })
    }

    /// All objects of several kinds at one revision, which is answered.
    pub fn list_kinds(&self, kinds: &[&str]) -> (Vec<Vec<Arc<Versioned>>>, u64) {
        self.read(|s| {
            let of = |kind: &&str| {
                let first = Key::new("", *kind, "", "");
                s.objects()
                    .after(std::ops::Bound::Included(&first))
                    .take_while(|o| o.key.kind == **kind)
                    .cloned()
                    .collect()
            };
            (kinds.iter().map(of).collect(), s.revision())
        })
    }

    /// Objects of a kind whose field has a value. Fields of [`INDEXED_FIELDS`](super::INDEXED_FIELDS)
    /// are looked up, others are searched for.
    pub fn by_field(&self, kind: &str, field: &str, value: &str) -> Vec<Arc<Versioned>> {
        if let Some(found) = self.read(|s| s.objects().by_field(kind, field, value)) {
            return found;
        }
        let (mut lists, _) = self.list_kinds(&[kind]);
        let mut all = lists.pop().unwrap_or_default();
        all.retain(|o| o.object.index.field(field).unwrap_or("") == value);
        all
    }

    /// Objects of any kind with this uid among their owners.
    pub fn by_owner(&self, uid: &str) -> Vec<Arc<Versioned>> {
        self.read(|s| s.objects().by_owner(uid))
    }

    /// The present revision: always the end of a transaction.
    pub fn revision(&self) -> u64 {
        self.read(State::revision)
    }

    /// The feature level agreed on.
    pub fn feature_level(&self) -> u32 {
        self.read(State::feature_level)
    }

    /// Newest time of any applied command, Unix milliseconds.
    pub fn logged_millis(&self) -> u64 {
        self.read(State::logged_millis)
    }

    /// Changes after `from_revision` that match the filter.
    pub fn watch(&self, filter: WatchFilter, from_revision: u64) -> Result<Watcher, Compacted> {
        Watcher::start(self.clone(), filter, from_revision)
    }

    /// The revisions that a request id was answered with, while it is remembered here.
    pub fn remembered(&self, request_id: &str) -> Option<Revisions> {
        let key = Requests::key(request_id);
        self.read(|s| s.requests.get(key).cloned())
    }

    /// An entry of the system keyspace.
    pub fn sys_get(&self, key: &str) -> Option<SysValue> {
        self.read(|s| s.system.get(key).cloned())
    }

    /// Entries of the system keyspace whose keys begin with `prefix`, in key order.
    pub fn sys_list(&self, prefix: &str) -> Vec<(String, SysValue)> {
        self.read(|s| {
            s.system
                .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
                .take_while(|(k, _)| k.starts_with(prefix))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        })
    }

    /// Sizes, for metrics.
    pub fn stats(&self) -> StoreStats {
        self.read(|s| StoreStats {
            revision: s.revision(),
            objects: s.objects().len(),
            object_bytes: s.objects().bytes(),
            events: s.history().len(),
            history_bytes: s.history().bytes(),
            requests: s.requests.len(),
            system: s.system.len(),
        })
    }
}
