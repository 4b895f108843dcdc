//! What can go wrong with an image, each error naming the image or the entry.

use std::{io, path::PathBuf};

use crate::unpack::UnpackError;

/// Why an image is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not an image name.
    #[error("invalid image name {name:?}: {reason}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// imagePullPolicy Never, and the node does not have it.
    #[error(
        "image {name:?} is not present with pull policy of Never: import it with `trellis image import`, or change imagePullPolicy"
    )]
    NotPresent {
        /// As given.
        name: String,
    },
    /// The registry is away, does not have it, or answered nonsense.
    #[error("image {name:?} from registry {registry}: {reason}")]
    Registry {
        /// As given.
        name: String,
        /// `host[:port]`
        registry: String,
        /// What the registry or the network said.
        reason: String,
    },
    /// The registry wants other credentials, or some at all.
    #[error("image {name:?} from registry {registry}: {reason}")]
    Refused {
        /// As given.
        name: String,
        /// `host[:port]`
        registry: String,
        /// Who was refused, in the registry's words, and what to do.
        reason: String,
    },
    /// The bytes are not those that the digest promises.
    #[error("{what} of {name:?} has digest {found}, expected {expected}: the registry or archive is corrupt")]
    Digest {
        /// The image.
        name: String,
        /// Which blob.
        what: &'static str,
        /// Computed here.
        found: String,
        /// From the manifest or configuration.
        expected: String,
    },
    /// The manifest or configuration says something that cannot be.
    #[error("{name:?}: {reason}")]
    Malformed {
        /// The image or archive.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A layer was refused.
    #[error("layer {layer} of {name:?}: {source}")]
    Unpack {
        /// The image.
        name: String,
        /// Its digest.
        layer: String,
        /// Which entry and why.
        source: UnpackError,
    },
    /// The node's disk.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store was written by a newer release.
    #[error("{path}: image store version {found:?} is newer than this release reads: install a newer release")]
    TooNew {
        /// The store's folder.
        path: PathBuf,
        /// The version found.
        found: String,
    },
}

impl ImageError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Is trying again later of any use?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Registry { .. } | Self::Refused { .. } | Self::Io { .. } | Self::Digest { .. })
    }
}
