//! Images of a node: pulled from registries or imported from archives, verified, unpacked once
//! a layer, and handed out as a list of folders for an overlay root.
//!
//! ```text
//!  registry ──pull──┐                 ┌─ layers/<diff id>/   one folder a layer, shared
//!                   ├─► decompress ─► untar (unpack/)        between images
//!  archive ─import──┘   hash, bound   └─ images/<id>.json    names, config, layers: written
//!                                        last, after syncfs
//! ```
//! An image's record is written only when all its layers are complete and on disk; layers that no
//! record names are what a crash left, and go at the next start.
//!
//! Left out on purpose: building and pushing; file systems other than overlayfs.
#![forbid(unsafe_code)]

mod archive;
mod error;
pub mod gc;
mod layer;
mod lent;
mod members;
mod pull;
mod registry;
mod store;
pub mod unpack;

pub use error::ImageError;
pub use lent::Lent;
pub use oci_client::Reference;
pub use oci_spec::image::ImageConfiguration;
pub use pull::{Auth, Progress, PullPolicy};
pub use store::{Image, ImageStore, Options};

/// Puts a name into its full form: `nginx` is `docker.io/library/nginx:latest`.
pub fn normalize(name: &str) -> Result<String, ImageError> {
    parse(name).map(|r| r.whole())
}

pub(crate) fn parse(name: &str) -> Result<Reference, ImageError> {
    name.parse().map_err(|e: oci_client::ParseError| ImageError::Name { name: name.to_owned(), reason: e.to_string() })
}
