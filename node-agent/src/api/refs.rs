//! ConfigMaps and Secrets that Pods of this node refer to: each fetched once however many Pods ask,
//! followed while somebody holds it, forgotten after. What is not known yet is never taken for
//! absent. When the control plane is silent, an object stands as it was kept on disk.
use super::{
    ApiError, get,
    kept::{Id, Kept},
    key,
    watch::{Item, follow},
};
use crate::runtime::spec::env::{RefKind, Refs};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tonic::Code;
use trellis_proto::client::Connection;

/// How long a Pod waits for an object before it says so.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// Where following is refused, the object is asked for this often.
const POLL_EVERY: Duration = Duration::from_secs(10);
/// Between two tries of the first fetch.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// A member answers in milliseconds; after this the object stands as it was last acted on.
const KEPT_AFTER: Duration = Duration::from_secs(2);

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

/// All objects followed now.
#[derive(Debug)]
pub struct RefCache {
    conn: Connection,
    kept: Arc<Kept>,
    followed: Mutex<HashMap<Id, watch::Receiver<Known>>>,
}

/// The objects one Pod needs; while it lives they are followed.
#[derive(Debug)]
pub struct Held {
    all: Vec<(RefKind, String, watch::Receiver<Known>)>,
}

impl RefCache {
    /// An empty cache before what is kept on disk.
    pub fn new(conn: Connection, kept: Kept) -> Arc<Self> {
        Arc::new(Self { conn, kept: Arc::new(kept), followed: Mutex::default() })
    }

    /// What is kept for Pods that start without the control plane.
    pub fn kept(&self) -> &Arc<Kept> {
        &self.kept
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
        let refused = AtomicBool::new(false);
        let keep = async {
            match id.0 {
                RefKind::ConfigMap => self.keep::<ConfigMap>(&id, &tx, &refused, Known::ConfigMap).await,
                RefKind::Secret => self.keep::<Secret>(&id, &tx, &refused, Known::Secret).await,
            }
        };
        let silence = async {
            match id.0 {
                RefKind::ConfigMap => self.fall_back::<ConfigMap>(&id, &tx, &refused, Known::ConfigMap).await,
                RefKind::Secret => self.fall_back::<Secret>(&id, &tx, &refused, Known::Secret).await,
            }
            std::future::pending().await
        };
        tokio::select! {
            () = unused => {}
            () = keep => {}
            () = silence => {}
        }
    }

    async fn keep<T: Serialize + DeserializeOwned + Send + Sync + 'static>(
        &self,
        id: &Id,
        tx: &watch::Sender<Known>,
        refused: &AtomicBool,
        wrap: fn(Arc<T>) -> Known,
    ) {
        let object = key(id.0.word(), &id.1, &id.2);
        loop {
            match get::<T>(&self.conn, &object).await {
                Ok(value) => self.present(id, tx, Arc::new(value), wrap).await,
                Err(ApiError::NotFound(_)) => self.absent(id, tx).await,
                Err(error) => {
                    let forbidden =
                        matches!(&error, ApiError::Call { status, .. } if status.code() == Code::PermissionDenied);
                    refused.store(forbidden, Ordering::Relaxed);
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
                            self.present(id, tx, Arc::new(value), wrap).await;
                        }
                        Item::Synced if seen => {}
                        Item::Synced | Item::Gone(_) => self.absent(id, tx).await,
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

    /// On disk first: who acts on it may lose the power the moment after.
    async fn present<T: Serialize + Send + Sync + 'static>(
        &self,
        id: &Id,
        tx: &watch::Sender<Known>,
        value: Arc<T>,
        wrap: fn(Arc<T>) -> Known,
    ) {
        if self.kept.is_pinned(id) {
            let (kept, id, value) = (Arc::clone(&self.kept), id.clone(), Arc::clone(&value));
            let saved = tokio::task::spawn_blocking(move || kept.save(&id, &*value)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(%error, "cannot keep what a Pod refers to: it will not start without the control plane");
            }
        }
        tx.send_replace(wrap(value));
    }

    async fn absent(&self, id: &Id, tx: &watch::Sender<Known>) {
        let (kept, gone) = (Arc::clone(&self.kept), id.clone());
        // Err: the agent is ending.
        drop(tokio::task::spawn_blocking(move || kept.remove(&gone)).await);
        tx.send_replace(Known::Absent);
    }

    /// Nobody has answered: what was last acted on stands until somebody does.
    async fn fall_back<T: DeserializeOwned + Send + Sync + 'static>(
        &self,
        id: &Id,
        tx: &watch::Sender<Known>,
        refused: &AtomicBool,
        wrap: fn(Arc<T>) -> Known,
    ) {
        tokio::time::sleep(KEPT_AFTER).await;
        if !matches!(*tx.borrow(), Known::Unknown) || refused.load(Ordering::Relaxed) {
            return;
        }
        let (kept, wanted) = (Arc::clone(&self.kept), id.clone());
        match tokio::task::spawn_blocking(move || kept.load::<T>(&wanted)).await {
            Ok(Ok(Some(value))) => {
                tracing::warn!(
                    kind = id.0.word(),
                    namespace = id.1,
                    name = id.2,
                    "no control plane: taken as last known"
                );
                tx.send_if_modified(|now| {
                    let unknown = matches!(now, Known::Unknown);
                    if unknown {
                        *now = wrap(Arc::new(value));
                    }
                    unknown
                });
            }
            Ok(Err(error)) => tracing::error!(%error, "what was kept of an object cannot be used"),
            Ok(Ok(None)) | Err(_) => {}
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
