//! What the API's operations do, apart from how they arrive: authorise → default → validate →
//! admit → store. Knows nothing of gRPC; the services in `api/` and the controllers use it alike.
//!
//! Each operation takes the caller, a [`Target`] and its own arguments, and answers JSON that is
//! ready to be sent. Writes are conditional on what was read, and tried again a bounded number
//! of times where the client asked for no revision of its own.

mod access;
pub mod admit;
mod apply;
pub mod backend;
mod continue_token;
mod create;
pub mod delete;
pub mod encode;
mod error;
mod modify;
mod projection;
mod read;
mod seal;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use trellis_model::Kind;
use trellis_model::k8s_openapi::jiff::Timestamp;

pub use admit::{Admission, Change, Part, Prepared};
pub use backend::{Backend, InMemory};
pub use error::ApiError;
pub use read::{ListArgs, Listed};
pub use seal::Sealer;
pub use watch::{WatchArgs, WatchItem, WatchKind, WatchStream};

use crate::auth::Caller;
use crate::store::{Command, Key, Op, OpError, Outcome, Store, Versioned};

/// Tries of a write that lost to another one: with eight, even twenty writers of one object
/// all come through.
pub(crate) const WRITE_ATTEMPTS: usize = 8;
/// Longest request id a client may choose; the caller's name is put before it.
const MAX_CLIENT_REQUEST_ID: usize = 128;

/// Which object, or which objects of a kind, an operation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// Empty: all namespaces, or the kind is cluster-scoped.
    pub namespace: String,
    /// Empty: all, or not known yet.
    pub name: String,
}

impl Target {
    /// Checks that the namespace fits the kind.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = if kind.namespaced() { namespace.into() } else { String::new() };
        Self { kind, namespace, name: name.into() }
    }

    /// The store's key.
    pub fn key(&self) -> Key {
        encode::key_of(self.kind, &self.namespace, &self.name)
    }

    /// It must name one object.
    fn one(&self) -> Result<(), ApiError> {
        let kind = self.kind;
        if self.name.is_empty() {
            return Err(ApiError::BadRequest(format!("the name of the {kind} is missing")));
        }
        if kind.namespaced() && self.namespace.is_empty() {
            let name = &self.name;
            let message = format!("the namespace of the {kind} {name:?} is missing");
            return Err(ApiError::BadRequest(message));
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        match (namespace.as_str(), name.as_str()) {
            (_, "") => write!(f, "the {kind}"),
            ("", name) => write!(f, "{kind} {name}"),
            (namespace, name) => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

/// How a write is to be done.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Made once per logical write and kept over retries; empty: none.
    pub request_id: String,
    /// Do everything but store.
    pub dry_run: bool,
}

/// What Apply did, and in general whether a write changed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Made.
    Created,
    /// Changed.
    Configured,
    /// Was so already.
    Unchanged,
}

/// An object as it is answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its identity.
    pub key: Key,
    /// Its revision.
    pub revision: u64,
    /// Its JSON, metadata.resourceVersion included.
    pub json: Bytes,
    /// What a person should see.
    pub warnings: Vec<String>,
    /// What a write did.
    pub effect: Effect,
}

/// The operations; cheap to clone.
#[derive(Clone)]
pub struct Ops {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    admission: Admission,
}

impl std::fmt::Debug for Ops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ops").finish_non_exhaustive()
    }
}

/// What the state machine said to a command that reached it.
enum Committed {
    Done { revisions: Vec<u64>, replayed: bool },
    Failed { op: usize, why: OpError },
}

/// One call's constant part, passed along inside this module.
struct Call<'a> {
    caller: &'a Caller,
    target: &'a Target,
    options: &'a WriteOptions,
}

impl Call<'_> {
    /// The request id in the state machine's one space: nobody can name another caller's.
    fn request_id(&self, attempt: usize) -> Result<Option<String>, ApiError> {
        let id = &self.options.request_id;
        if id.is_empty() {
            return Ok(None);
        }
        if id.len() > MAX_CLIENT_REQUEST_ID {
            let message = format!("the request id has {} bytes, the limit is {MAX_CLIENT_REQUEST_ID}", id.len());
            return Err(ApiError::BadRequest(message));
        }
        let caller = self.caller;
        Ok(Some(if attempt == 0 { format!("{caller}/{id}") } else { format!("{caller}/{id}/{attempt}") }))
    }
}

impl Ops {
    /// Operations on a backend, sealing Secrets with `sealer`.
    pub fn new(backend: Arc<dyn Backend>, sealer: Sealer) -> Self {
        Self { inner: Arc::new(Inner { backend, admission: Admission::new(sealer) }) }
    }

    /// The local replica.
    pub fn store(&self) -> &Store {
        self.inner.backend.store()
    }

    /// Proposes, and waits for freshness.
    pub fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    /// Admits objects, for those who write transactions of their own.
    pub fn admission(&self) -> &Admission {
        &self.inner.admission
    }

    fn sealer(&self) -> &Sealer {
        self.inner.admission.sealer()
    }

    fn answer(&self, object: &Versioned, effect: Effect) -> Result<Answer, ApiError> {
        Ok(Answer {
            key: object.key.clone(),
            revision: object.revision,
            json: self.sealer().json_at(object, object.revision)?,
            warnings: Vec::new(),
            effect,
        })
    }

    /// The answer for an object just prepared, at `revision`.
    fn answer_prepared(prepared: Prepared, revision: u64, effect: Effect) -> Answer {
        let splice_at = prepared.stored.splice_at;
        let json = crate::store::splice_revision(&prepared.plain, splice_at, revision);
        Answer { key: prepared.key, revision, json, warnings: Vec::new(), effect }
    }

    async fn commit(&self, request_id: Option<String>, mut ops: Vec<Op>) -> Result<Committed, ApiError> {
        let freed = delete::names_freed(self.store(), &ops);
        ops.extend(freed);
        let command = Command { request_id, now_millis: now_millis(), fence_term: None, ops };
        command.check_limits()?;
        match self.backend().propose(command).await? {
            Outcome::Done { revisions, replayed } => Ok(Committed::Done { revisions, replayed }),
            Outcome::Failed { op, why, .. } => Ok(Committed::Failed { op, why }),
            Outcome::FencedOut { term } => Err(ApiError::Unavailable {
                why: format!("leadership changed (now term {term}); try again"),
                leader: None,
            }),
            Outcome::TooLarge(limit) => Err(ApiError::TooLarge(limit)),
            Outcome::Refused(why) => Err(ApiError::Internal(why)),
        }
    }

    /// The object now; looks again behind a read barrier before it says that there is none.
    async fn current(&self, target: &Target) -> Result<Arc<Versioned>, ApiError> {
        let key = target.key();
        if let Some(found) = self.store().get(&key) {
            return Ok(found);
        }
        self.backend().read_barrier().await?;
        self.store().get(&key).ok_or_else(|| ApiError::not_found(target.kind, &target.name))
    }
}

/// Unix milliseconds now.
pub fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn now() -> Timestamp {
    let millis = i64::try_from(now_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
