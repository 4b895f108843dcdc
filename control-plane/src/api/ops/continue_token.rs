//! The opaque token that continues a list: a version, the revision that all pages are of, and
//! the last key of the page before.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use trellis_model::Kind;

use super::ApiError;
use super::encode::key_of;
use crate::store::Key;

const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Token<'a> {
    v: u8,
    kind: &'a str,
    revision: u64,
    namespace: std::borrow::Cow<'a, str>,
    name: std::borrow::Cow<'a, str>,
}

/// The token after `last`.
pub(super) fn encode(revision: u64, last: &Key) -> String {
    let token = Token {
        v: VERSION,
        kind: &last.kind,
        revision,
        namespace: last.namespace.as_str().into(),
        name: last.name.as_str().into(),
    };
    // Plain strings and numbers always serialise.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// Revision and last key of a token for a list of `kind`.
pub(super) fn decode(kind: Kind, text: &str) -> Result<(u64, Key), ApiError> {
    let bad = || ApiError::BadRequest("the continue token is not one of this list".to_owned());
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
    let token: Token<'_> = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    if token.v != VERSION || token.kind != kind.name() {
        return Err(bad());
    }
    Ok((token.revision, key_of(kind, &token.namespace, &token.name)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        let key = key_of(Kind::Pod, "default", "a");
        let token = encode(7, &key);
        assert_eq!(decode(Kind::Pod, &token).unwrap(), (7, key));
        assert!(decode(Kind::Node, &token).is_err());
        assert!(decode(Kind::Pod, "x!").is_err());
        assert!(decode(Kind::Pod, &token[1..]).is_err());
    }
}
