//! Importing archives: OCI image layouts and `docker save`, plain or compressed.
//!
//! The archive is first copied to a file (decompressed), then its parts are read in place by
//! offset; nothing of it is unpacked but the layers themselves.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    Image, ImageError, ImageStore, layer,
    members::Members,
    pull::verify,
    store::{Held, NewImage, parse_config},
    unpack::{Limits, UnpackError},
};

/// Manifests, indexes and configurations are a few kilobytes.
pub(crate) const DOCUMENT_MAX_BYTES: u64 = 8 << 20;
/// Parts of an archive: layers and documents of all its images.
const PARTS_MAX: usize = 100_000;
/// All their paths together; they are held in memory.
const PATHS_MAX_BYTES: usize = 16 << 20;
/// Images in one archive.
const IMAGES_MAX: usize = 256;
/// What is refused when it is no layer.
const ITSELF: &str = "(the archive itself)";

impl ImageStore {
    /// Imports every image of an archive file that fits this machine. Blocking.
    ///
    /// All or nothing an image: one that is refused leaves those before it in place.
    pub fn import(&self, archive: &Path) -> Result<Vec<Arc<Image>>, ImageError> {
        let name = archive.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let place = self.shared.ingest();
        let result = self.import_from(archive, &name, &place);
        match fs::remove_file(&place) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::io(place)(e)),
            _ => result,
        }
    }

    fn import_from(&self, archive: &Path, name: &str, place: &Path) -> Result<Vec<Arc<Image>>, ImageError> {
        let plain = decompressed(archive, place, self.shared.options.limits.layer_bytes)?;
        let parts = Parts::read(&plain, name, &self.shared.options.limits)?;
        let found = if parts.has("index.json") { oci_images(&parts)? } else { docker_images(&parts)? };
        if found.is_empty() || found.len() > IMAGES_MAX {
            let reason = format!("{} images for this machine in it; 1 to {IMAGES_MAX} can be imported", found.len());
            return Err(parts.malformed(reason));
        }
        found.into_iter().map(|image| self.import_one(&parts, image)).collect()
    }

    fn import_one(&self, parts: &Parts<'_>, image: Found) -> Result<Arc<Image>, ImageError> {
        let bytes = parts.document(&image.config)?;
        let id = layer::digest(Sha256::new_with_prefix(&bytes));
        if let Some(expected) = image.config_digest.filter(|e| *e != id) {
            return Err(ImageError::Digest {
                name: parts.name.to_owned(),
                what: "the configuration",
                found: id,
                expected,
            });
        }
        let config: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| parts.malformed(format!("{}: {e}", image.config)))?;
        let diff_ids = parse_config(parts.name, &config)?.rootfs().diff_ids().clone();
        if diff_ids.len() != image.layers.len() {
            let reason = format!("{} layers, {} in the configuration", image.layers.len(), diff_ids.len());
            return Err(parts.malformed(reason));
        }
        let mut held = Vec::new();
        for ((path, digest), diff_id) in image.layers.iter().zip(&diff_ids) {
            held.push(match self.shared.hold(diff_id) {
                Some(held) => held,
                None => self.import_layer(parts, path, digest.as_deref(), diff_id)?,
            });
        }
        let names = image.names.iter().filter_map(|n| crate::normalize(n).ok()).collect();
        let manifest_digest = image.manifest_digest.unwrap_or_else(|| id.clone());
        self.shared.commit(NewImage { id, manifest_digest, names, diff_ids, config, imported: true })
    }

    fn import_layer(
        &self,
        parts: &Parts<'_>,
        path: &str,
        blob: Option<&str>,
        diff_id: &str,
    ) -> Result<Held, ImageError> {
        let place = self.shared.ingest();
        let unpacked = layer::unpack_into(parts.open(path)?, &place, &self.shared.options.limits)
            .map_err(|source| ImageError::Unpack { name: parts.name.to_owned(), layer: path.to_owned(), source })?;
        let blob = blob.map_or_else(|| unpacked.blob_digest.clone(), str::to_owned);
        let done = verify(parts.name, &unpacked, &blob, diff_id)
            .and_then(|()| self.shared.install(&place, diff_id, &unpacked));
        if place.exists() {
            fs::remove_dir_all(&place).map_err(ImageError::io(place))?;
        }
        done
    }
}

/// An image of the archive, by the paths of its parts.
struct Found {
    names: Vec<String>,
    config: String,
    config_digest: Option<String>,
    manifest_digest: Option<String>,
    /// Path, and the blob's digest where the format states one.
    layers: Vec<(String, Option<String>)>,
}

/// Copies the archive to `place` if it is compressed; else it is read where it lies.
fn decompressed(archive: &Path, place: &Path, limit_bytes: u64) -> Result<PathBuf, ImageError> {
    let mut file = File::open(archive).map_err(ImageError::io(archive))?;
    let mut head = [0_u8; 4];
    let n = file.read(&mut head).map_err(ImageError::io(archive))?;
    file.rewind().map_err(ImageError::io(archive))?;
    let reader: Box<dyn Read> = match &head[..n] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(file).map_err(ImageError::io(archive))?),
        _ => return Ok(archive.to_owned()),
    };
    let mut out = File::create(place).map_err(ImageError::io(place))?;
    let copied = io::copy(&mut reader.take(limit_bytes + 1), &mut out).map_err(ImageError::io(archive))?;
    out.flush().map_err(ImageError::io(place))?;
    if copied > limit_bytes {
        let name = archive.display().to_string();
        let source = UnpackError::TooLarge { limit_bytes };
        return Err(ImageError::Unpack { name, layer: ITSELF.to_owned(), source });
    }
    Ok(place.to_owned())
}

/// Where each file of the archive lies.
struct Parts<'a> {
    path: &'a Path,
    name: &'a str,
    files: HashMap<String, (u64, u64)>,
    links: HashMap<String, String>,
}

impl<'a> Parts<'a> {
    fn read(path: &'a Path, name: &'a str, limits: &Limits) -> Result<Self, ImageError> {
        let broken = |source: UnpackError| match source {
            UnpackError::Stream(e) => {
                ImageError::Malformed { name: name.to_owned(), reason: format!("not a tar archive: {e}") }
            }
            source => ImageError::Unpack { name: name.to_owned(), layer: ITSELF.to_owned(), source },
        };
        let file = File::open(path).map_err(ImageError::io(path))?;
        let mut members = Members::seeking(file, limits.extension_bytes);
        let mut parts = Self { path, name, files: HashMap::new(), links: HashMap::new() };
        let mut path_bytes = 0;
        while let Some(member) = members.next().map_err(broken)? {
            let at = String::from_utf8_lossy(&member.path()).trim_start_matches("./").to_owned();
            path_bytes += at.len();
            match member.header.entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    parts.files.insert(at, (member.offset, member.size));
                }
                // `docker save` of old links equal layers to each other.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = member.link_name() {
                        path_bytes += target.len();
                        parts.links.insert(at, String::from_utf8_lossy(&target).into_owned());
                    }
                }
                _ => {}
            }
            if parts.files.len() + parts.links.len() > PARTS_MAX {
                return Err(parts.malformed(format!("more than {PARTS_MAX} files")));
            }
            if path_bytes > PATHS_MAX_BYTES {
                return Err(parts.malformed(format!("more than {PATHS_MAX_BYTES} bytes of paths")));
            }
        }
        Ok(parts)
    }

    fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    fn find(&self, path: &str) -> Result<(u64, u64), ImageError> {
        let linked = || {
            let target = self.links.get(path)?;
            let mut at: Vec<&str> = path.split('/').collect();
            at.pop();
            for part in target.split('/') {
                match part {
                    ".." => drop(at.pop()),
                    "." | "" => {}
                    name => at.push(name),
                }
            }
            // A hard link names its target from the archive's root.
            self.files.get(&at.join("/")).or_else(|| self.files.get(target))
        };
        self.files
            .get(path)
            .or_else(linked)
            .copied()
            .ok_or_else(|| self.malformed(format!("{path:?} is named but not in the archive")))
    }

    fn open(&self, path: &str) -> Result<io::Take<File>, ImageError> {
        let (offset, size) = self.find(path)?;
        let mut file = File::open(self.path).map_err(ImageError::io(self.path))?;
        file.seek(SeekFrom::Start(offset)).map_err(ImageError::io(self.path))?;
        Ok(file.take(size))
    }

    fn document(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        let (_, size) = self.find(path)?;
        if size > DOCUMENT_MAX_BYTES {
            return Err(self.malformed(format!("{path:?} has {size} bytes, the limit is {DOCUMENT_MAX_BYTES}")));
        }
        let mut bytes = Vec::new();
        self.open(path)?.read_to_end(&mut bytes).map_err(ImageError::io(self.path))?;
        Ok(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, ImageError> {
        serde_json::from_slice(&self.document(path)?).map_err(|e| self.malformed(format!("{path}: {e}")))
    }

    /// A document named by its digest, which is checked.
    fn blob<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T, ImageError> {
        let path = self.blob_path(digest)?;
        let bytes = self.document(&path)?;
        let found = layer::digest(Sha256::new_with_prefix(&bytes));
        if found != digest {
            let expected = digest.to_owned();
            return Err(ImageError::Digest { name: self.name.to_owned(), what: "a manifest", found, expected });
        }
        serde_json::from_slice(&bytes).map_err(|e| self.malformed(format!("{path}: {e}")))
    }

    fn blob_path(&self, digest: &str) -> Result<String, ImageError> {
        layer::folder(Path::new("blobs/sha256"), digest).map(|p| p.display().to_string())
    }

    fn malformed(&self, reason: String) -> ImageError {
        ImageError::Malformed { name: self.name.to_owned(), reason }
    }
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

impl Platform {
    fn is_ours(&self) -> bool {
        let ours = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.os == "linux" && self.architecture == ours
    }
}

/// An index (`manifests`) or a manifest (`config`, `layers`).
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn oci_images(parts: &Parts<'_>) -> Result<Vec<Found>, ImageError> {
    let index: Document = parts.json("index.json")?;
    // `docker save` writes both formats; its own file has the names.
    let tags: HashMap<String, Vec<String>> = if parts.has("manifest.json") {
        let images: Vec<DockerImage> = parts.json("manifest.json")?;
        images.into_iter().map(|i| (i.config, i.repo_tags.unwrap_or_default())).collect()
    } else {
        HashMap::new()
    };
    let mut found = Vec::new();
    for descriptor in index.manifests {
        let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .find_map(|key| descriptor.annotations.get(*key).cloned());
        // An index in the index holds one manifest a platform.
        let mut queue = vec![(descriptor, 0)];
        while let Some((descriptor, depth)) = queue.pop() {
            if descriptor.platform.as_ref().is_some_and(|p| !p.is_ours()) || depth > 2 {
                continue;
            }
            let document: Document = parts.blob(&descriptor.digest)?;
            queue.extend(document.manifests.into_iter().map(|d| (d, depth + 1)));
            let Some(config) = document.config else { continue };
            let path = parts.blob_path(&config.digest)?;
            let mut names: Vec<String> = name.iter().cloned().collect();
            names.extend(tags.get(&path).into_iter().flatten().cloned());
            let layers = document
                .layers
                .into_iter()
                .map(|l| Ok((parts.blob_path(&l.digest)?, Some(l.digest))))
                .collect::<Result<_, ImageError>>()?;
            found.push(Found {
                names,
                config: path,
                config_digest: Some(config.digest),
                manifest_digest: Some(descriptor.digest),
                layers,
            });
        }
    }
    Ok(found)
}

fn docker_images(parts: &Parts<'_>) -> Result<Vec<Found>, ImageError> {
    if !parts.has("manifest.json") {
        return Err(parts.malformed("neither index.json (OCI) nor manifest.json (docker) is in it".to_owned()));
    }
    let images: Vec<DockerImage> = parts.json("manifest.json")?;
    Ok(images
        .into_iter()
        .map(|image| Found {
            names: image.repo_tags.unwrap_or_default(),
            config: image.config,
            config_digest: None,
            manifest_digest: None,
            layers: image.layers.into_iter().map(|l| (l, None)).collect(),
        })
        .collect())
}
