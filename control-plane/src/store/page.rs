//! Lists in pages, all pages of one revision: later changes are undone from the history.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::state::State;
use super::{Key, Versioned};

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// In key order.
    pub items: Vec<Arc<Versioned>>,
    /// The revision that all pages are of: the end of a transaction.
    pub revision: u64,
    /// There is more: continue after the last item's key, at `revision`.
    pub more: bool,
}

/// A revision that cannot be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// The history no longer reaches back to it.
    #[error("revision {requested} is compacted: the oldest one kept is {oldest}; list again")]
    Compacted {
        /// The revision asked for.
        requested: u64,
        /// The oldest one that works.
        oldest: u64,
    },
    /// This member has not applied it yet.
    #[error("revision {requested} is not applied here yet: this member is at {current}")]
    NotYet {
        /// The revision asked for.
        requested: u64,
        /// The present one.
        current: u64,
    },
}

/// What to list.
pub(super) struct ListQuery<'a> {
    pub kind: &'a str,
    /// `None`: all namespaces.
    pub namespace: Option<&'a str>,
    pub after: Option<&'a Key>,
    /// 0: no limit.
    pub limit: usize,
    pub at_revision: Option<u64>,
}

impl ListQuery<'_> {
    fn contains(&self, key: &Key) -> bool {
        key.kind == self.kind && self.namespace.is_none_or(|ns| key.namespace == ns)
    }
}

pub(super) fn list(state: &State, query: &ListQuery<'_>) -> Result<Page, RevisionError> {
    let current = state.revision();
    let revision = query.at_revision.unwrap_or(current);
    if revision > current {
        return Err(RevisionError::NotYet { requested: revision, current });
    }
    let oldest = state.history().floor();
    if revision < current && revision < oldest {
        return Err(RevisionError::Compacted { requested: revision, oldest });
    }
    let first = Key::new("", query.kind, query.namespace.unwrap_or(""), "");
    let from = match query.after {
        Some(after) if *after >= first => Bound::Excluded(after),
        _ => Bound::Included(&first),
    };
    let wanted = if query.limit == 0 { usize::MAX } else { query.limit };
    let undone = undo(state, query, revision);
    let mut undone = undone.range::<Key, _>((from, Bound::Unbounded)).peekable();
    let mut live = state.objects().after(from).take_while(|o| query.contains(&o.key)).peekable();
    let mut items: Vec<Arc<Versioned>> = Vec::new();
    // Both sides are in key order; where both name a key, the older revision's word counts.
    let more = loop {
        let next = match (live.peek(), undone.peek()) {
            (None, None) => break false,
            (Some(now), Some((key, _))) if now.key < ***key => live.next().cloned(),
            (Some(now), Some((key, _))) => {
                if now.key == ***key {
                    live.next();
                }
                undone.next().and_then(|(_, then)| then.clone())
            }
            (Some(_), None) => live.next().cloned(),
            (None, Some(_)) => undone.next().and_then(|(_, then)| then.clone()),
        };
        if let Some(object) = next {
            if items.len() == wanted {
                break true;
            }
            items.push(object);
        }
    };
    Ok(Page { items, revision, more })
}

/// For each object of the query changed after `revision`, what it was then.
fn undo<'a>(state: &'a State, query: &ListQuery<'_>, revision: u64) -> BTreeMap<&'a Key, Option<Arc<Versioned>>> {
    let mut then = BTreeMap::new();
    for event in state.history().after(revision) {
        if let Some(key) = event.key()
            && query.contains(key)
        {
            // The first change after the revision tells what was there before it.
            then.entry(key).or_insert_with(|| event.old.clone());
        }
    }
    then
}
