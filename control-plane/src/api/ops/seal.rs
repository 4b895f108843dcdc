//! Secrets lie encrypted in log, store and snapshot: the proposer seals the whole object, the
//! reader opens it. The seal holds the object's identity, so that one Secret's ciphertext cannot
//! be passed off as another's.

use bytes::Bytes;
use trellis_proto::pki::{self, Key as EncryptionKey};

use super::ApiError;
use crate::store::{Key, Versioned, splice_revision};

/// Seals and opens with the key-encryption key.
#[derive(Debug, Clone)]
pub struct Sealer {
    key: EncryptionKey,
}

impl Sealer {
    /// With the cluster's key-encryption key.
    pub fn new(key: EncryptionKey) -> Self {
        Self { key }
    }

    /// The key itself, for what else is sealed with it.
    pub fn key(&self) -> &EncryptionKey {
        &self.key
    }

    /// Ciphertext of an object's JSON.
    pub fn seal(&self, key: &Key, json: &[u8]) -> Bytes {
        pki::seal(&self.key, key.to_string().as_bytes(), json).into()
    }

    /// The object's JSON as admitted, without metadata.resourceVersion.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when the seal is of another key or broken.
    pub fn open(&self, object: &Versioned) -> Result<Bytes, ApiError> {
        if !object.object.sealed {
            return Ok(object.object.json.clone());
        }
        let context = object.key.to_string();
        let plain = pki::open(&self.key, context.as_bytes(), &object.object.json)
            .map_err(|e| ApiError::Internal(format!("{context} cannot be opened: {e}")))?;
        Ok(Bytes::copy_from_slice(&plain))
    }

    /// The object's JSON with metadata.resourceVersion at `revision`.
    ///
    /// # Errors
    /// Those of [`Sealer::open`].
    pub fn json_at(&self, object: &Versioned, revision: u64) -> Result<Bytes, ApiError> {
        if !object.object.sealed {
            return Ok(object.json_at_revision(revision));
        }
        Ok(splice_revision(&self.open(object)?, object.object.splice_at, revision))
    }
}
