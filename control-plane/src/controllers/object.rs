//! What planners read and what they answer: decoded objects with their revision, and writes.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use trellis_model::{Kind, Object};

use crate::store::{MAX_OBJECT_BYTES, MAX_TRANSACTION_BYTES};

/// Identity of one object of a served kind. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjKey {
    /// Its kind.
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjKey {
    /// A key from its parts.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object with this metadata.
    pub fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        Self::new(kind, meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for ObjKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_ref() {
            "" => write!(f, "{} {}", self.kind, self.name),
            ns => write!(f, "{} {ns}/{}", self.kind, self.name),
        }
    }
}

/// One decoded version of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Item<T> {
    /// Its revision in the store.
    pub revision: u64,
    /// The object; its resourceVersion is not set.
    pub object: T,
}

/// Types whose metadata planners read.
pub trait HasMeta {
    /// The kind.
    const KIND: Kind;
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
}

macro_rules! has_meta {
    ($($t:ident),*) => {$(
        impl HasMeta for $t {
            const KIND: Kind = Kind::$t;
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
        }
    )*};
}
has_meta!(Deployment, Namespace, Node, Pod, ReplicaSet);

impl<T: HasMeta> Item<T> {
    /// Its key.
    pub fn key(&self) -> ObjKey {
        ObjKey::of(T::KIND, self.object.meta())
    }
    /// metadata.name.
    pub fn name(&self) -> &str {
        self.object.meta().name.as_deref().unwrap_or_default()
    }
    /// metadata.namespace.
    pub fn namespace(&self) -> &str {
        self.object.meta().namespace.as_deref().unwrap_or_default()
    }
    /// metadata.uid.
    pub fn uid(&self) -> &str {
        self.object.meta().uid.as_deref().unwrap_or_default()
    }
    /// Whether its deletion was asked for.
    pub fn deleting(&self) -> bool {
        self.object.meta().deletion_timestamp.is_some()
    }
    /// The reference of the controller that manages it.
    pub fn controller(&self) -> Option<&OwnerReference> {
        controller_of(self.object.meta())
    }
}

/// The owner reference that says `controller: true`.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// A controller's owner reference to `kind`/`meta`.
pub fn controller_ref(kind: Kind, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version().to_owned(),
        kind: kind.name().to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A new object; refused when the name is taken. Admission completes it.
    Create(Object),
    /// An Event, in place of whatever has its name: written once or counted up.
    Record(Object),
    /// A whole object in place of the one at `revision`.
    Update {
        /// The new version.
        object: Object,
        /// The version it was made from.
        revision: u64,
    },
    /// Removes the object with this uid.
    Delete {
        /// Which.
        key: ObjKey,
        /// Its uid, so that a newer object of the name is spared.
        uid: String,
        /// Only at this revision.
        revision: Option<u64>,
    },
    /// Marks an object with finalizers as terminating.
    Terminate {
        /// Which.
        key: ObjKey,
        /// The version it is made from.
        revision: u64,
    },
    /// Changes nothing; the transaction fails unless the object is at this revision.
    Check {
        /// Which.
        key: ObjKey,
        /// At which revision.
        revision: u64,
    },
    /// Raises a counter of the system keyspace to `to`, unless it is above `above` already; goes
    /// with another write.
    Raise {
        /// The object that it is raised for.
        key: ObjKey,
        /// The counter's key.
        counter: &'static str,
        /// What it must be above.
        above: u64,
        /// What it becomes.
        to: u64,
    },
    /// Edits metadata of an object that is not decoded here.
    EditMeta {
        /// Which.
        key: ObjKey,
        /// The version it is made from.
        revision: u64,
        /// What changes.
        edit: MetaEdit,
    },
}

/// An edit of metadata alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetaEdit {
    /// Uids of owners whose references go.
    pub drop_owners: Vec<String>,
    /// A finalizer that goes; with the last one of a deleted object the object goes too.
    pub drop_finalizer: Option<String>,
}

/// Bytes of objects that one transaction of controllers holds: half of what the store takes, since
/// the keys that objects are found by come beside them.
pub const TRANSACTION_BYTES: usize = MAX_TRANSACTION_BYTES / 2;

impl Write {
    /// Bytes of JSON that it puts into a transaction, as far as it is known here: edits of objects
    /// that are not decoded count for nothing.
    pub fn weight(&self) -> usize {
        match self {
            Write::Create(o) | Write::Record(o) | Write::Update { object: o, .. } => o.encode().len(),
            Write::Delete { .. }
            | Write::Terminate { .. }
            | Write::Check { .. }
            | Write::Raise { .. }
            | Write::EditMeta { .. } => 0,
        }
    }

    /// Whether it only goes with the others.
    pub fn is_check(&self) -> bool {
        matches!(self, Write::Check { .. } | Write::Raise { .. })
    }

    /// The object concerned.
    pub fn key(&self) -> ObjKey {
        match self {
            Write::Create(o) | Write::Record(o) | Write::Update { object: o, .. } => ObjKey::of(o.kind(), o.meta()),
            Write::Delete { key, .. }
            | Write::Terminate { key, .. }
            | Write::Check { key, .. }
            | Write::Raise { key, .. }
            | Write::EditMeta { key, .. } => key.clone(),
        }
    }
}

/// Something to be told in an Event object.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// What it is about.
    pub about: ObjectReference,
    /// Warning or Normal.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The component that says it, `deployment-controller`.
    pub component: &'static str,
}

impl Note {
    /// A note about the object with this metadata.
    pub fn new(kind: Kind, meta: &ObjectMeta, component: &'static str, reason: &'static str, message: String) -> Self {
        let about = ObjectReference {
            api_version: Some(kind.api_version().to_owned()),
            kind: Some(kind.name().to_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        Self { about, warning: false, reason, message, component }
    }

    /// The object that it is about.
    fn key(&self) -> Option<ObjKey> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|k| Some(k.name()) == self.about.kind.as_deref())?;
        Some(ObjKey::new(kind, text(&self.about.namespace), text(&self.about.name)))
    }

    /// The same as a warning.
    pub fn warning(mut self) -> Self {
        self.warning = true;
        self
    }
}

/// What a planner answers: one transaction, what to tell about it, and when to look again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// All or nothing; empty: nothing to do now.
    pub writes: Vec<Write>,
    /// Told once the transaction is committed.
    pub notes: Vec<Note>,
    /// Time alone will change the answer then.
    pub again_at: Option<Instant>,
}

impl Plan {
    /// Leaves what fits into `count` writes and `bytes`, at least one, and all checks. Only for plans
    /// each of whose writes is good without the later ones, which are planned again after them.
    /// Notes about objects whose writes are left out are too.
    pub fn cut(&mut self, count: usize, bytes: usize) {
        // So few always fit, whatever they are.
        if self.writes.len() <= count.min(bytes / MAX_OBJECT_BYTES) {
            return;
        }
        let (mut kept, mut used) = (0, 0);
        let mut out = std::collections::BTreeSet::new();
        self.writes.retain(|write| {
            if write.is_check() {
                return true;
            }
            used += if out.is_empty() { write.weight() } else { 0 };
            let fits = out.is_empty() && (kept == 0 || (kept < count && used <= bytes));
            if fits {
                kept += 1;
            } else {
                out.insert(write.key());
            }
            fits
        });
        if !out.is_empty() {
            self.notes.retain(|note| note.key().is_none_or(|key| !out.contains(&key)));
        }
    }

    /// Looks again at `at`, or sooner if that is asked for already.
    pub fn again(&mut self, at: Instant) {
        self.again_at = Some(self.again_at.map_or(at, |t| t.min(at)));
    }
}

/// The two clocks: durations are measured on `mono`; `wall` is only written into objects, and
/// read where Kubernetes' fields are wall times by definition.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub mono: Instant,
    /// Of day.
    pub wall: Timestamp,
}

impl Now {
    /// Both clocks of this machine.
    pub fn read() -> Self {
        Self { mono: Instant::now(), wall: Timestamp::now() }
    }

    /// The wall time as objects carry it: whole seconds, as Kubernetes writes them.
    pub fn time(&self) -> Time {
        Time(Timestamp::from_second(self.wall.as_second()).unwrap_or(self.wall))
    }

    /// Time gone by since `then`; zero when that lies in the future.
    pub fn since(&self, then: &Time) -> std::time::Duration {
        std::time::Duration::try_from(self.wall.duration_since(then.0)).unwrap_or_default()
    }
}
