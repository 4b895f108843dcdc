//! Pulling from a registry that speaks the OCI distribution protocol.
//!
//! Layers come in parallel and are unpacked while they arrive; a digest that does not match fails
//! the pull before anything is visible. A layer that the node has is not fetched.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::{OciDescriptor, OciImageManifest},
    secrets::RegistryAuth,
};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::{
    Image, ImageError, ImageStore,
    archive::DOCUMENT_MAX_BYTES,
    layer, registry,
    store::{Held, NewImage, parse_config},
    unpack::UnpackError,
};

/// A registry that says nothing for so long is taken for dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Layers of one image fetched at once; the store bounds unpacking over all images besides.
const LAYERS_AT_ONCE: usize = 3;
/// Kubernetes' runtimes allow 127; overlayfs itself 500.
const LAYERS_MAX: usize = 128;

/// Who we are to a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody.
    #[default]
    Anonymous,
    /// A user; also exchanged for a bearer token where the registry asks for one.
    Basic {
        /// Name.
        user: String,
        /// Password or access token.
        password: String,
    },
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { user, .. } => write!(f, "Basic({user})"),
        }
    }
}

/// Kubernetes' imagePullPolicy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time; layers present are not fetched again.
    Always,
    /// Pull what the node lacks.
    IfNotPresent,
    /// Use what the node has.
    Never,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received of all layers, as compressed.
    pub received_bytes: u64,
    /// Their sum from the manifest.
    pub total_bytes: u64,
    /// Layers in place, those present before included.
    pub layers_done: usize,
    /// All layers.
    pub layers: usize,
}

type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

impl ImageStore {
    /// Makes sure that the node has the image, as the policy says. Several callers asking for one
    /// name share one pull.
    pub async fn ensure(
        &self,
        name: &str,
        policy: PullPolicy,
        auth: &Auth,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Arc<Image>, ImageError> {
        let reference = crate::parse(name)?;
        let present = self.take(name)?;
        match (policy, present) {
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => return Ok(image),
            (PullPolicy::Never, None) => return Err(ImageError::NotPresent { name: name.to_owned() }),
            _ => {}
        }
        let lock = Keyed::lock(&self.shared.pulls, reference.whole());
        let _one = lock.mutex.lock().await;
        if policy == PullPolicy::IfNotPresent
            && let Some(image) = self.take(name)?
        {
            return Ok(image);
        }
        Pull { store: self, name, auth, reference, on_progress: Arc::new(progress) }.run().await
    }
}

struct Pull<'a> {
    store: &'a ImageStore,
    name: &'a str,
    auth: &'a Auth,
    reference: Reference,
    on_progress: OnProgress,
}

impl Pull<'_> {
    async fn run(&self) -> Result<Arc<Image>, ImageError> {
        let client = self.client()?;
        let auth = match self.auth {
            Auth::Anonymous => RegistryAuth::Anonymous,
            Auth::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.clone()),
        };
        // The library reads a manifest as a whole, however long; only what it names can be bounded here.
        let (manifest, manifest_digest) =
            client.pull_image_manifest(&self.reference, &auth).await.map_err(|e| self.registry(e))?;
        let config = self.config(&client, &manifest.config).await?;
        let found = layer::digest(Sha256::new_with_prefix(&config));
        if found != manifest.config.digest {
            return Err(self.wrong_digest("configuration", found, &manifest.config.digest));
        }
        let config: serde_json::Value = serde_json::from_slice(&config).map_err(|e| self.malformed(e.to_string()))?;
        let diff_ids = self.diff_ids(&manifest, &config)?;
        let held = self.layers(&client, &manifest, &diff_ids).await?;
        let new = NewImage {
            id: manifest.config.digest,
            manifest_digest,
            names: vec![self.reference.whole()],
            diff_ids,
            config,
            imported: false,
        };
        let shared = Arc::clone(&self.store.shared);
        let image = blocking(move || shared.commit(new)).await?;
        drop(held);
        Ok(image)
    }

    /// The configuration's bytes: no more of them than the manifest says, and than one may have.
    async fn config(&self, client: &Client, descriptor: &OciDescriptor) -> Result<Vec<u8>, ImageError> {
        let size = u64::try_from(descriptor.size).unwrap_or(u64::MAX);
        if size > DOCUMENT_MAX_BYTES {
            let reason = format!("its configuration has {size} bytes, the limit is {DOCUMENT_MAX_BYTES}");
            return Err(self.malformed(reason));
        }
        let blob = client.pull_blob_stream(&self.reference, descriptor).await.map_err(|e| self.registry(e))?;
        let bytes = at_most(blob.stream, size).await.map_err(|e| match e {
            TooMuch::Read(e) => {
                let (name, registry) = (self.name.to_owned(), self.reference.registry().to_owned());
                ImageError::Registry { name, registry, reason: registry::chain(&e) }
            }
            TooMuch::Longer => {
                self.malformed(format!("its configuration is longer than the {size} bytes its manifest says"))
            }
        })?;
        Ok(bytes)
    }

    fn client(&self) -> Result<Client, ImageError> {
        // Err means that a provider is installed already, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(self.store.shared.options.insecure_registries.clone()),
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            ..ClientConfig::default()
        };
        Client::try_from(config).map_err(|e| self.registry(e))
    }

    fn diff_ids(&self, manifest: &OciImageManifest, config: &serde_json::Value) -> Result<Vec<String>, ImageError> {
        let config = parse_config(self.name, config)?;
        let diff_ids = config.rootfs().diff_ids().clone();
        if diff_ids.len() != manifest.layers.len() {
            let reason =
                format!("{} layers in the manifest, {} in the configuration", manifest.layers.len(), diff_ids.len());
            return Err(self.malformed(reason));
        }
        if diff_ids.len() > LAYERS_MAX {
            return Err(self.malformed(format!("{} layers, the limit is {LAYERS_MAX}", diff_ids.len())));
        }
        Ok(diff_ids)
    }

    async fn layers(
        &self,
        client: &Client,
        manifest: &OciImageManifest,
        diff_ids: &[String],
    ) -> Result<Vec<Held>, ImageError> {
        let total_bytes = manifest.layers.iter().map(|l| u64::try_from(l.size).unwrap_or(0)).sum();
        let start = Progress { received_bytes: 0, total_bytes, layers_done: 0, layers: diff_ids.len() };
        let progress = Arc::new(Mutex::new(start));
        // Not `map` over the stream: its closure would make the future of `ensure` not Send.
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (descriptor, diff_id) in manifest.layers.iter().zip(diff_ids) {
            layers.push(self.layer(client, descriptor, diff_id, Arc::clone(&progress)));
        }
        stream::iter(layers).buffered(LAYERS_AT_ONCE).try_collect().await
    }

    async fn layer(
        &self,
        client: &Client,
        descriptor: &OciDescriptor,
        diff_id: &str,
        progress: Arc<Mutex<Progress>>,
    ) -> Result<Held, ImageError> {
        let shared = &self.store.shared;
        let lock = Keyed::lock(&shared.unpacking, diff_id.to_owned());
        let _one = lock.mutex.lock().await;
        let held = match shared.hold(diff_id) {
            Some(held) => held,
            None => self.fetch(client, descriptor, diff_id, &progress).await?,
        };
        self.tell(&progress, |p| p.layers_done += 1);
        Ok(held)
    }

    async fn fetch(
        &self,
        client: &Client,
        descriptor: &OciDescriptor,
        diff_id: &str,
        progress: &Arc<Mutex<Progress>>,
    ) -> Result<Held, ImageError> {
        let shared = Arc::clone(&self.store.shared);
        let slot = Arc::clone(&shared.slots).acquire_owned().await;
        let blob = client.pull_blob_stream(&self.reference, descriptor).await.map_err(|e| self.registry(e))?;
        let counted = {
            let (progress, tell) = (Arc::clone(progress), Arc::clone(&self.on_progress));
            blob.stream.inspect_ok(move |chunk| update(&progress, &tell, |p| p.received_bytes += chunk.len() as u64))
        };
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(counted.map_err(io::Error::other))));
        let (name, expected) = (self.name.to_owned(), diff_id.to_owned());
        let registry = self.reference.registry().to_owned();
        let (blob_digest, layer_digest) = (descriptor.digest.clone(), descriptor.digest.clone());
        blocking(move || {
            let _slot = slot;
            let place = shared.ingest();
            let unpacked =
                layer::unpack_into(reader, &place, &shared.options.limits).map_err(|source| match source {
                    UnpackError::Stream(e) => {
                        let reason = format!("layer {layer_digest}: {}", registry::chain(&e));
                        ImageError::Registry { name: name.clone(), registry, reason }
                    }
                    source => ImageError::Unpack { name: name.clone(), layer: layer_digest.clone(), source },
                })?;
            let verified = verify(&name, &unpacked, &blob_digest, &expected);
            // Given back from here: when nobody waits for it any more, it is let go.
            let done = verified.and_then(|()| shared.install(&place, &expected, &unpacked));
            if place.exists() {
                std::fs::remove_dir_all(&place).map_err(ImageError::io(place))?;
            }
            done
        })
        .await
    }

    fn tell(&self, progress: &Mutex<Progress>, change: impl FnOnce(&mut Progress)) {
        update(progress, &self.on_progress, change);
    }

    fn registry(&self, error: OciDistributionError) -> ImageError {
        registry::explain(self.name, self.reference.registry(), self.auth, &error)
    }

    fn malformed(&self, reason: String) -> ImageError {
        ImageError::Malformed { name: self.name.to_owned(), reason }
    }

    fn wrong_digest(&self, what: &'static str, found: String, expected: &str) -> ImageError {
        ImageError::Digest { name: self.name.to_owned(), what, found, expected: expected.to_owned() }
    }
}

/// Why a stream was not read to its end.
enum TooMuch {
    /// It broke.
    Read(io::Error),
    /// It goes on after the limit.
    Longer,
}

async fn at_most(
    stream: impl futures::Stream<Item = io::Result<bytes::Bytes>> + Unpin,
    limit_bytes: u64,
) -> Result<Vec<u8>, TooMuch> {
    let (mut stream, mut all) = (stream, Vec::new());
    while let Some(chunk) = stream.try_next().await.map_err(TooMuch::Read)? {
        if (all.len() + chunk.len()) as u64 > limit_bytes {
            return Err(TooMuch::Longer);
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn update(progress: &Mutex<Progress>, tell: &OnProgress, change: impl FnOnce(&mut Progress)) {
    let now = {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        *progress
    };
    tell(now);
}

pub(crate) fn verify(
    name: &str,
    unpacked: &layer::Unpacked,
    blob_digest: &str,
    diff_id: &str,
) -> Result<(), ImageError> {
    let wrong = |what, found: &str, expected: &str| ImageError::Digest {
        name: name.to_owned(),
        what,
        found: found.to_owned(),
        expected: expected.to_owned(),
    };
    if unpacked.blob_digest != blob_digest {
        return Err(wrong("a layer", &unpacked.blob_digest, blob_digest));
    }
    if unpacked.diff_id != diff_id {
        return Err(wrong("an uncompressed layer", &unpacked.diff_id, diff_id));
    }
    Ok(())
}

type Locks = Mutex<HashMap<String, Arc<AsyncMutex<()>>>>;

/// A lock by name that leaves the table with its last user, so that the table stays as small as
/// what is under way.
struct Keyed<'a> {
    locks: &'a Locks,
    key: String,
    mutex: Arc<AsyncMutex<()>>,
}

impl<'a> Keyed<'a> {
    fn lock(locks: &'a Locks, key: String) -> Self {
        let mut table = locks.lock().unwrap_or_else(PoisonError::into_inner);
        let mutex = Arc::clone(table.entry(key.clone()).or_default());
        Self { locks, key, mutex }
    }
}

impl Drop for Keyed<'_> {
    fn drop(&mut self) {
        let mut table = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // The table's own and this one.
        if Arc::strong_count(&self.mutex) <= 2 {
            table.remove(&self.key);
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Io { path: "image store".into(), source: io::Error::other(error) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_document_is_read_up_to_its_size_and_no_further() {
        let chunk = || Ok(bytes::Bytes::from_static(b"1234"));
        let endless = || stream::iter(std::iter::repeat_with(chunk));
        assert!(matches!(at_most(endless(), 10).await, Err(TooMuch::Longer)));
        assert!(at_most(stream::iter([chunk(), chunk()]), 8).await.is_ok_and(|all| all == b"12341234"));
        let broken = stream::iter([chunk(), Err(io::ErrorKind::ConnectionReset.into())]);
        assert!(matches!(at_most(broken, 8).await, Err(TooMuch::Read(_))));
    }
}
