//! What runs on this node, for those who ask by name: the server on 10250.
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

/// A container, as far as a server needs it.
#[derive(Clone, Debug)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// The runtime's id of the present run; empty if there is none.
    pub id: String,
    /// Its process runs.
    pub running: bool,
    /// Where it is, for messages.
    pub state: String,
    /// How often it was started: its logs are 0 … attempts-1.
    pub attempts: u32,
    /// One of spec.containers.
    pub main: bool,
}

/// A Pod, likewise.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The object.
    pub pod: Arc<Pod>,
    /// Its containers.
    pub containers: Vec<ContainerView>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// It has a sandbox with a network.
    pub attached: bool,
}

impl PodView {
    /// metadata.uid
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }
}

/// All Pods with a worker, by uid.
#[derive(Debug, Default)]
pub struct Registry {
    pods: RwLock<HashMap<String, Arc<PodView>>>,
}

impl Registry {
    /// Replaces what is known of a Pod.
    pub fn publish(&self, view: PodView) {
        let uid = view.uid().to_owned();
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(uid, Arc::new(view));
    }

    /// Forgets a Pod.
    pub fn remove(&self, uid: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// By name. Of two with the same name (one being removed) the newer one.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodView>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let of = |v: &&Arc<PodView>| {
            let meta = &v.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        pods.values().filter(of).max_by_key(|v| v.pod.metadata.creation_timestamp.clone()).cloned()
    }

    /// By uid.
    pub fn get(&self, uid: &str) -> Option<Arc<PodView>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }
}
