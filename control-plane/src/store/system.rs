//! The system keyspace: what the cluster itself must agree on (its CA, join tokens, the
//! registry of members) and Resources never shows. Paths like "tokens/abc".

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One entry of the system keyspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysValue {
    /// The value.
    pub value: Bytes,
    /// Its system revision, a counter of its own: object revisions stay without gaps.
    pub revision: u64,
}
