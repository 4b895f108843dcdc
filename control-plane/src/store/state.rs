//! The state machine: what a command does to the state. Pure and deterministic; everything
//! it looks at is in the command, the entry's term, or the state itself.
//!
//! ```text
//! command ─ limits? ─ fence? ─ remembered? ─ every condition ─ apply all ops ─ Done
//!              │         │          │              │
//!           TooLarge  FencedOut  Done(replayed)  Failed      (nothing is changed)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::history::{Event, History, HistoryLimits};
use super::index::Objects;
use super::requests::{Remembered, Requests};
use super::{Command, Current, Key, Op, OpError, Outcome, Stored, SysValue, SysWhen, Versioned, When};

/// The feature level of the first release.
pub const FIRST_FEATURE_LEVEL: u32 = 1;

/// Everything that is replicated.
#[derive(Debug)]
pub struct State {
    pub(super) revision: u64,
    pub(super) sys_revision: u64,
    /// Newest time in any command so far; it never goes back.
    pub(super) logged_millis: u64,
    pub(super) feature_level: u32,
    pub(super) objects: Objects,
    pub(super) history: History,
    pub(super) requests: Requests,
    pub(super) system: BTreeMap<String, SysValue>,
}

type Refusal = (usize, OpError, Option<Current>);

impl State {
    /// The empty state.
    pub fn new(limits: HistoryLimits) -> Self {
        Self {
            revision: 0,
            sys_revision: 0,
            logged_millis: 0,
            feature_level: FIRST_FEATURE_LEVEL,
            objects: Objects::default(),
            history: History::new(limits),
            requests: Requests::default(),
            system: BTreeMap::new(),
        }
    }

    /// Applies one command that lies in an entry of `term`.
    pub fn apply(&mut self, term: u64, command: &Command) -> Outcome {
        self.logged_millis = self.logged_millis.max(command.now_millis);
        self.requests.forget(self.logged_millis);
        if let Err(limit) = command.check_limits() {
            return Outcome::TooLarge(limit);
        }
        let request = command.request_id.as_deref().map(Requests::key);
        if let Some(revisions) = request.and_then(|key| self.requests.get(key)) {
            return Outcome::Done { revisions: revisions.to_vec(), replayed: true };
        }
        if command.fence_term.is_some_and(|fence| fence != term) {
            return Outcome::FencedOut { term };
        }
        if let Err((op, why, current)) = self.check(&command.ops) {
            return Outcome::Failed { op, why, current };
        }
        let revisions = self.perform(&command.ops);
        if let Some(key) = request {
            self.requests.remember(Remembered {
                key,
                at_millis: self.logged_millis,
                revisions: revisions.as_slice().into(),
            });
            self.requests.forget(self.logged_millis);
        }
        Outcome::Done { revisions, replayed: false }
    }

    fn check(&self, ops: &[Op]) -> Result<(), Refusal> {
        let mut named = BTreeSet::new();
        let mut sys_named = BTreeSet::new();
        for (i, op) in ops.iter().enumerate() {
            let fresh = match op {
                Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => named.insert(key),
                Op::SysPut { key, .. } | Op::SysDelete { key, .. } => sys_named.insert(key),
                Op::SetFeatureLevel(_) => true,
            };
            if !fresh {
                return Err((i, OpError::Duplicate, None));
            }
            let verdict = match op {
                Op::Put { key, when, .. } | Op::Check { key, when } => holds(self.objects.get(key), when),
                Op::Delete { key, when } => match self.objects.get(key) {
                    None => Err(OpError::NotFound),
                    found => holds(found, when),
                },
                Op::SysPut { key, when, .. } => sys_holds(self.system.get(key), *when),
                Op::SysDelete { key, when } => match self.system.get(key) {
                    None => Err(OpError::NotFound),
                    found => sys_holds(found, *when),
                },
                Op::SetFeatureLevel(level) if *level < self.feature_level => Err(OpError::FeatureLevelLowered),
                Op::SetFeatureLevel(_) => Ok(()),
            };
            verdict.map_err(|why| (i, why, self.current(op)))?;
        }
        Ok(())
    }

    fn current(&self, op: &Op) -> Option<Current> {
        match op {
            Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => {
                self.objects.get(key).map(|v| Current { revision: v.revision, uid: v.object.index.uid.clone() })
            }
            Op::SysPut { key, .. } | Op::SysDelete { key, .. } => {
                self.system.get(key).map(|v| Current { revision: v.revision, uid: String::new() })
            }
            Op::SetFeatureLevel(_) => None,
        }
    }

    fn perform(&mut self, ops: &[Op]) -> Vec<u64> {
        let mut events = Vec::new();
        let revisions = ops
            .iter()
            .map(|op| match op {
                Op::Put { key, object, .. } => self.put(key, object, &mut events),
                Op::Delete { key, .. } => self.delete(key, &mut events),
                Op::Check { key, .. } => self.objects.get(key).map_or(0, |v| v.revision),
                Op::SysPut { key, value, .. } => self.sys_put(key, value),
                Op::SysDelete { key, .. } => {
                    self.system.remove(key);
                    self.sys_revision += 1;
                    self.sys_revision
                }
                Op::SetFeatureLevel(level) => {
                    self.feature_level = *level;
                    u64::from(*level)
                }
            })
            .collect();
        for mut event in events {
            event.txn_end = self.revision;
            self.history.push(event);
        }
        self.history.trim();
        revisions
    }

    fn put(&mut self, key: &Key, object: &Stored, events: &mut Vec<Event>) -> u64 {
        let mut create_revision = self.revision + 1;
        if let Some(present) = self.objects.get(key) {
            if present.object == *object {
                return present.revision;
            }
            // Deleted and made anew in between two looks is told by the uid.
            create_revision = present.create_revision;
        }
        self.revision += 1;
        let new =
            Arc::new(Versioned { key: key.clone(), revision: self.revision, create_revision, object: object.clone() });
        let old = self.objects.put(new.clone());
        events.push(Event { revision: self.revision, txn_end: 0, old, new: Some(new) });
        self.revision
    }

    fn delete(&mut self, key: &Key, events: &mut Vec<Event>) -> u64 {
        self.revision += 1;
        let old = self.objects.remove(key);
        events.push(Event { revision: self.revision, txn_end: 0, old, new: None });
        self.revision
    }

    fn sys_put(&mut self, key: &str, value: &Bytes) -> u64 {
        self.sys_revision += 1;
        let entry = SysValue { value: value.clone(), revision: self.sys_revision };
        self.system.insert(key.to_string(), entry);
        self.sys_revision
    }

    /// The present revision: always the end of a transaction.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The feature level agreed on.
    pub fn feature_level(&self) -> u32 {
        self.feature_level
    }

    /// Newest time of any command, Unix milliseconds.
    pub fn logged_millis(&self) -> u64 {
        self.logged_millis
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }
}

fn holds(found: Option<&Arc<Versioned>>, when: &When) -> Result<(), OpError> {
    let existing = |check: &dyn Fn(&Versioned) -> Result<(), OpError>| match found {
        None => Err(OpError::NotFound),
        Some(object) => check(object),
    };
    let uid_is = |object: &Versioned, uid: &str| match object.object.index.uid == uid {
        true => Ok(()),
        false => Err(OpError::UidMismatch),
    };
    let revision_is = |object: &Versioned, revision: u64| match object.revision == revision {
        true => Ok(()),
        false => Err(OpError::RevisionMismatch),
    };
    match when {
        When::Always => Ok(()),
        When::Absent if found.is_none() => Ok(()),
        When::Absent => Err(OpError::AlreadyExists),
        When::Exists => existing(&|_| Ok(())),
        When::Revision(revision) => existing(&|o| revision_is(o, *revision)),
        When::Uid(uid) => existing(&|o| uid_is(o, uid)),
        // The uid first: another object of the name is the more telling answer.
        When::RevisionAndUid(revision, uid) => existing(&|o| uid_is(o, uid).and_then(|()| revision_is(o, *revision))),
    }
}

fn sys_holds(found: Option<&SysValue>, when: SysWhen) -> Result<(), OpError> {
    match (when, found) {
        (SysWhen::Always, _) | (SysWhen::Absent, None) | (SysWhen::Exists, Some(_)) => Ok(()),
        (SysWhen::Absent, Some(_)) => Err(OpError::AlreadyExists),
        (SysWhen::Exists | SysWhen::Revision(_), None) => Err(OpError::NotFound),
        (SysWhen::Revision(r), Some(v)) if v.revision == r => Ok(()),
        (SysWhen::Revision(_), Some(_)) => Err(OpError::RevisionMismatch),
    }
}
