//! Objects of one kind, by namespace and name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::{Item, ObjKey};

type Name = Arc<str>;

/// Objects of one kind by namespace and name.
#[derive(Debug)]
pub struct Shelf<T> {
    items: BTreeMap<Name, BTreeMap<Name, Arc<Item<T>>>>,
    len: usize,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), len: 0 }
    }
}

impl<T> Shelf<T> {
    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Item<T>>> {
        self.items.get(namespace)?.get(name)
    }

    /// All of one namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Item<T>>> {
        self.items.get(namespace).into_iter().flat_map(|m| m.values())
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Item<T>>> {
        self.items.values().flat_map(|m| m.values())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn put(&mut self, key: &ObjKey, item: Option<Arc<Item<T>>>) -> Option<Arc<Item<T>>> {
        let old = match item {
            Some(item) => self.items.entry(key.namespace.clone()).or_default().insert(key.name.clone(), item.clone()),
            None => {
                let space = self.items.get_mut(&key.namespace)?;
                let old = space.remove(&key.name);
                if space.is_empty() {
                    self.items.remove(&key.namespace);
                }
                self.len -= usize::from(old.is_some());
                return old;
            }
        };
        self.len += usize::from(old.is_none());
        old
    }
}
