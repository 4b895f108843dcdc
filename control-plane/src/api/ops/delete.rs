//! Delete: at once, or in two steps where something must happen in between.
//!
//! ```text
//! Pod that may run     ──delete──► terminating ──agent: delete, grace 0──► gone
//! with finalizers      ──delete──► terminating ──last finalizer removed──► gone
//! Namespace            ──delete──► Terminating ──its controller emptied it──► gone
//! everything else      ──delete──────────────────────────────────────────► gone
//! ```
//! Dependents are removed in the background by a controller, along ownerReferences; with
//! `orphan` they lose the reference in the same transaction.

use std::sync::Arc;

use trellis_model::k8s_openapi::jiff::{SignedDuration, Timestamp};
use trellis_model::resources::is_finished;
use trellis_model::{Kind, Object};

use super::admit::has_finalizers;
use super::{
    Answer, ApiError, Call, Committed, Effect, Ops, Prepared, Target, WRITE_ATTEMPTS, WriteOptions, access, encode, now,
};
use crate::api::names::registration;
use crate::auth::{Caller, Rule, Verb};
use crate::store::{MAX_TRANSACTION_OPS, Op, OpError, Store, SysWhen, Versioned, When};

/// A Pod's grace period where it says none (Kubernetes' default).
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Namespaces that are never deleted.
const KEPT_NAMESPACES: [&str; 2] = ["default", "kube-system"];

/// What a Delete asks for besides its target.
#[derive(Debug, Clone, Default)]
pub struct DeleteArgs {
    /// `None`: the object's own.
    pub grace_seconds: Option<i64>,
    /// Must match; empty: any.
    pub uid: String,
    /// Must match; 0: any.
    pub revision: u64,
    /// Dependents stay.
    pub orphan: bool,
}

/// What a Delete did.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// The object as last seen.
    pub answer: Answer,
    /// It is gone, not only terminating.
    pub removed: bool,
}

enum Step {
    /// It terminates already, and this changes nothing.
    Already,
    Terminate(Box<Prepared>),
    Remove,
}

impl Ops {
    /// Deletes an object.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], [`ApiError::Conflict`] for a precondition,
    /// [`ApiError::Forbidden`].
    pub async fn delete(
        &self,
        caller: &Caller,
        target: &Target,
        args: &DeleteArgs,
        options: &WriteOptions,
    ) -> Result<Deleted, ApiError> {
        target.one()?;
        let rule = self.rule(caller, Verb::Delete, target)?;
        let call = Call { caller, target, options };
        let request_id = call.request_id(0)?;
        for _ in 0..WRITE_ATTEMPTS {
            let current = match self.current_under(target, &rule).await {
                Err(gone @ ApiError::NotFound { .. }) => {
                    let id = request_id.as_deref();
                    let done = id.is_some_and(|id| self.store().remembered(id).is_some());
                    return if done { Ok(gone_before(target)) } else { Err(gone) };
                }
                other => other?,
            };
            self.allows(caller, Verb::Delete, target, &rule, &current)?;
            let old = encode::decode(&current, self.sealer())?;
            let step = match self.deletion(&call, &rule, args, &current, &old) {
                // The view may be old.
                Err(conflict @ (ApiError::Conflict { .. } | ApiError::Forbidden { .. })) => {
                    self.backend().read_barrier().await?;
                    let now = self.store().get(&current.key);
                    if now.map(|c| c.revision) == Some(current.revision) {
                        return Err(conflict);
                    }
                    continue;
                }
                other => other?,
            };
            if let Some(deleted) = self.try_delete(step, &call, args, &current, request_id.clone()).await? {
                return Ok(deleted);
            }
            self.backend().read_barrier().await?;
        }
        Err(ApiError::modified(target.kind, &target.name))
    }

    /// What is to be done; pure but for logging a refusal.
    fn deletion(
        &self,
        call: &Call<'_>,
        rule: &Rule,
        args: &DeleteArgs,
        current: &Versioned,
        old: &Object,
    ) -> Result<Step, ApiError> {
        let target = call.target;
        preconditions(target, args, current)?;
        let terminating = old.meta().deletion_timestamp.is_some();
        if matches!(rule, Rule::TerminatingOn(_)) && !(terminating && args.grace_seconds == Some(0)) {
            let why = "an agent only removes Pods that terminate, with a grace period of 0";
            return Err(access::refuse(call.caller, Verb::Delete, target, why));
        }
        if target.kind == Kind::Namespace && KEPT_NAMESPACES.contains(&&*target.name) {
            let why = "this namespace may not be deleted";
            return Err(ApiError::forbidden(target.kind, &target.name, why));
        }
        let grace = match old {
            Object::Pod(_) => grace_of(args, old)?,
            _ => 0,
        };
        let begun = begun(old);
        // What runs already is shortened by a grace period that is asked for, and by nothing else.
        if begun.is_some_and(|(_, runs)| runs > 0) && args.grace_seconds.is_none() {
            return Ok(Step::Already);
        }
        if grace == 0 && !has_finalizers(old) {
            return Ok(Step::Remove);
        }
        if begun.is_some_and(|(_, runs)| grace >= runs) {
            return Ok(Step::Already);
        }
        // A shorter grace period counts from the first delete too, as in Kubernetes.
        let from = begun.map_or(now(), |(at, _)| at);
        let at = from.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(from);
        let prepared = self.inner.admission.prepare_termination(old, at, grace)?;
        Ok(Step::Terminate(Box::new(prepared)))
    }

    /// One try; `None`: somebody was faster.
    async fn try_delete(
        &self,
        step: Step,
        call: &Call<'_>,
        args: &DeleteArgs,
        current: &Arc<Versioned>,
        request_id: Option<String>,
    ) -> Result<Option<Deleted>, ApiError> {
        let key = current.key.clone();
        let when = When::Revision(current.revision);
        let (mut ops, prepared) = match step {
            Step::Already => {
                let answer = self.answer(current, Effect::Unchanged)?;
                return Ok(Some(Deleted { answer, removed: false }));
            }
            Step::Terminate(prepared) => (vec![Op::Put { key, when, object: prepared.stored.clone() }], Some(prepared)),
            Step::Remove => (vec![Op::Delete { key, when }], None),
        };
        if args.orphan {
            self.orphan_dependents(current, &mut ops)?;
        }
        let mut revision = current.revision;
        if !call.options.dry_run {
            match self.commit(request_id, ops).await? {
                Committed::Done { revisions, .. } => {
                    revision = revisions.first().copied().unwrap_or(revision);
                }
                Committed::Failed { op: 0, why: OpError::NotFound } => {
                    return Err(ApiError::not_found(call.target.kind, &call.target.name));
                }
                Committed::Failed { .. } => return Ok(None),
            }
        }
        Ok(Some(match prepared {
            Some(prepared) => {
                let answer = Self::answer_prepared(*prepared, revision, Effect::Configured);
                Deleted { answer, removed: false }
            }
            None => Deleted { answer: self.answer(current, Effect::Configured)?, removed: true },
        }))
    }

    /// Takes the owner out of its dependents' ownerReferences, in the same transaction: its
    /// controllers can neither adopt them again nor collect them in between.
    fn orphan_dependents(&self, owner: &Versioned, ops: &mut Vec<Op>) -> Result<(), ApiError> {
        let uid = &owner.object.index.uid;
        let dependents = self.store().by_owner(uid);
        if dependents.len() + 2 > MAX_TRANSACTION_OPS {
            return Err(ApiError::BadRequest(format!(
                "{} has {} dependents to orphan, more than fit one transaction ({}): delete it \
                 without --cascade=orphan, or scale it down first",
                owner.key,
                dependents.len(),
                MAX_TRANSACTION_OPS - 2
            )));
        }
        for dependent in dependents {
            let old = encode::decode(&dependent, self.sealer())?;
            let mut new = old.clone();
            if let Some(owners) = &mut new.meta_mut().owner_references {
                owners.retain(|o| o.uid != *uid);
            }
            if let super::Change::Put(prepared) = self.inner.admission.prepare_trusted_update(&old, new)? {
                let when = When::Revision(dependent.revision);
                ops.push(Op::Put { key: prepared.key, when, object: prepared.stored });
            }
        }
        Ok(())
    }
}

fn preconditions(target: &Target, args: &DeleteArgs, current: &Versioned) -> Result<(), ApiError> {
    let uid = &current.object.index.uid;
    let why = if !args.uid.is_empty() && args.uid != *uid {
        format!("Precondition failed: UID in precondition: {}, UID in object meta: {uid}", args.uid)
    } else if args.revision != 0 && args.revision != current.revision {
        format!(
            "Precondition failed: ResourceVersion in precondition: {}, ResourceVersion in object \
             meta: {}",
            args.revision, current.revision
        )
    } else {
        return Ok(());
    };
    Err(ApiError::conflict(target.kind, &target.name, why))
}

/// When the deletion that is under way was asked for, and its grace period in seconds.
fn begun(object: &Object) -> Option<(Timestamp, i64)> {
    let meta = object.meta();
    let (ends, grace) = (meta.deletion_timestamp.as_ref()?.0, meta.deletion_grace_period_seconds?);
    Some((ends.saturating_sub(SignedDuration::from_secs(grace)).unwrap_or(ends), grace))
}

/// What goes with the Nodes that `ops` remove: their names, which may be joined with again. For
/// everybody who removes objects, in the same transaction, after `ops`.
pub(crate) fn names_freed(store: &Store, ops: &[Op]) -> Vec<Op> {
    let removed = ops.iter().filter_map(|op| match op {
        Op::Delete { key, .. } if key.kind == Kind::Node.name() => Some(registration(&key.name)),
        _ => None,
    });
    let registered = removed.filter(|key| store.sys_get(key).is_some());
    registered.map(|key| Op::SysDelete { key, when: SysWhen::Always }).collect()
}

/// A Pod's grace period: none where no agent would act on it, or nothing runs any more.
fn grace_of(args: &DeleteArgs, pod: &Object) -> Result<i64, ApiError> {
    let Object::Pod(pod) = pod else { return Ok(0) };
    let spec = pod.spec.as_ref();
    let bound = spec.is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    let own = spec.and_then(|s| s.termination_grace_period_seconds);
    match args.grace_seconds {
        Some(seconds) if seconds < 0 => {
            Err(ApiError::BadRequest(format!("the grace period is {seconds} s: it must not be negative")))
        }
        _ if !bound || is_finished(pod) => Ok(0),
        Some(seconds) => Ok(seconds),
        None => Ok(own.unwrap_or(DEFAULT_GRACE_SECONDS).max(0)),
    }
}

/// The answer to a delete that was done before.
fn gone_before(target: &Target) -> Deleted {
    let answer = Answer {
        key: target.key(),
        revision: 0,
        json: bytes::Bytes::new(),
        warnings: Vec::new(),
        effect: Effect::Configured,
    };
    Deleted { answer, removed: true }
}
