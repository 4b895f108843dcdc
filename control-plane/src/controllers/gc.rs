//! Garbage collection along ownerReferences.
//!
//! - background: an object all of whose owners are gone is deleted; one that has other owners
//!   left only loses the dangling references;
//! - orphan: an owner that is deleted with the finalizer `orphan` first has the references to it
//!   taken out of its dependents;
//! - foreground: an owner with the finalizer `foregroundDeletion` goes after the dependents that
//!   block it.
//!
//! The cache is the state of one revision, so an owner that is not in it does not exist: no
//! second look at the store is needed, unlike in Kubernetes. An owner of a kind that is not
//! served counts as existing.
//!
//! Cost of a plan: O(owners + dependents of the object).

use std::sync::Arc;

use trellis_model::Kind;

use super::cache::{Cache, Meta};
use super::object::{MetaEdit, Now, ObjKey, Plan, Write};
use super::pods;

/// Kubernetes' finalizer of `--cascade=orphan`.
pub const ORPHAN: &str = "orphan";
/// Kubernetes' finalizer of `--cascade=foreground`.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Dependents changed in one transaction.
const BURST: usize = 250;

/// Plans what garbage collection does about one object, as owner and as dependent.
pub fn plan(cache: &Cache, key: &ObjKey, now: &Now) -> Plan {
    let Some(meta) = cache.meta(key) else { return Plan::default() };
    let has = |f: &str| meta.deleting && meta.finalizers.iter().any(|x| x == f);
    if has(ORPHAN) {
        return orphan(cache, key, meta);
    }
    if has(FOREGROUND) {
        return foreground(cache, key, meta, now);
    }
    as_dependent(cache, key, meta, now)
}

/// Whether a change of this object may give garbage collection something to do.
pub fn concerns(meta: &Meta) -> bool {
    meta.deleting || !meta.owners.is_empty()
}

fn as_dependent(cache: &Cache, key: &ObjKey, meta: &Arc<Meta>, now: &Now) -> Plan {
    let mut plan = Plan::default();
    let gone = |uid: &str| !cache.uid_exists(uid);
    let (dangling, solid): (Vec<_>, Vec<_>) = meta.owners.iter().partition(|o| o.served && gone(&o.uid));
    if meta.deleting || dangling.is_empty() {
        return plan;
    }
    if solid.is_empty() {
        plan.writes.extend(delete(cache, key, meta, now));
    } else if !meta.sealed {
        let drop_owners = dangling.iter().map(|o| o.uid.to_string()).collect();
        let edit = MetaEdit { drop_owners, drop_finalizer: None };
        plan.writes.push(Write::EditMeta { key: key.clone(), revision: meta.revision, edit });
    }
    plan
}

fn orphan(cache: &Cache, key: &ObjKey, meta: &Arc<Meta>) -> Plan {
    let mut plan = Plan::default();
    for dependent in cache.dependents(&meta.uid).take(BURST) {
        let Some(m) = cache.meta(dependent) else { continue };
        let edit = MetaEdit { drop_owners: vec![meta.uid.to_string()], drop_finalizer: None };
        plan.writes.push(Write::EditMeta { key: dependent.clone(), revision: m.revision, edit });
    }
    if plan.writes.is_empty() {
        plan.writes.push(drop_finalizer(key, meta, ORPHAN));
    }
    plan
}

fn foreground(cache: &Cache, key: &ObjKey, meta: &Arc<Meta>, now: &Now) -> Plan {
    let mut plan = Plan::default();
    let mut blocked = false;
    for dependent in cache.dependents(&meta.uid) {
        let Some(m) = cache.meta(dependent) else { continue };
        blocked |= m.owners.iter().any(|o| o.uid == meta.uid && o.blocks);
        if !m.deleting && plan.writes.len() < BURST {
            plan.writes.extend(delete(cache, dependent, m, now));
        }
    }
    if plan.writes.is_empty() && !blocked {
        plan.writes.push(drop_finalizer(key, meta, FOREGROUND));
    }
    plan
}

fn drop_finalizer(key: &ObjKey, meta: &Meta, finalizer: &str) -> Write {
    let edit = MetaEdit { drop_owners: Vec::new(), drop_finalizer: Some(finalizer.to_owned()) };
    Write::EditMeta { key: key.clone(), revision: meta.revision, edit }
}

/// The write that deletes an object as the API's background deletion would.
pub fn delete(cache: &Cache, key: &ObjKey, meta: &Meta, now: &Now) -> Option<Write> {
    if meta.deleting {
        return None;
    }
    if key.kind == Kind::Pod {
        return cache.pods.get(&key.namespace, &key.name).and_then(|p| pods::delete(p, now));
    }
    let (uid, revision) = (meta.uid.to_string(), Some(meta.revision));
    if meta.finalizers.is_empty() {
        return Some(Write::Delete { key: key.clone(), uid, revision });
    }
    Some(Write::Terminate { key: key.clone(), revision: meta.revision })
}
