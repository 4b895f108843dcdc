//! The objects by key, and by the few fields that are looked up all the time.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::{Key, Versioned};

/// Fields of [`Index::fields`](super::Index::fields) that can be looked up by value.
/// spec.nodeName: the Pods of a node, asked by each agent and on each node's death.
pub const INDEXED_FIELDS: &[&str] = &["spec.nodeName"];

/// An object ordered by its key: one copy of the key serves every set it is in.
#[derive(Debug, Clone)]
pub(super) struct ByKey(pub Arc<Versioned>);

impl Borrow<Key> for ByKey {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}
impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}
impl Eq for ByKey {}
impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}
impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

type Lookup = BTreeMap<String, BTreeSet<ByKey>>;

/// All live objects.
#[derive(Debug, Default)]
pub(super) struct Objects {
    all: BTreeSet<ByKey>,
    by_owner: Lookup,
    by_field: BTreeMap<&'static str, Lookup>,
    /// Sum of [`Versioned::weight`].
    bytes: usize,
}

impl Objects {
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Versioned>> {
        self.all.get(key).map(|o| &o.0)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Versioned>> {
        self.all.iter().map(|o| &o.0)
    }

    /// Objects after `from` in key order.
    pub(super) fn after(&self, from: Bound<&Key>) -> impl Iterator<Item = &Arc<Versioned>> {
        self.all.range::<Key, _>((from, Bound::Unbounded)).map(|o| &o.0)
    }

    /// Puts a new version in place of the old one, which is answered.
    pub(super) fn put(&mut self, object: Arc<Versioned>) -> Option<Arc<Versioned>> {
        self.bytes += object.weight();
        let old = self.all.replace(ByKey(object.clone())).map(|o| o.0);
        if let Some(old) = &old {
            self.forget(old);
        }
        for owner in &object.object.index.owners {
            insert(&mut self.by_owner, owner, &object);
        }
        for field in INDEXED_FIELDS {
            if let Some(value) = object.object.index.field(field)
                && !value.is_empty()
            {
                insert(self.by_field.entry(field).or_default(), value, &object);
            }
        }
        old
    }

    /// Removes an object, which is answered.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Versioned>> {
        let old = self.all.take(key)?.0;
        self.forget(&old);
        Some(old)
    }

    /// Takes a version out of the lookups and the sum.
    fn forget(&mut self, old: &Versioned) {
        for owner in &old.object.index.owners {
            remove(&mut self.by_owner, owner, &old.key);
        }
        for field in INDEXED_FIELDS {
            if let Some(value) = old.object.index.field(field)
                && let Some(lookup) = self.by_field.get_mut(field)
            {
                remove(lookup, value, &old.key);
            }
        }
        self.bytes -= old.weight();
    }

    /// Objects with this owner, of any kind, in key order.
    pub(super) fn by_owner(&self, uid: &str) -> Vec<Arc<Versioned>> {
        collect(self.by_owner.get(uid), None)
    }

    /// Objects of a kind whose indexed field has this value; `None`: not an indexed field.
    pub(super) fn by_field(&self, kind: &str, f: &str, value: &str) -> Option<Vec<Arc<Versioned>>> {
        let field = INDEXED_FIELDS.iter().find(|known| **known == f)?;
        let set = self.by_field.get(field).and_then(|l| l.get(value));
        Some(collect(set, Some(kind)))
    }
}

fn insert(lookup: &mut Lookup, value: &str, object: &Arc<Versioned>) {
    if let Some(set) = lookup.get_mut(value) {
        set.insert(ByKey(object.clone()));
    } else {
        lookup.insert(value.to_string(), BTreeSet::from([ByKey(object.clone())]));
    }
}

fn remove(lookup: &mut Lookup, value: &str, key: &Key) {
    if let Some(set) = lookup.get_mut(value) {
        set.remove(key);
        if set.is_empty() {
            lookup.remove(value);
        }
    }
}

fn collect(set: Option<&BTreeSet<ByKey>>, kind: Option<&str>) -> Vec<Arc<Versioned>> {
    set.into_iter().flatten().map(|o| &o.0).filter(|o| kind.is_none_or(|k| o.key.kind == k)).cloned().collect()
}
