//! The one cache of the leader: every object decoded once per change, shared by reference.
//!
//! It is always the state of exactly one revision, that of a transaction's end. Absence here
//! is therefore absence: what an owner reference names and the cache does not hold is gone.
//!
//! Costs: a change O(log objects) and one JSON decode; reads by name, owner or node O(log
//! objects + answers). Nothing is ever copied but `Arc`s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use trellis_model::Kind;

use super::meta::{meta_of, sealed_meta};
use super::object::{HasMeta, Item, ObjKey, controller_of};

pub use super::meta::{Meta, Owner};
pub use super::shelf::Shelf;
use crate::store::{Event, Key, Stored};

type Name = Arc<str>;

/// What an Event object needs for its retention.
pub type EventOrder = (i64, ObjKey);

/// One change, decoded.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which object.
    pub key: ObjKey,
    /// The kind's own view of it.
    pub body: Body,
    /// Its metadata before.
    pub old_meta: Option<Arc<Meta>>,
    /// Its metadata after; `None`: it is gone.
    pub new_meta: Option<Arc<Meta>>,
}

/// Old and new version of a changed object.
#[derive(Debug, Clone)]
pub enum Body {
    /// A Pod.
    Pod(Option<Arc<Item<Pod>>>, Option<Arc<Item<Pod>>>),
    /// A Node.
    Node(Option<Arc<Item<Node>>>, Option<Arc<Item<Node>>>),
    /// A Namespace.
    Namespace(Option<Arc<Item<Namespace>>>, Option<Arc<Item<Namespace>>>),
    /// A ReplicaSet.
    ReplicaSet(Option<Arc<Item<ReplicaSet>>>, Option<Arc<Item<ReplicaSet>>>),
    /// A Deployment.
    Deployment(Option<Arc<Item<Deployment>>>, Option<Arc<Item<Deployment>>>),
    /// Known by its metadata only.
    Other,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    revision: u64,
    /// All Pods.
    pub pods: Shelf<Pod>,
    /// All Nodes (namespace "").
    pub nodes: Shelf<Node>,
    /// All Namespaces (namespace "").
    pub namespaces: Shelf<Namespace>,
    /// All ReplicaSets.
    pub replica_sets: Shelf<ReplicaSet>,
    /// All Deployments.
    pub deployments: Shelf<Deployment>,
    /// Event objects, the oldest first.
    pub events: BTreeSet<EventOrder>,
    event_times: BTreeMap<ObjKey, i64>,
    metas: BTreeMap<ObjKey, Arc<Meta>>,
    uids: HashMap<Arc<str>, ObjKey>,
    dependents: HashMap<Arc<str>, BTreeSet<ObjKey>>,
    on_node: HashMap<Name, BTreeSet<(Name, Name)>>,
    /// Pods and ReplicaSets without a controller, by kind and namespace.
    uncontrolled: HashMap<(Kind, Name), BTreeSet<Name>>,
}

/// An object that cannot be read; the cache keeps what it had.
#[derive(Debug, thiserror::Error)]
#[error("{key} at revision {revision} cannot be decoded and is left out: {source}")]
pub struct CacheError {
    key: String,
    revision: u64,
    source: serde_json::Error,
}

impl Cache {
    /// The revision that this is the state of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Everything up to `revision` has been applied.
    pub fn set_revision(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Metadata of any object.
    pub fn meta(&self, key: &ObjKey) -> Option<&Arc<Meta>> {
        self.metas.get(key)
    }

    /// All objects of a namespace except Events, by kind. O(kinds · log n + answers).
    pub fn content_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjKey, &'a Arc<Meta>)> {
        Kind::ALL.into_iter().filter(|k| k.namespaced() && *k != Kind::Event).flat_map(move |kind| {
            let from = ObjKey::new(kind, namespace, "");
            self.metas.range(from..).take_while(move |(k, _)| k.kind == kind && *k.namespace == *namespace)
        })
    }

    /// The Events of a namespace. O(log n + answers).
    pub fn events_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ObjKey> {
        let from = ObjKey::new(Kind::Event, namespace, "");
        self.event_times.range(from..).map(|(k, _)| k).take_while(move |k| *k.namespace == *namespace)
    }

    /// Whether an object with this uid exists.
    pub fn uid_exists(&self, uid: &str) -> bool {
        self.uids.contains_key(uid)
    }

    /// Which object has this uid.
    pub fn key_of_uid(&self, uid: &str) -> Option<&ObjKey> {
        self.uids.get(uid)
    }

    /// The objects that name `uid` among their owners.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &ObjKey> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// The Pods that `uid` controls.
    pub fn pods_of(&self, uid: &str) -> Vec<Arc<Item<Pod>>> {
        self.controlled(uid, Kind::Pod)
            .filter_map(|k| self.pods.get(&k.namespace, &k.name).cloned())
            .filter(|p| owned_by(p, uid))
            .collect()
    }

    /// The ReplicaSets that `uid` controls.
    pub fn replica_sets_of(&self, uid: &str) -> Vec<Arc<Item<ReplicaSet>>> {
        self.controlled(uid, Kind::ReplicaSet)
            .filter_map(|k| self.replica_sets.get(&k.namespace, &k.name).cloned())
            .filter(|p| owned_by(p, uid))
            .collect()
    }

    /// The Pods bound to a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Item<Pod>>> {
        self.on_node.get(node).into_iter().flatten().filter_map(|(ns, name)| self.pods.get(ns, name))
    }

    /// Nodes that Pods are bound to, whether they exist or not.
    pub fn nodes_with_pods(&self) -> impl Iterator<Item = &Name> {
        self.on_node.keys()
    }

    /// Names of the Pods or ReplicaSets of a namespace that no controller manages.
    pub fn uncontrolled(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = &Name> {
        self.uncontrolled.get(&(kind, Arc::from(namespace))).into_iter().flatten()
    }

    /// Takes in one event of a watch. `Ok(None)`: not of interest here.
    pub fn apply(&mut self, event: &Event) -> Result<Option<Change>, CacheError> {
        match (&event.new, &event.old) {
            (Some(v), _) => self.put(&v.key, v.revision, Some(&v.object)),
            (None, Some(v)) => self.put(&v.key, event.revision, None),
            (None, None) => Ok(None),
        }
    }

    /// Puts or removes one object.
    pub fn put(&mut self, key: &Key, revision: u64, object: Option<&Stored>) -> Result<Option<Change>, CacheError> {
        let Ok(kind) = Kind::from_group_kind(&key.group, &key.kind) else { return Ok(None) };
        let okey = ObjKey::new(kind, key.namespace.as_str(), key.name.as_str());
        if kind == Kind::Event {
            return self.put_event(okey, revision, object);
        }
        let (body, meta) = match self.decode(&okey, revision, object) {
            Ok(done) => done,
            Err(source) => return Err(CacheError { key: okey.to_string(), revision, source }),
        };
        let new_meta = meta.map(Arc::new);
        let old_meta = self.index(&okey, new_meta.clone());
        if let Body::Pod(old, new) = &body {
            self.index_node(&okey, old.as_deref(), new.as_deref());
        }
        match &body {
            Body::Pod(_, new) => self.index_control(&okey, new.as_ref().map(|i| &i.object.metadata)),
            Body::ReplicaSet(_, new) => self.index_control(&okey, new.as_ref().map(|i| &i.object.metadata)),
            _ => {}
        }
        Ok(Some(Change { key: okey, body, old_meta, new_meta }))
    }

    fn decode(
        &mut self,
        key: &ObjKey,
        revision: u64,
        stored: Option<&Stored>,
    ) -> Result<(Body, Option<Meta>), serde_json::Error> {
        macro_rules! typed {
            ($shelf:ident, $body:ident) => {{
                let item: Option<Arc<Item<$body>>> = match stored {
                    Some(s) => Some(Arc::new(Item { revision, object: serde_json::from_slice(&s.json)? })),
                    None => None,
                };
                let meta = item.as_ref().map(|i| meta_of(revision, i.object.meta()));
                (Body::$body(self.$shelf.put(key, item.clone()), item), meta)
            }};
        }
        Ok(match key.kind {
            Kind::Pod => typed!(pods, Pod),
            Kind::Node => typed!(nodes, Node),
            Kind::Namespace => typed!(namespaces, Namespace),
            Kind::ReplicaSet => typed!(replica_sets, ReplicaSet),
            Kind::Deployment => typed!(deployments, Deployment),
            Kind::ConfigMap | Kind::Secret | Kind::NetworkPolicy | Kind::Event => {
                let meta = match stored {
                    Some(s) if s.sealed => Some(sealed_meta(revision, s)),
                    Some(s) => {
                        #[derive(serde::Deserialize)]
                        struct OnlyMeta {
                            metadata: ObjectMeta,
                        }
                        let only: OnlyMeta = serde_json::from_slice(&s.json)?;
                        Some(meta_of(revision, &only.metadata))
                    }
                    None => None,
                };
                (Body::Other, meta)
            }
        })
    }

    fn put_event(&mut self, key: ObjKey, revision: u64, object: Option<&Stored>) -> Result<Option<Change>, CacheError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Times {
            metadata: ObjectMeta,
            last_timestamp: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
        }
        if let Some(at) = self.event_times.remove(&key) {
            self.events.remove(&(at, key.clone()));
        }
        let Some(stored) = object else { return Ok(None) };
        let times: Times = serde_json::from_slice(&stored.json).map_err(|source| CacheError {
            key: key.to_string(),
            revision,
            source,
        })?;
        let at = times.last_timestamp.or(times.metadata.creation_timestamp).map_or(0, |t| t.0.as_second());
        self.event_times.insert(key.clone(), at);
        self.events.insert((at, key));
        Ok(None)
    }

    fn index(&mut self, key: &ObjKey, new: Option<Arc<Meta>>) -> Option<Arc<Meta>> {
        let old = match &new {
            Some(meta) => self.metas.insert(key.clone(), meta.clone()),
            None => self.metas.remove(key),
        };
        if let Some(old) = &old {
            if new.as_ref().is_none_or(|n| n.uid != old.uid) {
                self.uids.remove(&old.uid);
            }
            for owner in &old.owners {
                if let Some(set) = self.dependents.get_mut(&owner.uid) {
                    set.remove(key);
                    if set.is_empty() {
                        self.dependents.remove(&owner.uid);
                    }
                }
            }
        }
        if let Some(meta) = &new {
            self.uids.insert(meta.uid.clone(), key.clone());
            for owner in &meta.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(key.clone());
            }
        }
        old
    }

    fn index_node(&mut self, key: &ObjKey, old: Option<&Item<Pod>>, new: Option<&Item<Pod>>) {
        let (before, after) = (old.and_then(node_of), new.and_then(node_of));
        if before == after {
            return;
        }
        let pair = (key.namespace.clone(), key.name.clone());
        if let Some(node) = before
            && let Some(set) = self.on_node.get_mut(node)
        {
            set.remove(&pair);
            if set.is_empty() {
                self.on_node.remove(node);
            }
        }
        if let Some(node) = after {
            self.on_node.entry(Arc::from(node)).or_default().insert(pair);
        }
    }

    fn index_control(&mut self, key: &ObjKey, meta: Option<&ObjectMeta>) {
        let at = (key.kind, key.namespace.clone());
        if meta.is_some_and(|m| controller_of(m).is_none()) {
            self.uncontrolled.entry(at).or_default().insert(key.name.clone());
        } else if let Some(set) = self.uncontrolled.get_mut(&at) {
            set.remove(&key.name);
            if set.is_empty() {
                self.uncontrolled.remove(&at);
            }
        }
    }

    fn controlled(&self, uid: &str, kind: Kind) -> impl Iterator<Item = &ObjKey> {
        self.dependents(uid).filter(move |k| k.kind == kind)
    }
}

fn owned_by<T: HasMeta>(item: &Item<T>, uid: &str) -> bool {
    item.controller().is_some_and(|c| c.uid == uid)
}

/// The node a Pod is bound to.
pub fn node_of(pod: &Item<Pod>) -> Option<&str> {
    pod.object.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}
