//! The node's images on disk and their index in memory.
//!
//! `images/<hex of config digest>.json` names a complete image; `layers/<hex of diff id>/` is one
//! unpacked layer. A layer is renamed into place when it is complete; an image's record is written
//! after `syncfs`, so that after a power cut every layer a record names is whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use crate::{
    ImageError,
    layer::{self, Unpacked},
    lent::{self, Lent},
    unpack::Limits,
};

/// The format this build writes and reads.
const VERSION: &str = "1\n";

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Registries spoken to over plain HTTP, by `host[:port]`; all others get HTTPS.
    pub insecure_registries: Vec<String>,
    /// Bounds on each layer.
    pub limits: Limits,
    /// Layers unpacked at once over all images: unpacking is bound by CPU and disk.
    pub layers_at_once: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { insecure_registries: Vec::new(), limits: Limits::default(), layers_at_once: 3 }
    }
}

/// A complete image of this node.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of its configuration: `sha256:…`.
    pub id: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// In full form, sorted.
    pub names: Vec<String>,
    /// Uncompressed size of all layers.
    pub size_bytes: u64,
    /// Folders, lowest first.
    pub layers: Vec<PathBuf>,
    /// Uncompressed size of each.
    pub layer_bytes: Vec<u64>,
    /// It came (also) from an archive: no registry need have it.
    pub imported: bool,
    /// Folders that a container's writable layer begins with; see [`Image::lend`].
    pub lent: Vec<Lent>,
    /// What to run, as whom, where.
    pub config: Arc<ImageConfiguration>,
}

impl Image {
    /// The layers as an overlay takes them: topmost first. A layer that the image names more than
    /// once (an empty one, often) stands where it is topmost: overlayfs takes no folder twice, and
    /// below itself a layer shows nothing that it does not show above.
    #[must_use]
    pub fn stack(&self) -> Vec<PathBuf> {
        let mut seen = BTreeSet::new();
        self.layers.iter().rev().filter(|layer| seen.insert(*layer)).cloned().collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    id: String,
    manifest_digest: String,
    names: BTreeSet<String>,
    size_bytes: u64,
    diff_ids: Vec<String>,
    layer_bytes: Vec<u64>,
    #[serde(default)]
    imported: bool,
    /// By diff id, of the layers that leave folders out. Releases before did not know.
    #[serde(default)]
    implied: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    lent: Vec<Lent>,
    config: serde_json::Value,
}

/// The images of a node. Clones share it.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    pub folder: PathBuf,
    pub options: Options,
    pub slots: Arc<Semaphore>,
    index: Mutex<Index>,
    /// One pull of a name at a time; the entry goes with its last waiter.
    pub pulls: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    /// One unpacking of a layer at a time; likewise.
    pub unpacking: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

#[derive(Default)]
struct Index {
    by_id: BTreeMap<String, Record>,
    /// Name → id.
    names: HashMap<String, String>,
    /// By diff id; layers whose folder is complete.
    layers: HashMap<String, Layer>,
    /// Layers unpacked for an image that has no record yet: not to be collected.
    held: HashMap<String, usize>,
    /// Image id → when it came or was last taken. Of images from before this process' start: then.
    used: HashMap<String, Instant>,
}

#[derive(Clone, Default)]
struct Layer {
    /// Uncompressed size.
    bytes: u64,
    /// Folders that it leaves out.
    implied: Vec<String>,
}

/// A layer kept from collection until its image has a record; let go when it is dropped, whoever
/// has it then: a pull that was given up, too.
pub(crate) struct Held {
    shared: Arc<Shared>,
    diff_id: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.release(&self.diff_id);
    }
}

/// What a finished pull or import stores.
pub(crate) struct NewImage {
    pub id: String,
    pub manifest_digest: String,
    pub names: Vec<String>,
    pub diff_ids: Vec<String>,
    pub config: serde_json::Value,
    pub imported: bool,
}

impl ImageStore {
    /// Opens the store, makes it if there is none, and sweeps what a crash left. Blocking.
    ///
    /// Cost: one small file read an image.
    pub fn open(folder: &Path, options: Options) -> Result<Self, ImageError> {
        for sub in ["images", "layers", "ingest"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path).map_err(ImageError::io(path))?;
        }
        let version = folder.join("version");
        match fs::read_to_string(&version) {
            Ok(found) if found == VERSION => {}
            // Written by a release that did not wait for the disk, and then the power was cut.
            Ok(found) if found.is_empty() => replace(&version, VERSION.as_bytes())?,
            Ok(found) => return Err(ImageError::TooNew { path: folder.to_owned(), found: found.trim().to_owned() }),
            Err(_) => replace(&version, VERSION.as_bytes())?,
        }
        let index = load(folder)?;
        sweep(folder, &index)?;
        let slots = Arc::new(Semaphore::new(options.layers_at_once.max(1)));
        let shared = Shared {
            folder: folder.to_owned(),
            options,
            slots,
            index: Mutex::new(index),
            pulls: Mutex::default(),
            unpacking: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The image of this name (in any form), if the node has it.
    pub fn get(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let full = crate::normalize(name)?;
        let index = self.shared.index();
        let found = index.names.get(&full).or_else(|| index.by_id.get_key_value(name).map(|(id, _)| id));
        found.and_then(|id| index.by_id.get(id)).map(|r| self.shared.image(r).map(Arc::new)).transpose()
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        self.shared.index().by_id.values().map(|r| self.shared.image(r)).collect()
    }

    /// The image of this name for a container that is about to be made: it counts as used now.
    pub fn take(&self, name: &str) -> Result<Option<Arc<Image>>, ImageError> {
        let full = crate::normalize(name)?;
        let mut index = self.shared.index();
        let found = index.names.get(&full).or_else(|| index.by_id.get_key_value(name).map(|(id, _)| id));
        let Some(id) = found.cloned() else { return Ok(None) };
        index.used.insert(id.clone(), Instant::now());
        index.by_id.get(&id).map(|r| self.shared.image(r).map(Arc::new)).transpose()
    }

    /// All images, each with the time when it came or was last taken.
    pub fn uses(&self) -> Result<Vec<(Image, Instant)>, ImageError> {
        let index = self.shared.index();
        let now = Instant::now();
        let all = index.by_id.values();
        all.map(|r| Ok((self.shared.image(r)?, index.used.get(&r.id).copied().unwrap_or(now)))).collect()
    }

    /// Removes these images, but for those used after `as_of`, and the layers that nobody needs
    /// then; answers which went. Blocking.
    pub fn remove(&self, ids: &[String], as_of: Instant) -> Result<Vec<String>, ImageError> {
        let (gone, doomed) = {
            let mut index = self.shared.index();
            let mut gone = Vec::new();
            for id in ids {
                if !index.by_id.contains_key(id) || index.used.get(id).is_some_and(|at| *at > as_of) {
                    continue;
                }
                let path = self.shared.record(id)?;
                fs::remove_file(&path).map_err(ImageError::io(path))?;
                index.by_id.remove(id);
                index.used.remove(id);
                gone.push(id.clone());
            }
            index.names.retain(|_, id| !gone.contains(id));
            let used: BTreeSet<String> = index.by_id.values().flat_map(|r| r.diff_ids.iter().cloned()).collect();
            let unused: Vec<String> =
                index.layers.keys().filter(|l| !used.contains(*l) && !index.held.contains_key(*l)).cloned().collect();
            let mut doomed = Vec::new();
            for diff_id in unused {
                index.layers.remove(&diff_id);
                // Out of the way under the lock; the slow removal comes after.
                let from = self.shared.layer(&diff_id)?;
                let to = self.shared.ingest();
                fs::rename(&from, &to).map_err(ImageError::io(from))?;
                doomed.push(to);
            }
            (gone, doomed)
        };
        for path in doomed {
            fs::remove_dir_all(&path).map_err(ImageError::io(path))?;
        }
        Ok(gone)
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn layer(&self, diff_id: &str) -> Result<PathBuf, ImageError> {
        layer::folder(&self.folder.join("layers"), diff_id)
    }

    fn record(&self, id: &str) -> Result<PathBuf, ImageError> {
        layer::folder(&self.folder.join("images"), id).map(|p| p.with_extension("json"))
    }

    /// A fresh path for something unfinished.
    pub fn ingest(&self) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        self.folder.join("ingest").join(format!("{}-{n}", std::process::id()))
    }

    /// Holds the layer if its folder is complete.
    pub fn hold(self: &Arc<Self>, diff_id: &str) -> Option<Held> {
        let mut index = self.index();
        index.layers.contains_key(diff_id).then(|| self.count(&mut index, diff_id))
    }

    /// Moves an unpacked layer into its place and holds it.
    pub fn install(self: &Arc<Self>, place: &Path, diff_id: &str, unpacked: &Unpacked) -> Result<Held, ImageError> {
        let to = self.layer(diff_id)?;
        let mut index = self.index();
        if !index.layers.contains_key(diff_id) {
            fs::rename(place, &to).map_err(ImageError::io(to))?;
            let layer = Layer { bytes: unpacked.bytes, implied: unpacked.implied.clone() };
            index.layers.insert(diff_id.to_owned(), layer);
        }
        Ok(self.count(&mut index, diff_id))
    }

    fn count(self: &Arc<Self>, index: &mut Index, diff_id: &str) -> Held {
        *index.held.entry(diff_id.to_owned()).or_default() += 1;
        Held { shared: Arc::clone(self), diff_id: diff_id.to_owned() }
    }

    fn release(&self, diff_id: &str) {
        let mut index = self.index();
        if let Some(count) = index.held.get_mut(diff_id) {
            *count -= 1;
            if *count == 0 {
                index.held.remove(diff_id);
            }
        }
    }

    /// Records a complete image; a name it takes leaves the image that had it before. Blocking:
    /// waits for the disk.
    pub fn commit(&self, new: NewImage) -> Result<Arc<Image>, ImageError> {
        let root = File::open(&self.folder).map_err(ImageError::io(&self.folder))?;
        rustix::fs::syncfs(&root).map_err(|e| ImageError::io(&self.folder)(e.into()))?;
        let known: Vec<Layer> = {
            let index = self.index();
            new.diff_ids.iter().map(|d| index.layers.get(d).cloned().unwrap_or_default()).collect()
        };
        let layer_bytes: Vec<u64> = known.iter().map(|l| l.bytes).collect();
        let implied: Vec<Vec<String>> = known.into_iter().map(|l| l.implied).collect();
        let folders: Vec<PathBuf> = new.diff_ids.iter().map(|d| self.layer(d)).collect::<Result<_, _>>()?;
        // Not under the lock; the layers are held.
        let lent = lent::find(&folders, &implied).map_err(ImageError::io(self.folder.join("layers")))?;
        let implied = new.diff_ids.iter().cloned().zip(implied).filter(|(_, paths)| !paths.is_empty()).collect();
        let mut index = self.index();
        for name in &new.names {
            if let Some(old) = index.names.insert(name.clone(), new.id.clone())
                && old != new.id
                && let Some(record) = index.by_id.get_mut(&old)
            {
                record.names.remove(name);
                write(&self.record(&old)?, record)?;
            }
        }
        let mut names: BTreeSet<String> = new.names.into_iter().collect();
        let mut imported = new.imported;
        if let Some(before) = index.by_id.get(&new.id) {
            names.extend(before.names.iter().cloned());
            imported |= before.imported;
        }
        let record = Record {
            version: 1,
            id: new.id.clone(),
            manifest_digest: new.manifest_digest,
            names,
            size_bytes: layer_bytes.iter().sum(),
            diff_ids: new.diff_ids,
            layer_bytes,
            imported,
            implied,
            lent,
            config: new.config,
        };
        write(&self.record(&new.id)?, &record)?;
        let image = self.image(&record)?;
        index.used.insert(new.id.clone(), Instant::now());
        index.by_id.insert(new.id, record);
        Ok(Arc::new(image))
    }

    fn image(&self, record: &Record) -> Result<Image, ImageError> {
        let config = parse_config(&record.id, &record.config)?;
        Ok(Image {
            id: record.id.clone(),
            manifest_digest: record.manifest_digest.clone(),
            names: record.names.iter().cloned().collect(),
            size_bytes: record.size_bytes,
            layers: record.diff_ids.iter().map(|d| self.layer(d)).collect::<Result<_, _>>()?,
            layer_bytes: record.layer_bytes.clone(),
            imported: record.imported,
            lent: record.lent.clone(),
            config: Arc::new(config),
        })
    }
}

pub(crate) fn parse_config(name: &str, config: &serde_json::Value) -> Result<ImageConfiguration, ImageError> {
    ImageConfiguration::deserialize(config)
        .map_err(|e| ImageError::Malformed { name: name.to_owned(), reason: format!("image configuration: {e}") })
}

fn write(path: &Path, record: &Record) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec(record).map_err(|e| ImageError::io(path)(e.into()))?;
    replace(path, &bytes)
}

/// When this returns, the file is on disk, whole.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(ImageError::io(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(ImageError::io(&temporary))?;
    fs::rename(&temporary, path).map_err(ImageError::io(path))?;
    let folder = path.parent().unwrap_or(path);
    File::open(folder).and_then(|f| f.sync_all()).map_err(ImageError::io(folder))
}

fn load(folder: &Path) -> Result<Index, ImageError> {
    let mut index = Index::default();
    let images = folder.join("images");
    for entry in fs::read_dir(&images).map_err(ImageError::io(&images))? {
        let path = entry.map_err(ImageError::io(&images))?.path();
        if path.extension().is_none_or(|e| e != "json") {
            fs::remove_file(&path).map_err(ImageError::io(path))?;
            continue;
        }
        let bytes = fs::read(&path).map_err(ImageError::io(&path))?;
        let record: Record = match serde_json::from_slice(&bytes) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "an image record does not parse; its image is pulled again when needed");
                continue;
            }
        };
        let complete =
            record.diff_ids.iter().all(|d| layer::folder(&folder.join("layers"), d).is_ok_and(|p| p.is_dir()));
        if !complete {
            tracing::warn!(image = %record.id, "an image lacks a layer folder; it is pulled again when needed");
            continue;
        }
        for (diff_id, bytes) in record.diff_ids.iter().zip(&record.layer_bytes) {
            let implied = record.implied.get(diff_id).cloned().unwrap_or_default();
            index.layers.insert(diff_id.clone(), Layer { bytes: *bytes, implied });
        }
        for name in &record.names {
            index.names.insert(name.clone(), record.id.clone());
        }
        index.used.insert(record.id.clone(), Instant::now());
        index.by_id.insert(record.id.clone(), record);
    }
    Ok(index)
}

/// Removes unfinished work and layers that no record names.
fn sweep(folder: &Path, index: &Index) -> Result<(), ImageError> {
    let used: BTreeSet<PathBuf> =
        index.layers.keys().filter_map(|d| layer::folder(&folder.join("layers"), d).ok()).collect();
    for sub in ["ingest", "layers"] {
        let dir = folder.join(sub);
        for entry in fs::read_dir(&dir).map_err(ImageError::io(&dir))? {
            let path = entry.map_err(ImageError::io(&dir))?.path();
            if used.contains(&path) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(ImageError::io(path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_layer_is_held_only_once_it_is_in_place_and_as_long_as_somebody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path(), Options::default()).unwrap();
        let shared = &store.shared;
        let diff_id = format!("sha256:{}", "a".repeat(64));
        let held = || shared.index().held.get(&diff_id).copied();
        // Nothing was unpacked: it cannot be put in place, and nothing remembers the attempt.
        let layer = Unpacked { diff_id: diff_id.clone(), blob_digest: String::new(), bytes: 1, implied: Vec::new() };
        assert!(shared.install(&dir.path().join("nothing"), &diff_id, &layer).is_err());
        assert_eq!((held(), shared.hold(&diff_id).is_some()), (None, false));
        let unpacked = shared.ingest();
        fs::create_dir(&unpacked).unwrap();
        let first = shared.install(&unpacked, &diff_id, &layer).unwrap();
        let second = shared.hold(&diff_id).unwrap();
        assert_eq!(held(), Some(2));
        drop((first, second));
        assert_eq!(held(), None);
    }
}
