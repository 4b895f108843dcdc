//! Images of this node: import of an archive, list.
use crate::pod::steps::Context;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tonic::{Status, Streaming};
use trellis_image::Image;
use trellis_proto::api;

/// An archive larger than this is refused: it must lie on the node's disk as a whole.
const ARCHIVE_MAX_BYTES: u64 = 32 << 30;

/// Takes an archive down to a file, then into the store.
pub async fn import(ctx: &Arc<Context>, mut stream: Streaming<api::ImportRequest>) -> Result<api::ImportReply, Status> {
    let dir = ctx.data_dir.join("import");
    let internal = |e: std::io::Error| Status::internal(format!("{}: {e}", dir.display()));
    tokio::fs::create_dir_all(&dir).await.map_err(internal)?;
    let path = Temporary(dir.join(format!("{}.tar", uuid::Uuid::new_v4().simple())));
    let mut file = tokio::fs::File::create(&path.0).await.map_err(internal)?;
    let mut received = 0u64;
    while let Some(part) = stream.message().await? {
        received += part.data.len() as u64;
        if received > ARCHIVE_MAX_BYTES {
            return Err(Status::resource_exhausted(format!("the archive exceeds {ARCHIVE_MAX_BYTES} bytes")));
        }
        file.write_all(&part.data).await.map_err(internal)?;
    }
    file.flush().await.map_err(internal)?;
    drop(file);
    let store = ctx.images.clone();
    let archive = path.0.clone();
    let done = tokio::task::spawn_blocking(move || store.import(&archive)).await;
    let images = done
        .map_err(|_| Status::unavailable("the agent is ending"))?
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    tracing::info!(received, images = images.len(), "archive imported");
    Ok(api::ImportReply { images: images.iter().map(|i| describe(ctx, i)).collect() })
}

/// Goes when the call does, whatever happens.
struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// All images.
#[allow(clippy::result_large_err)]
pub fn list(ctx: &Context) -> Result<api::ListImagesReply, Status> {
    let all = ctx.images.list().map_err(|e| Status::internal(e.to_string()))?;
    Ok(api::ListImagesReply { images: all.iter().map(|i| describe(ctx, i)).collect() })
}

fn describe(ctx: &Context, image: &Image) -> api::Image {
    api::Image {
        node: ctx.node_name.clone(),
        names: image.names.clone(),
        id: image.id.clone(),
        digest: image.manifest_digest.clone(),
        size_bytes: image.size_bytes,
    }
}
