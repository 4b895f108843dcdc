//! When images go: every minute the store is asked to keep within its limits, and told which
//! images Pods of this node refer to. What it decides stands in [`trellis_image::gc`].
use crate::pod::{
    event::Note,
    machine::Persisted,
    persist::{self, PodDir},
    steps::Context,
};
use k8s_openapi::api::core::v1::Pod;
use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};
use trellis_image::{
    Image, ImageStore,
    gc::{Collected, Limits},
};

/// A kubelet looks every 5 minutes; a small disk fills faster than that.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Looks for ever.
pub async fn run(ctx: Arc<Context>, limits: Limits) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (store, data) = (ctx.images.clone(), ctx.data_dir.clone());
        let done = tokio::task::spawn_blocking(move || store.collect(&limits, || in_use(&store, &data))).await;
        match done {
            Ok(Ok(done)) => tell(&ctx, &done, &limits),
            Ok(Err(error)) => tracing::error!(%error, "cannot collect unused images"),
            // The agent is ending.
            Err(_) => return,
        }
    }
}

fn tell(ctx: &Context, done: &Collected, limits: &Limits) {
    let note = |warning, reason, message| ctx.recorder.node(Note { warning, reason, message, container: None });
    if !done.removed.is_empty() {
        let freed = done.after.available_bytes.saturating_sub(done.before.available_bytes);
        let text = format!(
            "removed {} unused images, {freed} bytes; the file system was {} % full and is {} % full: {}",
            done.removed.len(),
            done.before.used_percent(),
            done.after.used_percent(),
            done.removed.join(", ")
        );
        note(false, "ImagesRemoved", text);
    }
    if done.missing_bytes > 0 {
        let text = format!(
            "the file system is {} % full (limit {} %), and no unused image is left to be removed: \
             remove data, or give the node a larger disk",
            done.after.used_percent(),
            limits.high_percent
        );
        note(true, "FreeDiskSpaceFailed", text);
    }
}

/// The images that Pods of this node refer to, by what lies on disk: every Pod has its folder
/// before anything is begun for it, and keeps it as long as it exists, also while the agent is not
/// yet aware of it.
fn in_use(store: &ImageStore, data: &Path) -> BTreeSet<String> {
    let all = store.list().unwrap_or_default();
    let mut used = BTreeSet::new();
    for uid in persist::known_uids(data) {
        let dir = PodDir::new(data, &uid);
        let spec = persist::read_json::<Pod>(&dir.object()).and_then(|p| p.spec).unwrap_or_default();
        for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let image = c.image.as_deref().and_then(|name| store.get(name).ok().flatten());
            used.extend(image.map(|i| i.id.clone()));
        }
        // A tag may have moved on since the container was made.
        if let Some(state) = persist::read_json::<Persisted>(&dir.state()) {
            for id in state.image_ids() {
                used.extend(all.iter().filter(|i| is(i, id)).map(|i| i.id.clone()));
            }
        }
    }
    used
}

/// Is this image what `imageID` in status names?
fn is(image: &Image, image_id: &str) -> bool {
    let digest = image_id.rsplit('@').next().unwrap_or(image_id);
    digest == image.id || (!image.manifest_digest.is_empty() && digest == image.manifest_digest)
}
