//! Admission: from what somebody sent to what may be stored. Pure: time and randomness are
//! given. Used by the operations here and, in-process, by the controllers.
//!
//! ```text
//! bytes → read (types, unknown fields → warnings) → place (identity) → default → validate
//!       → stamp (uid, creationTimestamp, generation) → encode
//! ```

use bytes::Bytes;
use serde_json::Value;
use trellis_model::k8s_openapi::api::core::v1::{
    NamespaceSpec, NamespaceStatus, Pod, PodCondition, PodStatus, Taint, Toleration,
};
use trellis_model::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use trellis_model::k8s_openapi::jiff::Timestamp;
use trellis_model::{DecodeError, FieldError, Kind, Object, defaults, resources, taints, validate, warnings};

use super::encode::{Encoded, encode};
use super::{ApiError, Sealer};
use crate::store::{Key, LimitExceeded, MAX_OBJECT_BYTES, Stored};

/// Which part of an object an Update means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
}

impl Part {
    /// Reads the subresource of a request.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] for a subresource that the kind has not.
    pub fn parse(kind: Kind, subresource: &str) -> Result<Self, ApiError> {
        match subresource {
            "" => Ok(Self::Main),
            "status" if Object::has_status(kind) => Ok(Self::Status),
            other => {
                let plural = kind.qualified_plural();
                Err(ApiError::BadRequest(format!("{plural} have no subresource {other:?}")))
            }
        }
    }
}

/// An object that may be stored.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its identity.
    pub key: Key,
    /// For the store.
    pub stored: Stored,
    /// The JSON in clear, without metadata.resourceVersion.
    pub plain: Bytes,
    /// The object, typed.
    pub object: Object,
}

impl Prepared {
    fn new(object: Object, sealer: &Sealer) -> Result<Self, ApiError> {
        let Encoded { key, stored, plain } = encode(&object, sealer)?;
        Ok(Self { key, stored, plain, object })
    }
}

/// What an update comes to.
#[derive(Debug, Clone)]
pub enum Change {
    /// Nothing changes: nothing is to be stored.
    None,
    /// This replaces the old version.
    Put(Box<Prepared>),
    /// The last finalizer went from a terminating object: it is to be removed.
    Remove,
}

/// Admits objects.
#[derive(Debug, Clone)]
pub struct Admission {
    sealer: Sealer,
}

impl Admission {
    /// Seals Secrets with `sealer`.
    pub fn new(sealer: Sealer) -> Self {
        Self { sealer }
    }

    /// What Secrets are sealed with.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Defaults, validates, stamps and encodes a new object. Its uid is made here; a name must
    /// have been generated before.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with every problem.
    pub fn prepare_create(&self, object: Object, now: Timestamp) -> Result<Prepared, ApiError> {
        let mut object = object;
        let kind = object.kind();
        let meta = object.meta_mut();
        meta.resource_version = None;
        meta.deletion_timestamp = None;
        meta.deletion_grace_period_seconds = None;
        meta.managed_fields = None;
        meta.self_link = None;
        // From the thread's generator (a CSPRNG): no system call a create.
        let uid = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        meta.uid = Some(uid.to_string());
        meta.creation_timestamp = Some(Time(whole_seconds(now)));
        meta.generation = has_generation(kind).then_some(1);
        start_status(&mut object);
        defaults::apply(&mut object);
        if let Object::Pod(pod) = &mut object {
            finish_pod(pod);
        }
        refuse_invalid(&object, validate::create(&object))?;
        Prepared::new(object, &self.sealer)
    }

    /// What replacing `old` by `new` comes to: server-owned metadata is kept, the other part is
    /// taken from `old`, the generation rises with the spec.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with every problem, [`ApiError::Conflict`] for another uid.
    pub fn prepare_update(&self, old: &Object, new: Object, part: Part) -> Result<Change, ApiError> {
        let uid = new.uid();
        if !uid.is_empty() && uid != old.uid() {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
            return Err(ApiError::conflict(old.kind(), old.name(), why));
        }
        let mut new = match part {
            Part::Main => keep_status(new, old),
            Part::Status => {
                let mut with_status = old.clone().with_status_of(&new);
                // The default of a status field may be needed for the comparison below.
                defaults::apply(&mut with_status);
                with_status
            }
        };
        if part == Part::Main {
            keep_metadata(&mut new, old);
            defaults::apply(&mut new);
        }
        refuse_invalid(&new, validate::update(old, &new))?;
        self.changed(old, new)
    }

    /// Like [`Admission::prepare_update`] for the control plane's own parts: every field may
    /// change (a binding, an eviction's deletionTimestamp), nothing is validated; uid and
    /// creationTimestamp stay.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when it cannot be encoded.
    pub fn prepare_trusted_update(&self, old: &Object, new: Object) -> Result<Change, ApiError> {
        let mut new = new;
        let (from, to) = (old.meta(), new.meta_mut());
        to.uid.clone_from(&from.uid);
        to.creation_timestamp.clone_from(&from.creation_timestamp);
        to.generation = from.generation;
        self.changed(old, new)
    }

    fn changed(&self, old: &Object, new: Object) -> Result<Change, ApiError> {
        let mut new = new;
        new.meta_mut().resource_version.clone_from(&old.meta().resource_version);
        if new == *old {
            return Ok(if may_go(&new) { Change::Remove } else { Change::None });
        }
        if has_generation(new.kind()) && spec_differs(old, &new) {
            let generation = old.meta().generation.unwrap_or(0) + 1;
            new.meta_mut().generation = Some(generation);
        }
        if may_go(&new) {
            return Ok(Change::Remove);
        }
        new.meta_mut().resource_version = None;
        Ok(Change::Put(Box::new(Prepared::new(new, &self.sealer)?)))
    }

    /// The object as it is once its deletion has begun: terminating from `deletion` on.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when it cannot be encoded.
    pub fn prepare_termination(
        &self,
        old: &Object,
        deletion: Timestamp,
        grace_seconds: i64,
    ) -> Result<Prepared, ApiError> {
        let mut new = old.clone();
        let meta = new.meta_mut();
        meta.deletion_timestamp = Some(Time(whole_seconds(deletion)));
        meta.deletion_grace_period_seconds = Some(grace_seconds);
        meta.generation = meta.generation.map(|g| g + 1);
        meta.resource_version = None;
        if let Object::Namespace(namespace) = &mut new {
            let status = namespace.status.get_or_insert_with(NamespaceStatus::default);
            status.phase = Some("Terminating".into());
        }
        Prepared::new(new, &self.sealer)
    }
}

/// Reads an object that a client sent: its types, and warnings for what is unknown or not
/// acted on.
///
/// # Errors
/// [`ApiError::BadRequest`] when it is no such object, [`ApiError::Invalid`] naming the field
/// of a wrong type.
pub fn read(kind: Kind, value: &Value) -> Result<(Object, Vec<String>), ApiError> {
    let (object, unknown) = typed(kind, value)?;
    let warnings = warned(kind, unknown, value);
    Ok((object, warnings))
}

/// Types what a merge patch made of an object. Only what the patch itself says is warned about:
/// the rest of the object was, when it was written.
///
/// # Errors
/// Those of [`read`].
pub fn read_patched(kind: Kind, value: &Value, patch: &Value) -> Result<(Object, Vec<String>), ApiError> {
    let (object, unknown) = typed(kind, value)?;
    let warnings = warned(kind, unknown, patch);
    Ok((object, warnings))
}

fn warned(kind: Kind, unknown: Vec<String>, said: &Value) -> Vec<String> {
    let unknown = unknown.into_iter().map(|field| format!("unknown field {field:?}"));
    unknown.chain(warnings::unacted(kind, said)).collect()
}

/// The typed object, and its unknown fields.
fn typed(kind: Kind, value: &Value) -> Result<(Object, Vec<String>), ApiError> {
    let told = Object::kind_of_value(value).map_err(|e| ApiError::BadRequest(e.to_string()))?;
    if told != kind {
        let message = format!("the object is a {told}, but the request is about a {kind}");
        return Err(ApiError::BadRequest(message));
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let (object, unknown) = Object::from_value(kind, value).map_err(|e| match e {
        DecodeError::Field { .. } => {
            let wrong = Object::type_errors(kind, value);
            let causes = wrong.iter().map(|(field, message)| FieldError::type_invalid(field, message)).collect();
            ApiError::Invalid { kind, name: name.to_owned(), causes }
        }
        other => ApiError::BadRequest(other.to_string()),
    })?;
    Ok((object, unknown))
}

/// Reads JSON text; what the store could not take anyway is refused before it is read.
///
/// # Errors
/// [`ApiError::BadRequest`] saying where it breaks, [`ApiError::TooLarge`] naming the limit.
pub fn parse_json(what: impl std::fmt::Display, json: &[u8]) -> Result<Value, ApiError> {
    if json.len() > MAX_OBJECT_BYTES {
        let what = format!("the size of {what} in bytes");
        let (limit, actual) = (MAX_OBJECT_BYTES as u64, json.len() as u64);
        return Err(ApiError::TooLarge(LimitExceeded { what, limit, actual }));
    }
    serde_json::from_slice(json).map_err(|e| ApiError::BadRequest(format!("{what} is not JSON: {e}")))
}

fn refuse_invalid(object: &Object, causes: Vec<FieldError>) -> Result<(), ApiError> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = object.name().to_owned();
    Err(ApiError::Invalid { kind: object.kind(), name, causes })
}

fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// Kinds whose `metadata.generation` counts changes of the spec, as in Kubernetes 1.35.
fn has_generation(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::ReplicaSet | Kind::Deployment | Kind::NetworkPolicy)
}

fn spec_differs(a: &Object, b: &Object) -> bool {
    match (a, b) {
        (Object::Pod(a), Object::Pod(b)) => a.spec != b.spec,
        (Object::ReplicaSet(a), Object::ReplicaSet(b)) => a.spec != b.spec,
        (Object::Deployment(a), Object::Deployment(b)) => a.spec != b.spec,
        (Object::NetworkPolicy(a), Object::NetworkPolicy(b)) => a.spec != b.spec,
        _ => false,
    }
}

/// A new object begins with the status that the API gives it, not with the client's; only a
/// Node's agent tells the status with the registration.
fn start_status(object: &mut Object) {
    match object {
        Object::Namespace(o) => {
            let spec = o.spec.get_or_insert_with(NamespaceSpec::default);
            spec.finalizers = Some(vec!["kubernetes".into()]);
            let active = NamespaceStatus { phase: Some("Active".into()), ..Default::default() };
            o.status = Some(active);
        }
        Object::Pod(o) => {
            o.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
        }
        Object::ReplicaSet(o) => o.status = None,
        Object::Deployment(o) => o.status = None,
        Object::Node(_) | Object::NetworkPolicy(_) | Object::ConfigMap(_) | Object::Secret(_) | Object::Event(_) => {}
    }
}

/// What Kubernetes' admission adds to every new Pod: its quality of service, why it is not
/// scheduled while it is gated, and how long it stays on a node that is lost. That is 0 seconds
/// here, not 300: the leader evicts only from nodes that gossip and lease both call dead, or that
/// have been silent for 40 s.
fn finish_pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let class = resources::qos_class(spec);
    let status = pod.status.get_or_insert_with(PodStatus::default);
    status.qos_class = Some(class.to_owned());
    if spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
        let gated = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("SchedulingGated".to_owned()),
            message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
            last_transition_time: pod.metadata.creation_timestamp.clone(),
            ..PodCondition::default()
        };
        status.conditions.get_or_insert_default().push(gated);
    }
    for key in [taints::NOT_READY, taints::UNREACHABLE] {
        let taint = Taint { key: key.to_owned(), effect: taints::NO_EXECUTE.to_owned(), ..Taint::default() };
        let all = spec.tolerations.get_or_insert_with(Vec::new);
        if !all.iter().any(|t| taints::tolerates(t, &taint)) {
            all.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".into()),
                effect: Some(taints::NO_EXECUTE.to_owned()),
                toleration_seconds: Some(0),
                value: None,
            });
        }
    }
}

fn keep_status(new: Object, old: &Object) -> Object {
    let mut new = new.with_status_of(old);
    // A Namespace's finalizer is its controller's to remove.
    if let (Object::Namespace(new), Object::Namespace(old)) = (&mut new, old) {
        new.spec.clone_from(&old.spec);
    }
    new
}

/// Metadata that only the server writes.
fn keep_metadata(new: &mut Object, old: &Object) {
    let (from, to) = (old.meta(), new.meta_mut());
    to.uid.clone_from(&from.uid);
    to.creation_timestamp.clone_from(&from.creation_timestamp);
    to.generation = from.generation;
    to.deletion_timestamp.clone_from(&from.deletion_timestamp);
    to.deletion_grace_period_seconds = from.deletion_grace_period_seconds;
    to.generate_name.clone_from(&from.generate_name);
    to.managed_fields = None;
    to.self_link = None;
}

/// Does something still hold a terminating object back?
pub fn has_finalizers(object: &Object) -> bool {
    let of_namespace = match object {
        Object::Namespace(o) => o.spec.as_ref().is_some_and(|s| s.finalizers.as_ref().is_some_and(|f| !f.is_empty())),
        _ => false,
    };
    of_namespace || object.meta().finalizers.as_ref().is_some_and(|f| !f.is_empty())
}

/// A terminating object whose grace is over and that nothing holds back.
fn may_go(object: &Object) -> bool {
    let meta = object.meta();
    meta.deletion_timestamp.is_some() && meta.deletion_grace_period_seconds.unwrap_or(0) == 0 && !has_finalizers(object)
}
