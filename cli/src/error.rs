//! What went wrong, in words for a person and a code for a script.

use tonic::{Code, Status};
use trellis_proto::status;

/// Wrong usage.
pub const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const CONFLICT: u8 = 4;
const UNAVAILABLE: u8 = 5;
/// As timeout(1).
const TIMEOUT: u8 = 124;

/// Every way in which a verb ends that is not success.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments do not fit together.
    #[error("error: {0}")]
    Usage(String),
    /// A file, a manifest, or the machine is in the way.
    #[error("error: {0}")]
    Local(String),
    /// The server refused or could not be reached.
    #[error("{}", server_text(.0))]
    Server(Box<Status>),
    /// Something was waited for in vain.
    #[error("error: timed out {0}")]
    Timeout(String),
    /// Already told; or the exit code of what `exec` ran.
    #[error("")]
    Exit(u8),
}

impl CliError {
    /// A local error from anything that can say why.
    pub fn local(why: impl std::fmt::Display) -> Self {
        CliError::Local(why.to_string())
    }

    /// The process' exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Usage(_) => USAGE,
            CliError::Local(_) => 1,
            CliError::Timeout(_) => TIMEOUT,
            CliError::Exit(code) => *code,
            CliError::Server(s) => match s.code() {
                Code::NotFound => NOT_FOUND,
                Code::AlreadyExists | Code::Aborted => CONFLICT,
                Code::FailedPrecondition if reason(s) == "Conflict" => CONFLICT,
                Code::FailedPrecondition if reason(s) == "ServiceUnavailable" => UNAVAILABLE,
                Code::Unavailable | Code::DeadlineExceeded => UNAVAILABLE,
                _ => 1,
            },
        }
    }

    /// What the server says of an object that is not there.
    pub fn not_found(kind: trellis_model::Kind, name: &str) -> Self {
        Status::not_found(format!("{} {name:?} not found", kind.qualified_plural())).into()
    }

    /// Whether the server says that there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, CliError::Server(s) if s.code() == Code::NotFound)
    }

    /// Whether somebody else changed the object meanwhile.
    pub fn is_conflict(&self) -> bool {
        self.exit_code() == CONFLICT
    }

    /// Whether nobody answers: what is asked next would wait as long, in vain.
    pub fn is_unreachable(&self) -> bool {
        self.exit_code() == UNAVAILABLE
    }

    /// Whether the server says that it no longer has the changes since then.
    pub fn is_expired(&self) -> bool {
        matches!(self, CliError::Server(s) if reason(s) == "Expired")
    }
}

impl From<Status> for CliError {
    fn from(s: Status) -> Self {
        CliError::Server(Box::new(s))
    }
}

impl From<trellis_proto::client::ContextError> for CliError {
    fn from(e: trellis_proto::client::ContextError) -> Self {
        CliError::local(e)
    }
}

fn reason(s: &Status) -> String {
    let told = status::details(s).map(|d| d.reason).filter(|r| !r.is_empty());
    told.unwrap_or_else(|| {
        match s.code() {
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::Aborted => "Conflict",
            Code::InvalidArgument => "BadRequest",
            Code::PermissionDenied => "Forbidden",
            Code::Unauthenticated => "Unauthorized",
            Code::ResourceExhausted => "TooManyRequests",
            // What an event or a page is too old for is told with details; this is the transport.
            Code::OutOfRange if s.message().contains("length too large") => "RequestEntityTooLarge",
            Code::OutOfRange => "Expired",
            Code::FailedPrecondition => "BadRequest",
            Code::DeadlineExceeded => "Timeout",
            Code::Unavailable => "ServiceUnavailable",
            Code::Unimplemented => "MethodNotAllowed",
            _ => "InternalError",
        }
        .to_owned()
    })
}

/// What the server says, all causes listed.
pub fn server_text(s: &Status) -> String {
    if s.code() == Code::Unavailable && status::details(s).is_none() {
        return format!("error: the control plane cannot be reached: {}", s.message());
    }
    let causes = status::details(s).map(|d| d.causes).unwrap_or_default();
    let mut text = match reason(s).as_str() {
        "Invalid" => s.message().to_owned(),
        r => format!("Error from server ({r}): {}", s.message()),
    };
    // One cause usually stands in the message already; several are easier read as a list.
    let lines: Vec<String> = causes
        .iter()
        .map(|c| match c.field.as_str() {
            "" => c.message.clone(),
            f => format!("{f}: {}", c.message),
        })
        .filter(|l| causes.len() > 1 || !text.contains(l.as_str()))
        .collect();
    if lines.len() > 1
        && let Some(at) = lines.first().and_then(|l| text.find(l.as_str()))
    {
        // The message repeats the list: keep what stands before it.
        text.truncate(at);
        let kept = text.trim_end_matches([' ', '[', ':']).len();
        text.truncate(kept);
        text.push(':');
    }
    for l in lines {
        text.push_str("\n* ");
        text.push_str(&l);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use trellis_proto::api::Cause;

    fn cause(field: &str, message: &str) -> Cause {
        Cause { field: field.into(), reason: String::new(), message: message.into() }
    }

    #[test]
    fn all_causes_are_listed_once() {
        let causes = vec![cause("spec.a", "Required value"), cause("spec.b", "Forbidden: no")];
        let message = "Pod \"x\" is invalid: [spec.a: Required value, spec.b: Forbidden: no]";
        let s = status::with_details(Code::InvalidArgument, message, "Invalid", causes);
        assert_eq!(server_text(&s), "Pod \"x\" is invalid:\n* spec.a: Required value\n* spec.b: Forbidden: no");
        let one = vec![cause("spec.a", "Required value")];
        let message = "Pod \"x\" is invalid: spec.a: Required value";
        let s = status::with_details(Code::InvalidArgument, message, "Invalid", one);
        assert_eq!(server_text(&s), message);
    }

    #[test]
    fn exit_codes() {
        for (code, want) in [
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::Aborted, 4),
            (Code::Unavailable, 5),
            (Code::InvalidArgument, 1),
        ] {
            assert_eq!(CliError::from(Status::new(code, "x")).exit_code(), want);
        }
        for (reason, want) in [("Conflict", 4), ("ServiceUnavailable", 5), ("", 1)] {
            let s = status::with_details(Code::FailedPrecondition, "x", reason, Vec::new());
            assert_eq!(CliError::from(s).exit_code(), want, "{reason}");
        }
        assert_eq!(CliError::Exit(42).exit_code(), 42);
        let e = CliError::from(Status::not_found("pods \"x\" not found"));
        assert_eq!(e.to_string(), "Error from server (NotFound): pods \"x\" not found");
    }
}
