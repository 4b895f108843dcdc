//! Making a Pod's volumes ready, and keeping what they show of ConfigMaps and Secrets fresh.
use super::Step;
use crate::{
    api::refs::Held,
    runtime::spec::env::Refs,
    volume::{self, Places, VolumeError, atomic, local, payload},
};
use std::path::Path;

/// Makes all volumes ready; what it answers is to be held for [`keep_fresh`].
pub async fn prepare(step: &Step) -> Result<Held, String> {
    let mut held = step.ctx.refs.hold(step.namespace(), volume::references(&step.pod));
    let refs = held.get().await?;
    let copy = step.clone();
    let done = tokio::task::spawn_blocking(move || write_all(&copy, &refs, true));
    done.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    Ok(held)
}

/// Rewrites what changed, as long as it is polled.
pub async fn keep_fresh(step: &Step, mut held: Held) {
    if held.is_empty() {
        return;
    }
    while let Some(refs) = held.changed().await {
        let copy = step.clone();
        let done = tokio::task::spawn_blocking(move || write_all(&copy, &refs, false));
        if let Ok(Err(error)) = done.await {
            // The old content stays, as in Kubernetes: better than none.
            step.note(true, "FailedMount", error.to_string(), None);
        }
    }
}

/// Where this Pod's volumes lie.
pub fn places(step: &Step) -> Places {
    Places { disk: step.dir.volumes(), memory: volume::memory_dir(&step.ctx.run_dir, step.uid()) }
}

fn write_all(step: &Step, refs: &Refs, first: bool) -> Result<(), VolumeError> {
    let spec = step.pod.spec.clone().unwrap_or_default();
    let group = spec.security_context.and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok());
    let facts = step.ctx.facts(&step.pod_ips());
    let places = places(step);
    private(&places.memory);
    for v in spec.volumes.iter().flatten() {
        let path = places.of(v);
        if let Some(content) = payload::of(v, &step.pod, refs, &facts)? {
            atomic::write(&path, &content, group).map_err(|source| VolumeError::Io {
                volume: v.name.clone(),
                path,
                source,
            })?;
        } else if !first {
            continue;
        } else if let Some(source) = &v.empty_dir {
            local::empty_dir(&path, &v.name, source, group)?;
        } else if let Some(source) = &v.host_path {
            local::host_path(&v.name, source)?;
        } else {
            return Err(VolumeError::Unsupported(v.name.clone()));
        }
    }
    Ok(())
}

/// The folder of all Pods' secrets is root's alone.
fn private(memory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Some(all) = memory.parent() else { return };
    let made = std::fs::create_dir_all(all)
        .and_then(|()| std::fs::set_permissions(all, std::fs::Permissions::from_mode(0o700)));
    if let Err(error) = made {
        tracing::error!(path = %all.display(), %error, "cannot make the folder of secret volumes private");
    }
}
