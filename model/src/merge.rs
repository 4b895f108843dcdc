//! JSON merge patch, RFC 7386.

use serde_json::Value;

/// Merges `patch` into `target`: null deletes, objects merge, all else replaces (RFC 7386,
/// section 2).
pub fn rfc7386(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}
