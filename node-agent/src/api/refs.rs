//! ConfigMaps and Secrets that Pods of this node refer to: each fetched once however many Pods ask,
//! followed while somebody holds it, forgotten after. What is not known yet is never taken for
//! absent.
use super::{
    ApiError, get, key,
    watch::{Item, follow},
};
use crate::runtime::spec::env::{RefKind, Refs};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use trellis_proto::client::Connection;

/// How long a Pod waits for an object before it says so.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// Where following is refused, the object is asked for this often.
const POLL_EVERY: Duration = Duration::from_secs(10);
/// Between two tries of the first fetch.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// An object, as far as it is known.
#[derive(Clone, Debug, Default)]
pub enum Known {
    /// Nobody has answered yet.
    #[default]
    Unknown,
    /// It does not exist.
    Absent,
    /// A ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// A Secret.
    Secret(Arc<Secret>),
}

type Id = (RefKind, String, String);

/// All objects followed now.
#[derive(Debug)]
pub struct RefCache {
    conn: Connection,
    followed: Mutex<HashMap<Id, watch::Receiver<Known>>>,
}

/// The objects one Pod needs; while it lives they are followed.
#[derive(Debug)]
pub struct Held {
    all: Vec<(RefKind, String, watch::Receiver<Known>)>,
}

impl RefCache {
    /// An empty cache.
    pub fn new(conn: Connection) -> Arc<Self> {
        Arc::new(Self { conn, followed: Mutex::default() })
    }

    /// Begins to follow objects of a namespace.
    pub fn hold(self: &Arc<Self>, namespace: &str, wanted: BTreeSet<(RefKind, String)>) -> Held {
        let all = wanted.into_iter().map(|(kind, name)| {
            let receiver = self.one((kind, namespace.to_owned(), name.clone()));
            (kind, name, receiver)
        });
        Held { all: all.collect() }
    }

    fn one(self: &Arc<Self>, id: Id) -> watch::Receiver<Known> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = followed.get(&id)
            && receiver.has_changed().is_ok()
        {
            return receiver.clone();
        }
        let (tx, rx) = watch::channel(Known::Unknown);
        // The map's own receiver would keep the channel open for ever: the task compares counts.
        followed.insert(id.clone(), rx.clone());
        let cache = Arc::clone(self);
        tokio::spawn(async move { cache.run(id, tx).await });
        rx
    }

    async fn run(self: Arc<Self>, id: Id, tx: watch::Sender<Known>) {
        let unused = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
                // Only the map's receiver is left.
                if tx.receiver_count() <= 1 {
                    followed.remove(&id);
                    return;
                }
            }
        };
        let keep = async {
            match id.0 {
                RefKind::ConfigMap => self.keep::<ConfigMap>(&id, &tx, Known::ConfigMap).await,
                RefKind::Secret => self.keep::<Secret>(&id, &tx, Known::Secret).await,
            }
        };
        tokio::select! {
            () = unused => {}
            () = keep => {}
        }
    }

    async fn keep<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        id: &Id,
        tx: &watch::Sender<Known>,
        wrap: fn(Arc<T>) -> Known,
    ) {
        let object = key(id.0.word(), &id.1, &id.2);
        loop {
            match get::<T>(&self.conn, &object).await {
                Ok(value) => drop(tx.send_replace(wrap(Arc::new(value)))),
                Err(ApiError::NotFound(_)) => drop(tx.send_replace(Known::Absent)),
                Err(error) => {
                    tracing::warn!(%error, "cannot fetch what a Pod refers to");
                    tokio::time::sleep(RETRY_EVERY).await;
                    continue;
                }
            }
            let (items, mut news) = mpsc::channel(8);
            let follow = follow::<T>(self.conn.clone(), object.clone(), String::new(), items);
            let publish = async {
                let mut seen = false;
                while let Some(item) = news.recv().await {
                    match item {
                        Item::Relist => seen = false,
                        Item::Present(value) => {
                            seen = true;
                            tx.send_replace(wrap(Arc::new(value)));
                        }
                        Item::Synced if seen => {}
                        Item::Synced | Item::Gone(_) => drop(tx.send_replace(Known::Absent)),
                    }
                }
            };
            let (end, ()) = tokio::join!(follow, publish);
            if let Err(error) = end {
                tracing::debug!(%error, "asking now and then instead");
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

impl Held {
    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The objects, once all are known; `Err` names the first that stays unknown.
    pub async fn get(&mut self) -> Result<Refs, String> {
        let known = async {
            for (kind, name, receiver) in &mut self.all {
                let unknown = receiver.wait_for(|k| !matches!(k, Known::Unknown)).await.is_err();
                if unknown {
                    return Err(format!("{} \"{name}\" is not followed any more", kind.word()));
                }
            }
            Ok(())
        };
        match tokio::time::timeout(KNOWN_WITHIN, known).await {
            Ok(result) => result?,
            Err(_) => return Err("timed out: the control plane does not answer".into()),
        }
        Ok(self.snapshot())
    }

    /// What is known now.
    fn snapshot(&mut self) -> Refs {
        let mut refs = Refs::default();
        for (_, name, receiver) in &mut self.all {
            match receiver.borrow_and_update().clone() {
                Known::ConfigMap(cm) => drop(refs.config_maps.insert(name.clone(), cm)),
                Known::Secret(s) => drop(refs.secrets.insert(name.clone(), s)),
                Known::Unknown | Known::Absent => {}
            }
        }
        refs
    }

    /// Waits until one of them changes, then gives all; `None` when they are not followed any more.
    pub async fn changed(&mut self) -> Option<Refs> {
        if self.all.is_empty() {
            return std::future::pending().await;
        }
        let changes = self.all.iter_mut().map(|(.., receiver)| Box::pin(receiver.changed()));
        let (first, ..) = futures::future::select_all(changes).await;
        first.ok()?;
        Some(self.snapshot())
    }
}
