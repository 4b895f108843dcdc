//! From a compressed layer blob to a folder: decompress, hash, bound, untar.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    ImageError,
    unpack::{self, Limits, UnpackError},
};

/// What a finished layer amounts to.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// SHA-256 of the uncompressed tar: the layer's diff id.
    pub diff_id: String,
    /// SHA-256 of the bytes as they came.
    pub blob_digest: String,
    /// Uncompressed.
    pub bytes: u64,
    /// Folders that it leaves out, though it has entries in them.
    pub implied: Vec<String>,
}

/// Reads a layer in whichever compression its first bytes show (gzip, zstd or none) into the new
/// folder `into`. On error the folder is removed again.
///
/// Cost: one pass; memory is constant.
pub(crate) fn unpack_into(blob: impl Read, into: &Path, limits: &Limits) -> Result<Unpacked, UnpackError> {
    fs::create_dir_all(into).map_err(|e| UnpackError::disk(".", e))?;
    let result = run(blob, into, limits);
    if result.is_err() {
        // The error that stopped us says more than one from cleaning up; what stays behind is
        // swept at the next start.
        drop(fs::remove_dir_all(into));
    }
    result
}

fn run(blob: impl Read, into: &Path, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let root = File::open(into).map_err(|e| UnpackError::disk(".", e))?;
    let mut compressed = BufReader::with_capacity(128 << 10, Hashing::new(blob));
    let head = compressed.fill_buf().map_err(UnpackError::Stream)?.to_vec();
    let mut reader = Bounded { inner: decoder(&mut compressed, &head)?, hash: Sha256::new(), out: 0, limits };
    let root = root.into();
    let implied = unpack::unpack(&mut reader, &root, limits)?;
    // Padding behind the archive's end belongs to the diff id.
    io::copy(&mut reader, &mut io::sink()).map_err(|e| reader.explain(e))?;
    let (diff_id, bytes) = (digest(reader.hash.clone()), reader.out);
    drop(reader);
    io::copy(&mut compressed, &mut io::sink()).map_err(UnpackError::Stream)?;
    let blob_digest = digest(compressed.into_inner().hash);
    Ok(Unpacked { diff_id, blob_digest, bytes, implied })
}

fn decoder<'a>(source: &'a mut dyn BufRead, head: &[u8]) -> Result<Box<dyn Read + 'a>, UnpackError> {
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(source).map_err(UnpackError::Stream)?)
        }
        _ => Box::new(source),
    })
}

pub(crate) fn digest(hash: Sha256) -> String {
    use std::fmt::Write;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

pub(crate) struct Hashing<R> {
    inner: R,
    pub hash: Sha256,
}

impl<R> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

/// Stops a layer that grows past its limit. The bound is on what comes out; reading stops there,
/// so a bomb costs at most the limit.
struct Bounded<'a, R> {
    inner: R,
    hash: Sha256,
    out: u64,
    limits: &'a Limits,
}

impl<R> Bounded<'_, R> {
    fn explain(&self, error: io::Error) -> UnpackError {
        if self.out > self.limits.layer_bytes {
            UnpackError::TooLarge { limit_bytes: self.limits.layer_bytes }
        } else {
            UnpackError::Stream(error)
        }
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.out += n as u64;
        if self.out > self.limits.layer_bytes {
            return Err(io::Error::other(UnpackError::TooLarge { limit_bytes: self.limits.layer_bytes }));
        }
        Ok(n)
    }
}

/// The folder of a layer in the store.
pub(crate) fn folder(layers: &Path, diff_id: &str) -> Result<PathBuf, ImageError> {
    let hex = diff_id.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
    match hex {
        Some(hex) => Ok(layers.join(hex.to_ascii_lowercase())),
        None => Err(ImageError::Malformed {
            name: diff_id.to_owned(),
            reason: "not a sha256 digest, the only kind supported".to_owned(),
        }),
    }
}
