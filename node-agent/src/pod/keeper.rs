//! Keeps one Pod's files on disk for good, beside the Pod's work: a power cut leaves each as it was
//! or as it is now, never a part of it.
//!
//! Waiting for the disk would cost every start of a Pod two fsyncs, and the page cache outlives the
//! agent anyway; so the object and the final state are made durable by a task of their own, a few
//! milliseconds later. One at a time, and always what is newest: an older write never replaces a
//! newer one. [`Keeper::close`] ends it before the folder is removed, or it would come back.

use super::persist::{PersistError, PodDir};
use k8s_openapi::api::core::v1::Pod;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Mutex as AsyncMutex;

/// See the module.
#[derive(Clone, Debug)]
pub struct Keeper {
    dir: PodDir,
    newest: Arc<Mutex<Arc<Pod>>>,
    /// Held while the disk is waited for; true once nothing may be written any more.
    closed: Arc<AsyncMutex<bool>>,
}

impl Keeper {
    /// Of the Pod whose folder this is.
    pub fn new(dir: PodDir, pod: Arc<Pod>) -> Self {
        Self { dir, newest: Arc::new(Mutex::new(pod)), closed: Arc::default() }
    }

    /// Takes a newer object. One that has no file yet is written at once, not yet durably: images
    /// in use are found by it from now on.
    pub fn take(&self, pod: Arc<Pod>) -> Result<(), PersistError> {
        let written = if self.dir.object().exists() { Ok(()) } else { self.dir.write_object(&pod) };
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = pod;
        written
    }

    /// Returns when the newest object is on disk, or the Keeper is closed.
    pub async fn keep_object(self) -> Result<(), PersistError> {
        self.beside(|keeper| {
            let pod = keeper.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
            keeper.dir.save_object(&pod)
        })
        .await
    }

    /// Returns when the state, as it was written last, is on disk, or the Keeper is closed.
    pub async fn keep_state(self) -> Result<(), PersistError> {
        self.beside(|keeper| keeper.dir.sync_state()).await
    }

    /// Waits for what is being written; nothing is written after it.
    pub async fn close(&self) {
        *self.closed.lock().await = true;
    }

    async fn beside(
        self,
        write: impl FnOnce(&Self) -> Result<(), PersistError> + Send + 'static,
    ) -> Result<(), PersistError> {
        let closed = Arc::clone(&self.closed).lock_owned().await;
        if *closed {
            return Ok(());
        }
        // The lock goes along: who is aborted here leaves a thread that still writes.
        let done = tokio::task::spawn_blocking(move || {
            let done = write(&self);
            drop(closed);
            done
        });
        // Err: the agent is ending.
        done.await.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::pod::persist::{Kept, read_kept};

    fn pod(image: &str) -> Arc<Pod> {
        let pod = serde_json::json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": image}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn image(dir: &PodDir) -> Option<String> {
        match read_kept::<Pod>(&dir.object()) {
            Kept::Whole(pod) => pod.spec.and_then(|s| s.containers[0].image.clone()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn the_newest_object_is_kept_until_it_is_closed() {
        let data = tempfile::tempdir().unwrap();
        let dir = PodDir::new(data.path(), "u");
        let keeper = Keeper::new(dir.clone(), pod("a"));
        keeper.take(pod("a")).unwrap();
        assert_eq!(image(&dir).as_deref(), Some("a"), "found by others before the disk has it");
        let late = keeper.clone().keep_object();
        keeper.take(pod("b")).unwrap();
        keeper.clone().keep_object().await.unwrap();
        // Asked for earlier, run later: it does not bring the older object back.
        late.await.unwrap();
        assert_eq!(image(&dir).as_deref(), Some("b"));
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["pod.json"], "no temporary file stays");
        keeper.close().await;
        std::fs::remove_dir_all(dir.path()).unwrap();
        keeper.clone().keep_object().await.unwrap();
        keeper.keep_state().await.unwrap();
        assert!(!dir.path().exists(), "a removed folder does not come back");
    }
}
