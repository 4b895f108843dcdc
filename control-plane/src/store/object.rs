//! Objects as the store holds them: admitted JSON that is never re-serialised, beside the keys
//! it is indexed by.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Key;

/// What an object may be found by, extracted by whoever proposed it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// metadata.uid.
    pub uid: String,
    /// metadata.labels, sorted by the proposer.
    pub labels: Vec<(String, String)>,
    /// Selectable fields, e.g. ("spec.nodeName", "n1"). Those in
    /// [`INDEXED_FIELDS`](super::INDEXED_FIELDS) can be looked up.
    pub fields: Vec<(String, String)>,
    /// Uids of metadata.ownerReferences.
    pub owners: Vec<String>,
}

impl Index {
    /// The value of a selectable field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(f, _)| f == name).map(|(_, v)| v.as_str())
    }

    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(l, _)| l == name).map(|(_, v)| v.as_str())
    }
}

/// One version of an object, as admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The whole object's JSON without metadata.resourceVersion, or its ciphertext.
    pub json: Bytes,
    /// Offset right after `"metadata":{`, where `"resourceVersion":"N",` is put on reading.
    /// For sealed objects it refers to the plaintext.
    pub splice_at: u32,
    /// What it is found by.
    pub index: Index,
    /// `json` is ciphertext (Secrets); only the API layer holds the key.
    pub sealed: bool,
}

/// One version of an object with its place in the store's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// Its identity.
    pub key: Key,
    /// The revision of this version: metadata.resourceVersion.
    pub revision: u64,
    /// The revision at which the object was created.
    pub create_revision: u64,
    /// The object.
    pub object: Stored,
}

impl Versioned {
    /// The JSON with metadata.resourceVersion in it. Sealed objects must be unsealed first:
    /// their ciphertext is answered as it is.
    pub fn json_with_revision(&self) -> Bytes {
        self.json_at_revision(self.revision)
    }

    /// The same with another revision: a deleted object is told at its deletion's revision.
    pub fn json_at_revision(&self, revision: u64) -> Bytes {
        if self.object.sealed {
            return self.object.json.clone();
        }
        splice_revision(&self.object.json, self.object.splice_at, revision)
    }

    /// Bytes it keeps in memory, roughly.
    pub(crate) fn weight(&self) -> usize {
        // Struct, Arc, tree nodes and small allocations, measured at about 400 bytes.
        const OVERHEAD: usize = 400;
        let index = &self.object.index;
        let pairs = index.labels.iter().chain(&index.fields);
        OVERHEAD
            + self.key.len()
            + self.object.json.len()
            + pairs.map(|(a, b)| a.len() + b.len() + 48).sum::<usize>()
            + index.owners.iter().map(|o| o.len() + 24).sum::<usize>()
    }
}

/// Inserts `"resourceVersion":"N",` at `at`, which must lie inside a non-empty metadata object.
pub fn splice_revision(json: &[u8], at: u32, revision: u64) -> Bytes {
    let at = (at as usize).min(json.len());
    let field = format!("\"resourceVersion\":\"{revision}\",");
    let mut out = Vec::with_capacity(json.len() + field.len());
    out.extend_from_slice(&json[..at]);
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(&json[at..]);
    Bytes::from(out)
}
