//! The state machine as openraft drives it: the [`Store`] in memory, snapshots on disk.
//!
//! After a start openraft installs the newest snapshot and applies the log from there up to
//! what was committed.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{oneshot, watch};

use super::config::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use super::snapshots::{SnapshotFile, Snapshots, read_state};
use crate::store::snapshot::Capture;
use crate::store::{Outcome, Store};

/// Entries applied under one lock: readers get in between.
const APPLY_BATCH: usize = 256;

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// How far this member has applied the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Index + 1 of the last applied entry; 0: none.
    pub next_index: u64,
    /// Its term.
    pub term: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    store: Store,
    snapshots: Arc<Snapshots>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    applied: watch::Sender<Applied>,
}

impl Machine {
    /// A state machine that has applied nothing.
    pub fn new(store: Store, snapshots: Arc<Snapshots>) -> Self {
        Self {
            store,
            snapshots,
            last_applied: None,
            membership: StoredMembership::default(),
            applied: watch::channel(Applied::default()).0,
        }
    }

    /// Follows how far it has applied.
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// A snapshot that lies in another folder is copied into this member's own first.
    async fn own(&self, mut snapshot: SnapshotFile) -> io::Result<SnapshotFile> {
        let snapshots = self.snapshots.clone();
        if snapshots.owns(&snapshot.path) {
            return Ok(snapshot);
        }
        let copy = move || {
            let mut draft = snapshots.draft()?;
            io::copy(&mut snapshot.reader, &mut draft)?;
            let own = snapshots.reopen(&draft)?;
            draft.hand_over();
            Ok(own)
        };
        tokio::task::spawn_blocking(copy).await.map_err(io::Error::other)?
    }

    fn tell_applied(&self) {
        let applied = self.last_applied.map_or_else(Applied::default, |id| Applied {
            next_index: id.index + 1,
            term: id.committed_leader_id().term,
        });
        self.applied.send_replace(applied);
    }

    fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) {
        let commands = batch.iter().filter_map(|(entry, _)| match &entry.payload {
            EntryPayload::Normal(p) => Some((entry.log_id.committed_leader_id().term, &p.0[..])),
            _ => None,
        });
        let mut outcomes = self.store.apply(commands).into_iter();
        let mut answers = Vec::with_capacity(batch.len());
        for (entry, responder) in batch {
            self.last_applied = Some(entry.log_id);
            let outcome = match entry.payload {
                EntryPayload::Normal(_) => outcomes.next(),
                EntryPayload::Blank => None,
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
            };
            if let Some(responder) = responder {
                let nothing = || Outcome::Done { revisions: Vec::new(), replayed: false };
                answers.push((responder, outcome.unwrap_or_else(nothing)));
            }
        }
        // Told first: who gets an answer finds its write applied.
        self.tell_applied();
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
    }
}

/// The state at one moment, to be written out while applying goes on.
#[derive(Debug)]
pub struct Builder {
    meta: SnapshotMeta,
    capture: Option<Capture>,
    snapshots: Arc<Snapshots>,
}

/// Writing a large state is a second of pure computing, which nobody waits for: it gets what the
/// calls under way leave over. Lowering a thread's own priority needs no privilege; where it is
/// refused all the same, the snapshot is written at the common one.
fn yield_to_calls() {
    /// As `nice -n 10`.
    const NICENESS: i32 = 10;
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "snapshots are written at the common priority");
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let capture = self.capture.take().ok_or_else(|| io::Error::other("this snapshot was built already"))?;
        let (snapshots, meta) = (self.snapshots.clone(), self.meta.clone());
        let write = move || {
            snapshots.write(&meta, &capture)?;
            snapshots.current()
        };
        let (tell, told) = oneshot::channel();
        std::thread::Builder::new().name("raft-snapshot".to_owned()).spawn(move || {
            yield_to_calls();
            // A member that stops meanwhile waits for no snapshot.
            drop(tell.send(write()));
        })?;
        let written = told.await.map_err(io::Error::other)??;
        let (meta, snapshot) = written.ok_or_else(|| io::Error::other("the snapshot written is gone"))?;
        Ok(Snapshot { meta, snapshot })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut pieces = entries.ready_chunks(APPLY_BATCH);
        while let Some(piece) = pieces.next().await {
            let mut batch = Vec::with_capacity(piece.len());
            let mut failed = None;
            for item in piece {
                match item {
                    Ok(entry) => batch.push(entry),
                    Err(e) => {
                        failed = Some(e);
                        break;
                    }
                }
            }
            self.apply_batch(batch);
            if let Some(e) = failed {
                return Err(e);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            meta: SnapshotMeta { last_log_id: self.last_applied, last_membership: self.membership.clone() },
            capture: Some(self.store.capture()),
            snapshots: self.snapshots.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let limits = self.store.history_limits();
        let snapshot = self.own(snapshot).await?;
        let path = snapshot.path.clone();
        let read = move || read_state(snapshot, limits);
        let (described, state) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        if described.last_log_id != meta.last_log_id {
            let text = format!("snapshot {} is of another moment than announced", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if path.extension().is_some_and(|e| e == "tmp") {
            let snapshots = self.snapshots.clone();
            let adopt = move || snapshots.adopt(&described, snapshots.draft_at(&path)?);
            tokio::task::spawn_blocking(adopt).await.map_err(io::Error::other)??;
        }
        self.store.replace(state);
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.tell_applied();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.snapshots.current()?;
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
