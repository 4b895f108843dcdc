//! What garbage collection knows of every object.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use trellis_model::Kind;

use crate::store::Stored;

/// What garbage collection needs to know of any object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Its revision.
    pub revision: u64,
    /// metadata.uid.
    pub uid: Arc<str>,
    /// Owners: uid, kind name, blockOwnerDeletion.
    pub owners: Vec<Owner>,
    /// metadata.finalizers.
    pub finalizers: Vec<String>,
    /// Its deletion was asked for.
    pub deleting: bool,
    /// Content is encrypted: only identity, uid and owners' uids are known.
    pub sealed: bool,
}

/// One owner reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The owner's uid.
    pub uid: Arc<str>,
    /// Its kind is one that is served, so that its absence is known.
    pub served: bool,
    /// blockOwnerDeletion.
    pub blocks: bool,
}

/// Of an object whose metadata can be read.
pub(super) fn meta_of(revision: u64, meta: &ObjectMeta) -> Meta {
    let owner = |o: &OwnerReference| Owner {
        uid: Arc::from(o.uid.as_str()),
        served: Kind::from_api_version_kind(&o.api_version, &o.kind).is_ok(),
        blocks: o.block_owner_deletion == Some(true),
    };
    Meta {
        revision,
        uid: Arc::from(meta.uid.as_deref().unwrap_or_default()),
        owners: meta.owner_references.iter().flatten().map(owner).collect(),
        finalizers: meta.finalizers.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        sealed: false,
    }
}

/// Of an object whose content is encrypted.
pub(super) fn sealed_meta(revision: u64, stored: &Stored) -> Meta {
    // The kinds of its owners are encrypted with it. Secrets are owned by served kinds here:
    // there are no others.
    let owner = |uid: &String| Owner { uid: Arc::from(uid.as_str()), served: true, blocks: false };
    Meta {
        revision,
        uid: Arc::from(stored.index.uid.as_str()),
        owners: stored.index.owners.iter().map(owner).collect(),
        sealed: true,
        ..Meta::default()
    }
}
