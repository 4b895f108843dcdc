//! What runs on a lab's cluster: images made here, without a registry, and their manifests.

pub mod image;
pub mod web;
