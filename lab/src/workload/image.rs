//! Writing an image as an OCI archive (image-spec 1.1, image-layout): a tar of blobs.
//!
//! The result is the same bytes for the same input: no time of day, no owner of this machine.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::{Error, Result};

/// A file, folder or link of an image.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: u64,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A file with the bytes of one of this machine.
    Copy(PathBuf),
    /// A symbolic link.
    Link(String),
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// "registry/repository:tag"
    pub name: String,
    /// Layers, lowest first.
    pub layers: Vec<Vec<Entry>>,
    /// What runs.
    pub entrypoint: Vec<String>,
    /// "user:group" or empty.
    pub user: String,
    /// NAME=VALUE.
    pub env: Vec<String>,
}

impl Entry {
    /// A folder that everybody reads.
    #[must_use]
    pub fn folder(path: &str, owner: u64) -> Self {
        Self { path: path.to_owned(), mode: 0o755, owner, kind: Kind::Folder }
    }

    /// A text file.
    #[must_use]
    pub fn text(path: &str, mode: u32, text: &str) -> Self {
        Self { path: path.to_owned(), mode, owner: 0, kind: Kind::File(text.as_bytes().to_vec()) }
    }

    /// A program of this machine.
    #[must_use]
    pub fn program(path: &str, from: &Path) -> Self {
        Self { path: path.to_owned(), mode: 0o755, owner: 0, kind: Kind::Copy(from.to_path_buf()) }
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(path: &str, to: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o777, owner: 0, kind: Kind::Link(to.to_owned()) }
    }
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: hex(&Sha256::digest(&bytes)), bytes }
    }

    fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

/// Writes the archive.
pub fn write(image: &Image, archive: &Path) -> Result<()> {
    let shown = archive.display().to_string();
    let json_error = |e: serde_json::Error| Error::Format { what: shown.clone(), why: e.to_string() };
    let mut layers = Vec::with_capacity(image.layers.len());
    let mut diff_ids = Vec::with_capacity(image.layers.len());
    for entries in &image.layers {
        let (layer, diff_id) = layer(entries)?;
        diff_ids.push(format!("sha256:{diff_id}"));
        layers.push(layer);
    }
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "User": image.user, "Env": image.env},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Blob::new(serde_json::to_vec(&config).map_err(json_error)?);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": layers.iter().map(|l| l.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")).collect::<Vec<_>>(),
    });
    let manifest = Blob::new(serde_json::to_vec(&manifest).map_err(json_error)?);
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name,
    });
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    let index = serde_json::to_vec(&index).map_err(json_error)?;

    let mut out = tar::Builder::new(File::create(archive).map_err(Error::io(shown.clone()))?);
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = header(EntryType::Regular, 0o644, 0, bytes.len() as u64);
        out.append_data(&mut header, path, bytes).map_err(Error::io(shown.clone()))
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &index)?;
    for blob in layers.iter().chain([&config, &manifest]) {
        add(&format!("blobs/sha256/{}", blob.digest), &blob.bytes)?;
    }
    out.into_inner().and_then(|mut f| f.flush()).map_err(Error::io(shown.clone()))
}

/// The compressed layer, and the digest of what it is before compression.
fn layer(entries: &[Entry]) -> Result<(Blob, String)> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let what = || Error::io(format!("layer entry {}", entry.path));
        match &entry.kind {
            Kind::Folder => {
                let mut header = header(EntryType::Directory, entry.mode, entry.owner, 0);
                tar.append_data(&mut header, format!("{}/", entry.path), &[][..]).map_err(what())?;
            }
            Kind::File(bytes) => {
                let mut header = header(EntryType::Regular, entry.mode, entry.owner, bytes.len() as u64);
                tar.append_data(&mut header, &entry.path, &bytes[..]).map_err(what())?;
            }
            Kind::Copy(from) => {
                let bytes = std::fs::read(from).map_err(Error::io(from.display().to_string()))?;
                let mut header = header(EntryType::Regular, entry.mode, entry.owner, bytes.len() as u64);
                tar.append_data(&mut header, &entry.path, &bytes[..]).map_err(what())?;
            }
            Kind::Link(to) => {
                let mut header = header(EntryType::Symlink, entry.mode, entry.owner, 0);
                tar.append_link(&mut header, &entry.path, to).map_err(what())?;
            }
        }
    }
    let plain = tar.into_inner().map_err(Error::io("a layer"))?;
    let diff_id = hex(&Sha256::digest(&plain));
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).map_err(Error::io("compress a layer"))?;
    Ok((Blob::new(gzip.finish().map_err(Error::io("compress a layer"))?), diff_id))
}

fn header(kind: EntryType, mode: u32, owner: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_size(size);
    header.set_mtime(0);
    header
}

/// This machine's architecture in the words of image configurations.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{collections::BTreeMap, io::Read};

    fn sample() -> Image {
        Image {
            name: "trellis.local/x:1".to_owned(),
            layers: vec![
                vec![Entry::folder("bin", 0), Entry::text("bin/run", 0o755, "#!/bin/sh\n")],
                vec![Entry::link("bin/sh", "busybox"), Entry::folder("data", 1000)],
            ],
            entrypoint: vec!["/bin/run".to_owned()],
            user: "1000:1000".to_owned(),
            env: vec!["A=b".to_owned()],
        }
    }

    #[test]
    fn every_blob_is_what_its_digest_says_and_all_are_reachable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        write(&sample(), &path).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, bytes);
        }
        for (name, bytes) in files.iter().filter(|(n, _)| n.starts_with("blobs/")) {
            assert_eq!(name, &format!("blobs/sha256/{}", hex(&Sha256::digest(bytes))));
        }
        let blob = |v: &serde_json::Value| {
            let digest = v["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
            assert_eq!(v["size"], files[&digest].len());
            files[&digest].clone()
        };
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        for (i, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&blob(layer)[..]).read_to_end(&mut plain).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][i], format!("sha256:{}", hex(&Sha256::digest(&plain))));
        }
        assert_eq!(files.len(), 2 + 4);
    }

    #[test]
    fn the_same_image_is_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|n| dir.path().join(n));
        write(&sample(), &a).unwrap();
        write(&sample(), &b).unwrap();
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    }
}
