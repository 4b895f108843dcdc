//! From planned writes to one fenced transaction: admission, encoding, proposal.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use trellis_model::Object;

use super::object::{MetaEdit, ObjKey, Write};
use crate::api::ops::admit::has_finalizers;
use crate::api::ops::delete::names_freed;
use crate::api::ops::encode::{decode, key_of};
use crate::api::ops::{Admission, ApiError, Backend, Change};
use crate::store::{Command, LimitExceeded, Op, OpError, Outcome, SysWhen, When};

/// What became of a transaction.
#[derive(Debug)]
pub enum Written {
    /// Applied; nothing in it is newer than this revision.
    Done(u64),
    /// A precondition of this write (index into the transaction) did not hold: plan again.
    Conflict(usize, OpError),
    /// This leader's term is over.
    Fenced,
    /// Not now, or never; the text says why, naming the object.
    Failed(WriteError),
}

/// Why a transaction was not applied.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object was refused by admission: planning the same again is useless.
    #[error("{key} is refused: {source}")]
    Refused {
        /// The object.
        key: ObjKey,
        /// Why.
        source: ApiError,
    },
    /// The proposal did not come through.
    #[error("transaction of {writes} writes ({first}, …) was not committed: {source}")]
    NotCommitted {
        /// How many writes.
        writes: usize,
        /// The first object.
        first: ObjKey,
        /// Why.
        source: ApiError,
    },
    /// It is more than the store takes at a time.
    #[error("transaction of {writes} writes ({first}, …) is too large: {limit}")]
    TooLarge {
        /// How many writes.
        writes: usize,
        /// The first object.
        first: ObjKey,
        /// Which limit.
        limit: LimitExceeded,
    },
    /// The state machine refused it whole.
    #[error("transaction of {writes} writes ({first}, …) was refused: {why}")]
    RefusedWhole {
        /// How many writes.
        writes: usize,
        /// The first object.
        first: ObjKey,
        /// Why.
        why: String,
    },
}

/// Commits transactions of the controllers.
pub trait ClusterWriter: Send + Sync + 'static {
    /// All of `writes` or nothing, fenced by `term`.
    fn commit(&self, writes: Vec<Write>, term: u64) -> BoxFuture<'_, Written>;
}

/// The real one: admits as the API does, and proposes.
#[derive(Clone)]
pub struct AdmittedWriter {
    backend: Arc<dyn Backend>,
    admission: Admission,
}

impl std::fmt::Debug for AdmittedWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmittedWriter").finish_non_exhaustive()
    }
}

impl AdmittedWriter {
    /// A writer that proposes to `backend`.
    pub fn new(backend: Arc<dyn Backend>, admission: Admission) -> Self {
        Self { backend, admission }
    }

    /// The operation that does it; `None`: it was planned from a version that is no more.
    fn prepare(&self, write: &Write, now: Timestamp) -> Result<Option<Op>, ApiError> {
        match write {
            Write::Create(object) => {
                let p = self.admission.prepare_create(object.clone(), now)?;
                Ok(Some(Op::Put { key: p.key, when: When::Absent, object: p.stored }))
            }
            Write::Record(object) => self.record(object, now),
            Write::Update { object, revision } => self.change(&write.key(), *revision, |_| Ok(object.clone())),
            Write::EditMeta { key, revision, edit } => self.change(key, *revision, |old| Ok(edited(old, edit))),
            Write::Terminate { key, revision } => self.terminate(key, *revision, now),
            Write::Delete { key, uid, revision } => {
                let when = match (uid.as_str(), revision) {
                    ("", None) => When::Always,
                    ("", Some(r)) => When::Revision(*r),
                    (u, None) => When::Uid(u.to_owned()),
                    (u, Some(r)) => When::RevisionAndUid(*r, u.to_owned()),
                };
                Ok(Some(Op::Delete { key: store_key(key), when }))
            }
            Write::Check { key, revision } => {
                Ok(Some(Op::Check { key: store_key(key), when: When::Revision(*revision) }))
            }
            // Not an object's: `raised` makes it, behind all others.
            Write::Raise { .. } => Ok(None),
        }
    }

    fn record(&self, object: &Object, now: Timestamp) -> Result<Option<Op>, ApiError> {
        let key = store_key(&ObjKey::of(object.kind(), object.meta()));
        if let Some(old) = self.backend.store().get(&key) {
            let old = decode(&old, self.admission.sealer())?;
            if let Change::Put(p) = self.admission.prepare_trusted_update(&old, object.clone())? {
                return Ok(Some(Op::Put { key, when: When::Always, object: p.stored }));
            }
        }
        let p = self.admission.prepare_create(object.clone(), now)?;
        Ok(Some(Op::Put { key: p.key, when: When::Always, object: p.stored }))
    }

    fn change(
        &self,
        key: &ObjKey,
        revision: u64,
        new: impl FnOnce(&Object) -> Result<Object, ApiError>,
    ) -> Result<Option<Op>, ApiError> {
        let when = When::Revision(revision);
        let Some(old) = self.old(key, revision)? else { return Ok(None) };
        let key = store_key(key);
        Ok(match self.admission.prepare_trusted_update(&old, new(&old)?)? {
            Change::Put(p) => Some(Op::Put { key, when, object: p.stored }),
            Change::Remove => Some(Op::Delete { key, when }),
            Change::None => Some(Op::Check { key, when }),
        })
    }

    fn terminate(&self, key: &ObjKey, revision: u64, now: Timestamp) -> Result<Option<Op>, ApiError> {
        let Some(old) = self.old(key, revision)? else { return Ok(None) };
        let (key, when) = (store_key(key), When::Revision(revision));
        if !has_finalizers(&old) {
            return Ok(Some(Op::Delete { key, when }));
        }
        let p = self.admission.prepare_termination(&old, now, 0)?;
        Ok(Some(Op::Put { key, when, object: p.stored }))
    }

    /// The version that a write was planned from; `None`: there is another one now.
    fn old(&self, key: &ObjKey, revision: u64) -> Result<Option<Object>, ApiError> {
        match self.backend.store().get(&store_key(key)) {
            Some(v) if v.revision == revision => decode(&v, self.admission.sealer()).map(Some),
            _ => Ok(None),
        }
    }

    /// The counter's next value, on condition that nobody else raised it; `None`: it is high enough.
    fn raised(&self, write: &Write) -> Option<Op> {
        let Write::Raise { counter, above, to, .. } = write else { return None };
        let found = self.backend.store().sys_get(counter);
        let value = found.as_ref().map_or(0, |v| count_of(&v.value));
        let when = found.map_or(SysWhen::Absent, |v| SysWhen::Revision(v.revision));
        let put = || Op::SysPut { key: (*counter).to_owned(), when, value: to.to_string().into() };
        (value <= *above).then(put)
    }

    async fn run(&self, writes: Vec<Write>, term: u64) -> Written {
        let now = Timestamp::now();
        let (raises, writes): (Vec<_>, Vec<_>) = writes.into_iter().partition(|w| matches!(w, Write::Raise { .. }));
        let Some(first) = writes.first().map(Write::key) else { return Written::Done(0) };
        let count = writes.len();
        let mut ops = Vec::with_capacity(count);
        for (i, write) in writes.iter().enumerate() {
            match self.prepare(write, now) {
                Ok(Some(op)) => ops.push(op),
                Ok(None) => return Written::Conflict(i, OpError::RevisionMismatch),
                Err(source) => return Written::Failed(WriteError::Refused { key: write.key(), source }),
            }
        }
        let freed = names_freed(self.backend.store(), &ops);
        ops.extend(freed);
        ops.extend(raises.iter().filter_map(|w| self.raised(w)));
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        match self.backend.propose(Command::new(millis, ops).fenced(term)).await {
            // What was freed or counted beside the objects has revisions of its own.
            Ok(Outcome::Done { revisions, .. }) => Written::Done(revisions.into_iter().take(count).max().unwrap_or(0)),
            Ok(Outcome::Failed { op, why, .. }) => Written::Conflict(op.min(count - 1), why),
            Ok(Outcome::FencedOut { .. }) => Written::Fenced,
            Ok(Outcome::TooLarge(limit)) | Err(ApiError::TooLarge(limit)) => {
                Written::Failed(WriteError::TooLarge { writes: count, first, limit })
            }
            Ok(Outcome::Refused(why)) => Written::Failed(WriteError::RefusedWhole { writes: count, first, why }),
            Err(source) => Written::Failed(WriteError::NotCommitted { writes: count, first, source }),
        }
    }
}

impl ClusterWriter for AdmittedWriter {
    fn commit(&self, writes: Vec<Write>, term: u64) -> BoxFuture<'_, Written> {
        Box::pin(self.run(writes, term))
    }
}

/// A counter of the system keyspace.
pub fn count_of(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn store_key(key: &ObjKey) -> crate::store::Key {
    key_of(key.kind, &key.namespace, &key.name)
}

fn edited(old: &Object, edit: &MetaEdit) -> Object {
    let mut new = old.clone();
    let meta = new.meta_mut();
    if let Some(owners) = &mut meta.owner_references {
        owners.retain(|o| !edit.drop_owners.contains(&o.uid));
    }
    meta.owner_references = meta.owner_references.take().filter(|o| !o.is_empty());
    if let (Some(list), Some(gone)) = (&mut meta.finalizers, &edit.drop_finalizer) {
        list.retain(|f| f != gone);
    }
    meta.finalizers = meta.finalizers.take().filter(|f| !f.is_empty());
    new
}
