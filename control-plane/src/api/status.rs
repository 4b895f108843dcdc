//! The one place where an error becomes a gRPC status, with all its causes in the details.

use prost::Message as _;
use tonic::{Code, Status};
use trellis_proto::api::{Cause, StatusDetails};

use super::ops::ApiError;

/// The status of a refused call. Kubernetes' reason and every cause travel in its details.
pub fn status(error: ApiError) -> Status {
    let (code, reason) = classify(&error);
    let message = error.to_string();
    let (causes, leader_address) = match error {
        ApiError::Invalid { causes, .. } => {
            let causes =
                causes.into_iter().map(|c| Cause { field: c.field, reason: c.reason.to_owned(), message: c.message });
            (causes.collect(), String::new())
        }
        ApiError::Unavailable { leader, .. } => (Vec::new(), leader.unwrap_or_default()),
        _ => (Vec::new(), String::new()),
    };
    if code == Code::Internal {
        tracing::error!(%message, "a call failed by our own fault");
    }
    let details = StatusDetails { reason: reason.to_owned(), causes, leader_address };
    Status::with_details(code, message, details.encode_to_vec().into())
}

fn classify(error: &ApiError) -> (Code, &'static str) {
    match error {
        ApiError::NotFound { .. } => (Code::NotFound, "NotFound"),
        ApiError::AlreadyExists { .. } => (Code::AlreadyExists, "AlreadyExists"),
        ApiError::Conflict { .. } => (Code::Aborted, "Conflict"),
        ApiError::Invalid { .. } => (Code::InvalidArgument, "Invalid"),
        ApiError::Forbidden { .. } => (Code::PermissionDenied, "Forbidden"),
        ApiError::Unauthenticated(_) => (Code::Unauthenticated, "Unauthorized"),
        ApiError::BadRequest(_) => (Code::InvalidArgument, "BadRequest"),
        ApiError::Precondition(_) => (Code::FailedPrecondition, "Conflict"),
        // Not UNAVAILABLE: a client would ask the other members, in vain.
        ApiError::Unreachable(_) => (Code::FailedPrecondition, "ServiceUnavailable"),
        ApiError::Expired(_) => (Code::OutOfRange, "Expired"),
        ApiError::TooLarge(_) => (Code::ResourceExhausted, "RequestEntityTooLarge"),
        ApiError::TooMany { .. } => (Code::ResourceExhausted, "TooManyRequests"),
        ApiError::Unavailable { .. } => (Code::Unavailable, "ServiceUnavailable"),
        ApiError::Timeout(_) => (Code::DeadlineExceeded, "Timeout"),
        ApiError::Internal(_) => (Code::Internal, "InternalError"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use trellis_model::{FieldError, Kind};

    #[test]
    fn each_error_has_its_code_and_reason() {
        let text = || "x".to_owned();
        let cases = [
            (ApiError::not_found(Kind::Pod, "p"), Code::NotFound, "NotFound"),
            (ApiError::already_exists(Kind::Pod, "p"), Code::AlreadyExists, "AlreadyExists"),
            (ApiError::conflict(Kind::Pod, "p", text()), Code::Aborted, "Conflict"),
            (ApiError::forbidden(Kind::Pod, "p", text()), Code::PermissionDenied, "Forbidden"),
            (ApiError::BadRequest(text()), Code::InvalidArgument, "BadRequest"),
            (ApiError::Precondition(text()), Code::FailedPrecondition, "Conflict"),
            (ApiError::Unreachable(text()), Code::FailedPrecondition, "ServiceUnavailable"),
            (ApiError::Expired(text()), Code::OutOfRange, "Expired"),
            (ApiError::Unavailable { why: text(), leader: None }, Code::Unavailable, "ServiceUnavailable"),
            (ApiError::Internal(text()), Code::Internal, "InternalError"),
        ];
        for (error, code, reason) in cases {
            let told = status(error);
            assert_eq!(told.code(), code, "{told:?}");
            assert_eq!(trellis_proto::status::details(&told).unwrap().reason, reason);
        }
    }

    #[test]
    fn every_cause_travels() {
        let causes = vec![FieldError::type_invalid("spec.a", "no"), FieldError::type_invalid("spec.b", "no")];
        let error = ApiError::Invalid { kind: Kind::Pod, name: "p".into(), causes };
        let status = status(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = trellis_proto::status::details(&status).unwrap();
        assert_eq!(details.reason, "Invalid");
        let fields: Vec<_> = details.causes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["spec.a", "spec.b"]);
        let message = status.message();
        assert!(message.starts_with("Pod \"p\" is invalid: [spec.a: "), "{message}");
    }
}
