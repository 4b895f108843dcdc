//! Watch: every change after a revision, once, in order. A stream is pulled: nothing is queued
//! for a slow client but one batch of pointers, and one that falls behind the store's bounded
//! history is told so.
//!
//! A change is told as seen through the selectors: an object that begins to match is ADDED, one
//! that ceases to is DELETED.
//!
//! One watch may follow several kinds: one cursor on the shared history, so that their changes come
//! in the order of their revisions, and begin at one revision.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use trellis_model::Kind;

use super::encode::Selectors;
use super::{Answer, ApiError, Ops, Target, projection};
use crate::auth::{Caller, Rule, Verb};
use crate::store::{Event, Key, Versioned, WatchFilter, Watcher};

/// A quiet stream says at least this often how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);
/// Sooner where changes were left out because the client may not, or need not, see them: it
/// waits to say that it has acted on everything up to there.
const BOOKMARK_AFTER_HIDDEN: Duration = Duration::from_millis(500);
/// Kinds in one watch: there are not many more, and each change is held against each.
const MAX_KINDS: usize = 8;

/// What a Watch asks for besides its target.
#[derive(Debug, Clone, Default)]
pub struct WatchArgs {
    /// Kubernetes' label selector syntax.
    pub label_selector: String,
    /// Kubernetes' field selector syntax.
    pub field_selector: String,
    /// 0: everything there is first.
    pub from_revision: u64,
    /// Pods: the network projection only.
    pub network: bool,
    /// Other kinds to follow in the same stream.
    pub also: Vec<Target>,
}

/// What happened to an object, as seen through the selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchKind {
    /// It is there, or begins to match.
    Added,
    /// It changed.
    Modified,
    /// It went, or ceases to match.
    Deleted,
}

/// One message of a watch.
#[derive(Debug, Clone)]
pub enum WatchItem {
    /// A change; the answer's revision is the change's.
    Change(WatchKind, Answer),
    /// Everything up to this revision was told.
    Bookmark(u64),
}

enum Pending {
    Existing(Arc<Versioned>),
    Change(Event),
    Bookmark(u64),
}

/// One kind as this caller sees it.
struct Sight {
    target: Target,
    rule: Rule,
    selectors: Selectors,
    network: bool,
}

/// A running watch.
pub struct WatchStream {
    ops: Ops,
    caller: Caller,
    /// Each kind once, in no order that counts.
    sights: Vec<Sight>,
    watcher: Watcher,
    pending: VecDeque<Pending>,
    /// What the client was last told it is at.
    told: u64,
}

impl Ops {
    /// Starts a watch.
    ///
    /// # Errors
    /// [`ApiError::Expired`] when the revision is compacted, [`ApiError::Forbidden`],
    /// [`ApiError::BadRequest`], [`ApiError::Unavailable`].
    pub async fn watch(&self, caller: &Caller, target: &Target, args: &WatchArgs) -> Result<WatchStream, ApiError> {
        if args.from_revision == 0 {
            self.backend().read_barrier().await?;
        }
        let sights = self.sights(caller, target, args)?;
        let filter = match sights.as_slice() {
            [only] => filter(&only.target, &only.selectors),
            several => WatchFilter::kinds(several.iter().map(|sight| sight.target.kind.name())),
        };
        let (pending, watcher) = if args.from_revision == 0 {
            self.begin(&sights, filter)?
        } else {
            (VecDeque::new(), self.store().watch(filter, args.from_revision)?)
        };
        let told = watcher.cursor();
        Ok(WatchStream { ops: self.clone(), caller: caller.clone(), sights, watcher, pending, told })
    }

    /// What is watched: the target alone, seen through the selectors, or several kinds whole.
    fn sights(&self, caller: &Caller, target: &Target, args: &WatchArgs) -> Result<Vec<Sight>, ApiError> {
        let alone = args.also.is_empty();
        let selected = !(args.label_selector.is_empty() && args.field_selector.is_empty());
        let narrow = |t: &Target| !(t.namespace.is_empty() && t.name.is_empty());
        let all = || std::iter::once(target).chain(&args.also);
        if !alone && (selected || all().any(narrow)) {
            let why = "a watch of several kinds takes no selectors, namespaces or names";
            return Err(ApiError::BadRequest(why.into()));
        }
        if args.also.len() >= MAX_KINDS {
            let why = format!("a watch of {} kinds: {MAX_KINDS} are the limit", args.also.len() + 1);
            return Err(ApiError::BadRequest(why));
        }
        let mut sights: Vec<Sight> = Vec::with_capacity(1 + args.also.len());
        for target in all() {
            if sights.iter().any(|sight| sight.target.kind == target.kind) {
                return Err(ApiError::BadRequest(format!("a watch names {} twice", target.kind.name())));
            }
            let network = args.network && (alone || target.kind == Kind::Pod);
            let texts = (&*args.label_selector, &*args.field_selector, network);
            let (rule, selectors, network) = self.selection(caller, Verb::Watch, target, texts)?;
            sights.push(Sight { target: target.clone(), rule, selectors, network });
        }
        Ok(sights)
    }

    /// Everything there is, then a bookmark, and a watcher from there.
    fn begin(&self, sights: &[Sight], filter: WatchFilter) -> Result<(VecDeque<Pending>, Watcher), ApiError> {
        let (items, revision) = match sights {
            [only] => self.begin_one(only)?,
            several => {
                let kinds: Vec<&str> = several.iter().map(|sight| sight.target.kind.name()).collect();
                let (lists, revision) = self.store().list_kinds(&kinds);
                (lists.into_iter().flatten().collect(), revision)
            }
        };
        let watcher = self.store().watch(filter.clone(), revision)?;
        let seen = |o: &Arc<Versioned>| {
            filter.matches(o) && sight_of(sights, &o.key).is_some_and(|sight| sight.shows(o, self))
        };
        let mut pending: VecDeque<_> = items.into_iter().filter(seen).map(Pending::Existing).collect();
        pending.push_back(Pending::Bookmark(revision));
        Ok((pending, watcher))
    }

    fn begin_one(&self, sight: &Sight) -> Result<(Vec<Arc<Versioned>>, u64), ApiError> {
        let target = &sight.target;
        let namespace = (!target.namespace.is_empty()).then_some(target.namespace.as_str());
        let page = match self.looked_up(target, &sight.selectors) {
            Some(page) => page,
            None => self
                .store()
                .list(target.kind.name(), namespace, None, 0, None)
                .map_err(|e| ApiError::Expired(e.to_string()))?,
        };
        Ok((page.items, page.revision))
    }
}

fn sight_of<'s>(sights: &'s [Sight], key: &Key) -> Option<&'s Sight> {
    sights.iter().find(|sight| sight.target.kind.name() == key.kind)
}

impl Sight {
    fn shows(&self, object: &Versioned, ops: &Ops) -> bool {
        self.contains(&object.key) && self.selectors.matches(self.target.kind, object, ops.sealer())
    }

    fn contains(&self, key: &Key) -> bool {
        let Target { namespace, name, .. } = &self.target;
        (namespace.is_empty() || key.namespace == *namespace) && (name.is_empty() || key.name == *name)
    }
}

/// What the store itself can leave out.
fn filter(target: &Target, selectors: &Selectors) -> WatchFilter {
    let mut filter = WatchFilter::kind(target.kind.name());
    if !target.namespace.is_empty() {
        filter.namespace = Some(target.namespace.clone());
    }
    let pinned = selectors.required("metadata.name").map(str::to_owned);
    filter.name = if target.name.is_empty() { pinned } else { Some(target.name.clone()) };
    filter.field = crate::store::INDEXED_FIELDS
        .iter()
        .find_map(|f| selectors.required(f).map(|v| ((*f).to_owned(), v.to_owned())));
    filter
}

impl WatchStream {
    /// The next message. After an error the watch is over. Safe to cancel.
    ///
    /// # Errors
    /// [`ApiError::Expired`] when the client has fallen behind the history,
    /// [`ApiError::Forbidden`] when it may no longer see what it watches.
    pub async fn next(&mut self) -> Result<WatchItem, ApiError> {
        loop {
            while let Some(pending) = self.pending.pop_front() {
                if let Some(item) = self.item(pending)? {
                    return Ok(item);
                }
            }
            let behind = self.watcher.cursor() > self.told;
            let patience = if behind { BOOKMARK_AFTER_HIDDEN } else { BOOKMARK_EVERY };
            let batch = match tokio::time::timeout(patience, self.watcher.next()).await {
                Ok(batch) => batch?,
                Err(_) => {
                    // Silence may be this member's alone, cut off from the others: then the watch
                    // ends here, and goes on at a member that hears of changes.
                    if !behind {
                        self.ops.backend().read_barrier().await?;
                    }
                    self.watcher.poll()?
                }
            };
            if batch.events.is_empty() {
                self.told = batch.revision;
                return Ok(WatchItem::Bookmark(batch.revision));
            }
            self.pending.extend(batch.events.into_iter().map(Pending::Change));
        }
    }

    fn item(&mut self, pending: Pending) -> Result<Option<WatchItem>, ApiError> {
        let event = match pending {
            Pending::Existing(object) => {
                let Some(sight) = sight_of(&self.sights, &object.key) else { return Ok(None) };
                return self.change(sight, WatchKind::Added, &object, object.revision).map(Some);
            }
            Pending::Bookmark(revision) => {
                self.told = revision;
                return Ok(Some(WatchItem::Bookmark(revision)));
            }
            Pending::Change(event) => event,
        };
        let Some(sight) = event.key().and_then(|key| sight_of(&self.sights, key)) else { return Ok(None) };
        let seen = |v: &Option<Arc<Versioned>>| v.clone().filter(|v| sight.shows(v, &self.ops));
        let (old, new) = (seen(&event.old), seen(&event.new));
        match (old, new) {
            (None, None) => Ok(None),
            (None, Some(new)) => self.change(sight, WatchKind::Added, &new, event.revision).map(Some),
            (Some(old), None) => {
                // The last state that the client may know of, at the revision of its going.
                self.change(sight, WatchKind::Deleted, &old, event.revision).map(Some)
            }
            (Some(old), Some(new)) => {
                // A netd need not hear of what it cannot see.
                if sight.network && projection::network(&old, 0)? == projection::network(&new, 0)? {
                    return Ok(None);
                }
                self.change(sight, WatchKind::Modified, &new, event.revision).map(Some)
            }
        }
    }

    fn change(&self, sight: &Sight, kind: WatchKind, object: &Versioned, revision: u64) -> Result<WatchItem, ApiError> {
        if matches!(sight.rule, Rule::ReferencedOn(_)) {
            // The Pod that referred to it may be gone by now.
            self.ops.rule(&self.caller, Verb::Watch, &sight.target)?;
        }
        let answer = self.ops.shown(object, revision, sight.network)?;
        Ok(WatchItem::Change(kind, answer))
    }
}
