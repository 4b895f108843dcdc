//! Update and Patch: read, change, admit, put on condition that nobody was faster.

use serde_json::Value;
use trellis_model::{Object, merge};

use super::admit::{self, Part, Prepared};
use super::create::place;
use super::{Answer, ApiError, Call, Change, Committed, Effect, Ops, Target, WRITE_ATTEMPTS, WriteOptions, encode};
use crate::auth::{Caller, Rule, Verb};
use crate::store::{Op, OpError, Versioned, When};

/// What somebody wants an object to become, given what it is.
pub(super) trait Edit: Send + Sync {
    /// The wanted object, and warnings about it.
    fn edit(&self, old: &Object) -> Result<(Object, Vec<String>), ApiError>;

    /// The revision that it must be made from; `None`: any.
    fn revision(&self) -> Option<u64>;
}

struct Replacement {
    object: Object,
    revision: Option<u64>,
    warnings: Vec<String>,
}

impl Edit for Replacement {
    fn edit(&self, _: &Object) -> Result<(Object, Vec<String>), ApiError> {
        Ok((self.object.clone(), self.warnings.clone()))
    }

    fn revision(&self) -> Option<u64> {
        self.revision
    }
}

struct MergePatch {
    patch: Value,
    revision: Option<u64>,
}

impl Edit for MergePatch {
    fn edit(&self, old: &Object) -> Result<(Object, Vec<String>), ApiError> {
        let mut value = old.to_value();
        merge::rfc7386(&mut value, &self.patch);
        admit::read_patched(old.kind(), &value, &self.patch)
    }

    fn revision(&self) -> Option<u64> {
        self.revision
    }
}

impl Ops {
    /// Replaces an object, or its status. A metadata.resourceVersion inside must match.
    ///
    /// # Errors
    /// [`ApiError::Conflict`], [`ApiError::NotFound`], [`ApiError::Invalid`] with every problem,
    /// [`ApiError::Forbidden`].
    pub async fn update(
        &self,
        caller: &Caller,
        target: &Target,
        part: Part,
        json: &[u8],
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let value = admit::parse_json(target, json)?;
        let (mut object, warnings) = admit::read(target.kind, &value)?;
        let target = &place(&mut object, target)?;
        let revision = revision_of(object.meta().resource_version.as_deref())?;
        let edit = Replacement { object, revision, warnings };
        self.modify(&Call { caller, target, options }, part, &edit).await
    }

    /// Applies an RFC 7386 merge patch to an object, or its status. Tried again, a bounded
    /// number of times, when somebody else was faster.
    ///
    /// # Errors
    /// Those of [`Ops::update`].
    pub async fn patch(
        &self,
        caller: &Caller,
        target: &Target,
        part: Part,
        patch: &[u8],
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let patch = admit::parse_json(format_args!("the patch of {target}"), patch)?;
        if !patch.is_object() {
            return Err(ApiError::BadRequest("a merge patch must be a JSON object".into()));
        }
        let revision = revision_of(patch["metadata"]["resourceVersion"].as_str())?;
        let edit = MergePatch { patch, revision };
        self.modify(&Call { caller, target, options }, part, &edit).await
    }

    /// The loop that all changes of one object share.
    pub(super) async fn modify(&self, call: &Call<'_>, part: Part, edit: &dyn Edit) -> Result<Answer, ApiError> {
        let Call { caller, target, options } = call;
        target.one()?;
        let verb = if part == Part::Status { Verb::UpdateStatus } else { Verb::Update };
        let rule = self.rule(caller, verb, target)?;
        let request_id = call.request_id(0)?;
        let mut fresh = false;
        for _ in 0..WRITE_ATTEMPTS {
            if let Some(id) = &request_id
                && self.store().remembered(id).is_some()
            {
                return self.answer(&*self.current(target).await?, Effect::Configured);
            }
            let current = self.current_under(target, &rule).await?;
            self.allows(caller, verb, target, &rule, &current)?;
            let step = self.step(call, part, &rule, edit, &current);
            let stale = match &step {
                Err(ApiError::Conflict { .. }) => !fresh,
                Ok(Step::Same(_)) => !fresh,
                _ => false,
            };
            if stale {
                // What looks like a conflict, or like no change, may be an old replica's view.
                self.backend().read_barrier().await?;
                fresh = true;
                if self.store().get(&current.key).map(|c| c.revision) != Some(current.revision) {
                    continue;
                }
            }
            let (write, warnings) = match step? {
                Step::Same(warnings) => {
                    let mut answer = self.answer(&current, Effect::Unchanged)?;
                    answer.warnings = warnings;
                    return Ok(answer);
                }
                Step::Write(write, warnings) => (write, warnings),
            };
            if let Some(mut answer) = self.write(write, &current, options, request_id.clone()).await? {
                answer.warnings = warnings;
                return Ok(answer);
            }
            if edit.revision().is_some() {
                break;
            }
            self.backend().read_barrier().await?;
            fresh = true;
        }
        Err(ApiError::modified(target.kind, &target.name))
    }

    /// From what is there to what is to be written; pure but for logging a refusal.
    fn step(
        &self,
        call: &Call<'_>,
        part: Part,
        rule: &Rule,
        edit: &dyn Edit,
        current: &Versioned,
    ) -> Result<Step, ApiError> {
        let Call { caller, target, .. } = call;
        if edit.revision().is_some_and(|wanted| wanted != current.revision) {
            return Err(ApiError::modified(target.kind, &target.name));
        }
        let old = encode::decode(current, self.sealer())?;
        let (mut new, warnings) = edit.edit(&old)?;
        place(&mut new, target)?;
        match self.inner.admission.prepare_update(&old, new, part)? {
            Change::None => Ok(Step::Same(warnings)),
            Change::Put(prepared) => {
                self.allows_change(caller, target, rule, Some(&old), &prepared.object)?;
                Ok(Step::Write(Write::Put(prepared), warnings))
            }
            Change::Remove => Ok(Step::Write(Write::Remove, warnings)),
        }
    }

    /// One try to write; `None`: somebody was faster.
    async fn write(
        &self,
        write: Write,
        current: &Versioned,
        options: &WriteOptions,
        request_id: Option<String>,
    ) -> Result<Option<Answer>, ApiError> {
        let key = current.key.clone();
        let when = When::Revision(current.revision);
        let (op, prepared) = match write {
            Write::Put(prepared) => (Op::Put { key, when, object: prepared.stored.clone() }, Some(prepared)),
            Write::Remove => (Op::Delete { key, when }, None),
        };
        let revision = if options.dry_run {
            current.revision
        } else {
            match self.commit(request_id, vec![op]).await? {
                Committed::Done { revisions, .. } => revisions.first().copied().unwrap_or(0),
                Committed::Failed { op: 0, why: OpError::NotFound } => {
                    let kind = encode::kind_of(&current.key)?;
                    return Err(ApiError::not_found(kind, &current.key.name));
                }
                Committed::Failed { .. } => return Ok(None),
            }
        };
        match prepared {
            Some(prepared) => Ok(Some(Self::answer_prepared(*prepared, revision, Effect::Configured))),
            None => self.answer(current, Effect::Configured).map(Some),
        }
    }
}

enum Step {
    Same(Vec<String>),
    Write(Write, Vec<String>),
}

enum Write {
    Put(Box<Prepared>),
    Remove,
}

fn revision_of(text: Option<&str>) -> Result<Option<u64>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| ApiError::BadRequest(format!("metadata.resourceVersion {text:?} is not a revision"))),
    }
}
