//! Get and List.

use std::sync::Arc;

use trellis_model::Kind;

use super::encode::Selectors;
use super::{Answer, ApiError, Effect, Ops, Target, continue_token, projection};
use crate::auth::{Caller, Rule, Verb};
use crate::store::{Page, RevisionError, Versioned};

/// Objects a page when the caller asks for no number.
const DEFAULT_LIMIT: usize = 500;
/// Objects a page at most, whatever the caller asks for.
const MAX_LIMIT: usize = 5_000;
/// A page ends once it holds this much: with one object of the largest size on top it still
/// fits gRPC's usual message limit of 4 MiB.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Objects looked at in one hold of the store's lock.
const CHUNK: usize = 1_000;

/// What a List asks for besides its target.
#[derive(Debug, Clone, Default)]
pub struct ListArgs {
    /// Kubernetes' label selector syntax.
    pub label_selector: String,
    /// Kubernetes' field selector syntax.
    pub field_selector: String,
    /// 0: the default.
    pub limit: usize,
    /// From the page before.
    pub continue_token: String,
    /// Answer from the local replica, however old.
    pub stale: bool,
    /// Pods: the network projection only.
    pub network: bool,
}

/// A page.
#[derive(Debug)]
pub struct Listed {
    /// In key order.
    pub items: Vec<Answer>,
    /// The revision of the whole list.
    pub revision: u64,
    /// Empty on the last page.
    pub continue_token: String,
}

impl Ops {
    /// One object.
    ///
    /// # Errors
    /// [`ApiError::NotFound`], [`ApiError::Forbidden`], [`ApiError::Unavailable`].
    pub async fn get(&self, caller: &Caller, target: &Target, stale: bool) -> Result<Answer, ApiError> {
        target.one()?;
        if !stale {
            self.backend().read_barrier().await?;
        }
        let rule = self.rule(caller, Verb::Get, target)?;
        let found = self.store().get(&target.key());
        let found = found.ok_or_else(|| ApiError::not_found(target.kind, &target.name))?;
        self.allows(caller, Verb::Get, target, &rule, &found)?;
        self.shown(&found, found.revision, rule == Rule::NetworkProjection)
    }

    /// An object as the caller may see it.
    pub(super) fn shown(&self, object: &Versioned, revision: u64, network: bool) -> Result<Answer, ApiError> {
        let json =
            if network { projection::network(object, revision)? } else { self.sealer().json_at(object, revision)? };
        let key = object.key.clone();
        Ok(Answer { key, revision, json, warnings: Vec::new(), effect: Effect::Unchanged })
    }

    /// Selectors of a List or Watch with what the caller's rule adds, and whether to project.
    pub(super) fn selection(
        &self,
        caller: &Caller,
        verb: Verb,
        target: &Target,
        (labels, fields, network): (&str, &str, bool),
    ) -> Result<(Rule, Selectors, bool), ApiError> {
        let rule = self.rule(caller, verb, target)?;
        if network && target.kind != Kind::Pod {
            return Err(ApiError::BadRequest("the network projection is of Pods only".into()));
        }
        if rule == Rule::NetworkProjection && !network {
            let why = "its role reads Pods in the network projection only";
            return Err(super::access::refuse(caller, verb, target, why));
        }
        let mut selectors = Selectors::parse(target.kind, labels, fields)?;
        match &rule {
            Rule::BoundTo(node) => selectors.force("spec.nodeName", node.clone()),
            Rule::Named(name) => selectors.force("metadata.name", name.clone()),
            _ => {}
        }
        if network {
            selectors.only_bound();
        }
        Ok((rule, selectors, network))
    }

    /// All objects of now that can match, where the store has an index of what is selected by: each
    /// agent asks for the Pods of its node, and there may be very many others.
    pub(super) fn looked_up(&self, target: &Target, selectors: &Selectors) -> Option<Page> {
        let (field, value) = selectors.looked_up()?;
        let namespace = (!target.namespace.is_empty()).then_some(target.namespace.as_str());
        self.store().list_by_field(target.kind.name(), namespace, field, value)
    }

    /// A page of objects; all pages are of one revision.
    ///
    /// # Errors
    /// [`ApiError::Expired`] when the token's revision is compacted, [`ApiError::BadRequest`]
    /// for selectors or tokens that cannot be read, [`ApiError::Forbidden`].
    pub async fn list(&self, caller: &Caller, target: &Target, args: &ListArgs) -> Result<Listed, ApiError> {
        let texts = (&*args.label_selector, &*args.field_selector, args.network);
        let (_, selectors, network) = self.selection(caller, Verb::List, target, texts)?;
        if !args.stale {
            self.backend().read_barrier().await?;
        }
        let (mut at, mut after) = match args.continue_token.as_str() {
            "" => (None, None),
            text => {
                let (revision, key) = continue_token::decode(target.kind, text)?;
                (Some(revision), Some(key))
            }
        };
        let limit = match args.limit {
            0 => DEFAULT_LIMIT,
            n => n.min(MAX_LIMIT),
        };
        let namespace = (!target.namespace.is_empty()).then_some(target.namespace.as_str());
        let (mut items, mut bytes) = (Vec::new(), 0);
        loop {
            let wanted = if selectors.is_everything() { limit - items.len() } else { CHUNK };
            let found = if at.is_none() { self.looked_up(target, &selectors) } else { None };
            let page = match found {
                Some(page) => page,
                None => self
                    .store()
                    .list(target.kind.name(), namespace, after.as_ref(), wanted, at)
                    .map_err(revision_error)?,
            };
            at = Some(page.revision);
            let last = page.items.len().saturating_sub(1);
            for (i, object) in page.items.iter().enumerate() {
                if !selectors.matches(target.kind, object, self.sealer()) {
                    continue;
                }
                let answer = self.shown(object, object.revision, network)?;
                bytes += answer.json.len();
                items.push(answer);
                if items.len() >= limit || bytes >= PAGE_BYTES {
                    let more = page.more || i < last;
                    return Ok(listed(items, page.revision, more.then_some(object)));
                }
            }
            match page.items.last() {
                Some(object) if page.more => after = Some(object.key.clone()),
                _ => return Ok(listed(items, page.revision, None)),
            }
        }
    }
}

fn listed(items: Vec<Answer>, revision: u64, last: Option<&Arc<Versioned>>) -> Listed {
    let continue_token = last.map(|object| continue_token::encode(revision, &object.key)).unwrap_or_default();
    Listed { items, revision, continue_token }
}

fn revision_error(e: RevisionError) -> ApiError {
    match e {
        RevisionError::Compacted { .. } => ApiError::Expired(e.to_string()),
        RevisionError::NotYet { .. } => ApiError::Unavailable { why: e.to_string(), leader: None },
    }
}
