//! Namespace termination: everything in a terminating Namespace is deleted, then it goes itself.
//! Nothing is created behind its back: each creation checks the Namespace's revision.
//!
//! Cost of a plan: O(objects in it), in transactions of at most [`BURST`].

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use trellis_model::Object;

use super::cache::Cache;
use super::gc;
use super::object::{Item, Now, Plan, Write};

/// Objects deleted in one transaction.
pub const BURST: usize = 250;

/// Plans the next step of a Namespace that is to go.
pub fn plan(cache: &Cache, namespace: &Arc<Item<Namespace>>, now: &Now) -> Plan {
    let mut plan = Plan::default();
    if !namespace.deleting() {
        return plan;
    }
    let mut left = 0;
    for (key, meta) in cache.content_of(namespace.name()) {
        left += 1;
        if plan.writes.len() == BURST {
            break;
        }
        plan.writes.extend(gc::delete(cache, key, meta, now));
    }
    if left > 0 {
        return plan;
    }
    // Events do not keep a Namespace: they go in the transaction after it is empty.
    let events = cache.events_of(namespace.name()).take(BURST);
    plan.writes.extend(events.map(|key| Write::Delete { key: key.clone(), uid: String::new(), revision: None }));
    if plan.writes.is_empty() && !held_by_others(namespace) {
        plan.writes.push(finalize(namespace));
    }
    plan
}

/// Its own finalizer is taken out already: whose the others are takes them out, or nobody does.
fn held_by_others(namespace: &Item<Namespace>) -> bool {
    let own = namespace.object.spec.as_ref().and_then(|s| s.finalizers.as_ref());
    let others = namespace.object.metadata.finalizers.as_ref();
    own.is_none_or(Vec::is_empty) && others.is_some_and(|f| !f.is_empty())
}

/// Takes the `kubernetes` finalizer from spec; without others the Namespace is gone with it.
fn finalize(namespace: &Item<Namespace>) -> Write {
    let mut object = namespace.object.clone();
    object.spec.get_or_insert_default().finalizers = None;
    Write::Update { object: Object::Namespace(Box::new(object)), revision: namespace.revision }
}
