//! Create: generated names, and Namespaces that must be there and stay.

use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use trellis_model::{Kind, Object};

use super::encode::key_of;
use super::{
    Answer, ApiError, Call, Committed, Effect, Ops, Prepared, Target, WRITE_ATTEMPTS, WriteOptions, admit, now,
};
use crate::auth::{Caller, Verb};
use crate::store::{Op, When};

/// Letters of generated suffixes: no vowels, so no words (Kubernetes' `rand.SafeEncodeString`).
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of generated suffixes, as in Kubernetes.
const SUFFIX_LEN: usize = 5;
/// Longest `generateName` that is kept: the whole must fit a DNS label.
const MAX_PREFIX: usize = 63 - SUFFIX_LEN;

impl Ops {
    /// Makes an object. `target.name` and `target.namespace` may be empty when the object says
    /// them, or a name is to be generated.
    ///
    /// # Errors
    /// [`ApiError::AlreadyExists`], [`ApiError::Invalid`] with every problem,
    /// [`ApiError::Forbidden`], [`ApiError::NotFound`] for the Namespace.
    pub async fn create(
        &self,
        caller: &Caller,
        target: &Target,
        json: &[u8],
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let value = admit::parse_json(target, json)?;
        let (object, warnings) = admit::read(target.kind, &value)?;
        if object.meta().resource_version.as_ref().is_some_and(|v| !v.is_empty()) {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(ApiError::BadRequest(message.into()));
        }
        let mut answer = self.create_object(caller, target, object, options).await?;
        answer.warnings = warnings;
        Ok(answer)
    }

    /// Makes an object that is typed already.
    ///
    /// # Errors
    /// Those of [`Ops::create`].
    pub async fn create_object(
        &self,
        caller: &Caller,
        target: &Target,
        mut object: Object,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let target = &place(&mut object, target)?;
        let rule = self.rule(caller, Verb::Create, target)?;
        let call = Call { caller, target, options };
        let generated = target.name.is_empty();
        for attempt in 0..WRITE_ATTEMPTS {
            let request_id = call.request_id(attempt)?;
            let mut candidate = object.clone();
            if generated {
                generate_name(&mut candidate, request_id.as_deref())?;
            }
            let prepared = self.inner.admission.prepare_create(candidate, now())?;
            self.allows_change(caller, target, &rule, None, &prepared.object)?;
            match self.try_create(&call, prepared, request_id).await? {
                Some(answer) => return Ok(answer),
                None if generated => {}
                // The Namespace changed under it: look at it again.
                None if attempt + 1 < WRITE_ATTEMPTS => {}
                None => return Err(ApiError::modified(Kind::Namespace, &target.namespace)),
            }
        }
        let message = format!(
            "no free name found in {WRITE_ATTEMPTS} tries for generateName {:?}",
            object.meta().generate_name.as_deref().unwrap_or_default()
        );
        Err(ApiError::conflict(target.kind, "", message))
    }

    /// One try; `None`: a generated name is taken or the Namespace changed.
    async fn try_create(
        &self,
        call: &Call<'_>,
        prepared: Prepared,
        request_id: Option<String>,
    ) -> Result<Option<Answer>, ApiError> {
        let kind = call.target.kind;
        let key = prepared.key.clone();
        let generated = call.target.name.is_empty();
        // A retried create is answered before anything else can refuse it.
        if let Some(id) = &request_id
            && let Some(revisions) = self.store().remembered(id)
        {
            return self.replayed(kind, &key, &revisions).map(Some);
        }
        let check = self.namespace_check(kind, &key.namespace).await?;
        if call.options.dry_run {
            return match self.store().get(&key) {
                None => Ok(Some(Self::answer_prepared(prepared, 0, Effect::Created))),
                Some(_) if generated => Ok(None),
                Some(_) => Err(ApiError::already_exists(kind, &key.name)),
            };
        }
        let object = prepared.stored.clone();
        let put = Op::Put { key: key.clone(), when: When::Absent, object };
        let ops = std::iter::once(put).chain(check).collect();
        match self.commit(request_id, ops).await? {
            Committed::Done { revisions, replayed: true } => self.replayed(kind, &key, &revisions).map(Some),
            Committed::Done { revisions, .. } => {
                let revision = revisions.first().copied().unwrap_or_default();
                Ok(Some(Self::answer_prepared(prepared, revision, Effect::Created)))
            }
            Committed::Failed { op: 0, .. } if generated => Ok(None),
            Committed::Failed { op: 0, .. } => Err(ApiError::already_exists(kind, &key.name)),
            Committed::Failed { .. } => {
                self.backend().read_barrier().await?;
                Ok(None)
            }
        }
    }

    /// The answer to a create that was done before: the object as it is now.
    fn replayed(&self, kind: Kind, key: &crate::store::Key, revisions: &[u64]) -> Result<Answer, ApiError> {
        match self.store().get(key) {
            Some(object) if revisions.first() == Some(&object.create_revision) => self.answer(&object, Effect::Created),
            Some(_) => Err(ApiError::already_exists(kind, &key.name)),
            None => Err(ApiError::not_found(kind, &key.name)),
        }
    }

    /// The condition that a new object's Namespace is there and stays as it is: once it
    /// terminates, its revision has changed, so nothing is made in it behind its controller's
    /// back.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] and [`ApiError::Forbidden`] for the Namespace.
    pub async fn namespace_check(&self, kind: Kind, namespace: &str) -> Result<Option<Op>, ApiError> {
        if !kind.namespaced() {
            return Ok(None);
        }
        let found = self.current(&Target::new(Kind::Namespace, "", namespace)).await?;
        if found.object.index.field("status.phase") == Some("Terminating") {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being \
                 terminated"
            );
            return Err(ApiError::forbidden(kind, "", why));
        }
        let key = key_of(Kind::Namespace, "", namespace);
        Ok(Some(Op::Check { key, when: When::Revision(found.revision) }))
    }
}

/// Brings the identity in the request and in the object together; the object's Namespace is
/// `default` when neither says one.
pub(super) fn place(object: &mut Object, target: &Target) -> Result<Target, ApiError> {
    let kind = target.kind;
    let meta = object.meta_mut();
    let name = agree("name", &target.name, meta.name.as_deref())?;
    if name.is_empty() && meta.generate_name.as_deref().unwrap_or_default().is_empty() {
        return Err(ApiError::BadRequest(format!(
            "the {kind} has no name: metadata.name or metadata.generateName is required"
        )));
    }
    let namespace = if kind.namespaced() {
        let said = agree("namespace", &target.namespace, meta.namespace.as_deref())?;
        if said.is_empty() { "default".to_owned() } else { said }
    } else {
        String::new()
    };
    meta.namespace = kind.namespaced().then(|| namespace.clone());
    meta.name = (!name.is_empty()).then(|| name.clone());
    Ok(Target { kind, namespace, name })
}

fn agree(what: &str, asked: &str, said: Option<&str>) -> Result<String, ApiError> {
    let said = said.unwrap_or_default();
    if !asked.is_empty() && !said.is_empty() && asked != said {
        return Err(ApiError::BadRequest(format!(
            "the {what} of the provided object ({said:?}) does not match the {what} sent on the \
             request ({asked:?})"
        )));
    }
    Ok(if asked.is_empty() { said } else { asked }.to_owned())
}

/// Appends a suffix: random, or drawn from the request id, so that a retried create names the
/// same object.
fn generate_name(object: &mut Object, request_id: Option<&str>) -> Result<(), ApiError> {
    let bytes: [u8; SUFFIX_LEN] = match request_id {
        Some(id) => {
            let digest = Sha256::digest(id.as_bytes());
            std::array::from_fn(|i| digest[i])
        }
        None => rand::rng().random(),
    };
    let prefix = object.meta().generate_name.clone().unwrap_or_default();
    let prefix: String = prefix.chars().take(MAX_PREFIX).collect();
    let letter = |b: &u8| char::from(SUFFIX_ALPHABET[usize::from(*b) % SUFFIX_ALPHABET.len()]);
    let suffix: String = bytes.iter().map(letter).collect();
    object.meta_mut().name = Some(format!("{prefix}{suffix}"));
    Ok(())
}
