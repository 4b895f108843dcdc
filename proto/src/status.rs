//! Reading what a refused call carries.

use prost::Message;
use tonic::{Code, Status};

use crate::api::{Cause, StatusDetails};

/// The details of a refusal, when the other side sent any.
#[must_use]
pub fn details(status: &Status) -> Option<StatusDetails> {
    let bytes = status.details();
    if bytes.is_empty() { None } else { StatusDetails::decode(bytes).ok() }
}

/// Makes a status that carries `reason` and `causes`.
#[must_use]
pub fn with_details(code: Code, message: impl Into<String>, reason: &str, causes: Vec<Cause>) -> Status {
    let details = StatusDetails { reason: reason.to_owned(), causes, leader_address: String::new() };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// May the same request be sent again, to this member or the next, without asking a person?
///
/// True where the call did not run or where a request id makes running it twice harmless.
#[must_use]
pub fn retryable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        // A connection that broke under the call surfaces so.
        Code::Unknown | Code::Cancelled | Code::Internal => {
            std::error::Error::source(status).is_some() || is_transport(status.message())
        }
        _ => false,
    }
}

/// Is a bare HTTP/2 failure what the message speaks of? The transport's own errors carry no code.
fn is_transport(message: &str) -> bool {
    ["transport error", "h2 protocol error", "connection error", "operation was canceled", "error reading a body"]
        .iter()
        .any(|m| message.contains(m))
}
