//! Requests too large for the transport.
//!
//! Whatever validation could refuse by name is let through to it ([`MAX_REQUEST_BYTES`]). What is
//! larger still is refused by the transport, in words of its own and with a code that means
//! "compacted away" in this API: that answer is replaced here.

use tonic::Status;
use tonic::body::Body;

use super::ops::ApiError;
use super::status::status;
use crate::store::{LimitExceeded, MAX_OBJECT_BYTES};

/// Largest message read by the Resources service: several times what an object may have, so that
/// it is validation that refuses an object, naming it.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024 * 1024;

/// Replaces the transport's refusal; any other answer is passed on as it is.
pub fn name_the_limit(response: http::Response<Body>) -> http::Response<Body> {
    // Only refusals without a body have their code here.
    if response.headers().get("grpc-status").is_none_or(|code| code != "11") {
        return response;
    }
    let refused = Status::from_header_map(response.headers());
    match refused.and_then(|s| limit_of(s.message())) {
        Some(limit) => status(ApiError::TooLarge(limit)).into_http(),
        None => response,
    }
}

/// The same for a message within a stream.
pub fn named(refused: Status) -> Status {
    limit_of(refused.message()).map_or(refused, |limit| status(ApiError::TooLarge(limit)))
}

/// The two numbers in tonic's text.
fn limit_of(message: &str) -> Option<LimitExceeded> {
    let rest = message.strip_prefix("Error, decoded message length too large: found ")?;
    let mut numbers = rest.split_whitespace().filter_map(|word| word.parse().ok());
    let (actual, limit) = (numbers.next()?, numbers.next()?);
    let what = format!("the size of this request in bytes (the object in it may have {MAX_OBJECT_BYTES})");
    Some(LimitExceeded { what, limit, actual })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn only_the_transports_own_refusal_is_replaced() {
        let text = "Error, decoded message length too large: found 9000000 bytes, the limit is: 8388608 bytes";
        let named = Status::from_header_map(name_the_limit(Status::out_of_range(text).into_http()).headers()).unwrap();
        assert_eq!(named.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            named.message(),
            "the size of this request in bytes (the object in it may have 1572864) is 9000000, the limit is 8388608"
        );
        for other in [Status::out_of_range("revision 7 is compacted away"), Status::not_found(text)] {
            let passed = Status::from_header_map(name_the_limit(other.clone().into_http()).headers()).unwrap();
            assert_eq!((passed.code(), passed.message()), (other.code(), other.message()));
        }
    }
}
