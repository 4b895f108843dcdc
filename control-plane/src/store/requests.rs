//! The memory of applied request ids: a retried command is answered, not applied again.
//!
//! Bounded by count and by logged time, both constants: forgetting decides outcomes, so every
//! member must forget at the same entry.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Most remembered requests: thirteen seconds of 20,000 writes a second, for a client repeats a write for
/// ten; about 100 bytes each.
pub const MAX_REMEMBERED_REQUESTS: usize = 262_144;
/// How long one is remembered, in logged time: longer than any client's deadline.
pub const REQUEST_MEMORY_MILLIS: u64 = 120_000;

/// 128 bits of SHA-256: ids are the client's to choose, so the map must not grow with them.
pub(super) type RequestKey = u128;

/// What a request was answered with, one revision an operation. Nearly all have one, which needs no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revisions {
    /// Of one operation.
    One(u64),
    /// Of any other number.
    Many(Arc<[u64]>),
}

impl From<&[u64]> for Revisions {
    fn from(revisions: &[u64]) -> Self {
        match revisions {
            [one] => Self::One(*one),
            many => Self::Many(many.into()),
        }
    }
}

impl Deref for Revisions {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) key: RequestKey,
    pub(super) at_millis: u64,
    pub(super) revisions: Revisions,
}

/// Applied requests, oldest first.
#[derive(Debug, Default)]
pub(super) struct Requests {
    order: VecDeque<Remembered>,
    /// Looked up only, never walked: its order decides nothing.
    by_key: HashMap<RequestKey, Revisions>,
}

impl Requests {
    pub(super) fn key(id: &str) -> RequestKey {
        let digest = Sha256::digest(id.as_bytes());
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        u128::from_be_bytes(first)
    }

    pub(super) fn get(&self, key: RequestKey) -> Option<&Revisions> {
        self.by_key.get(&key)
    }

    pub(super) fn remember(&mut self, entry: Remembered) {
        self.by_key.insert(entry.key, entry.revisions.clone());
        self.order.push_back(entry);
    }

    /// Forgets what is too old at `now_millis` or too much.
    pub(super) fn forget(&mut self, now_millis: u64) {
        let oldest = now_millis.saturating_sub(REQUEST_MEMORY_MILLIS);
        while self.order.len() > MAX_REMEMBERED_REQUESTS || self.order.front().is_some_and(|r| r.at_millis < oldest) {
            if let Some(gone) = self.order.pop_front() {
                self.by_key.remove(&gone.key);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Remembered> {
        self.order.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
