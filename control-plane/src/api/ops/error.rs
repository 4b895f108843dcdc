//! What an operation can be refused for, in Kubernetes' words. Knows nothing of gRPC: the
//! mapping to a status is `api::status`'.

use trellis_model::{FieldError, Kind};

use crate::store::{Compacted, LimitExceeded};

/// Why an operation was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// No such object.
    #[error("{plural} {name:?} not found")]
    NotFound {
        /// `pods`, `deployments.apps`.
        plural: String,
        /// The object's name.
        name: String,
    },
    /// An object of this name is there already.
    #[error("{plural} {name:?} already exists")]
    AlreadyExists {
        /// `pods`.
        plural: String,
        /// The object's name.
        name: String,
    },
    /// The object changed meanwhile, or a precondition does not hold.
    #[error("Operation cannot be fulfilled on {plural} {name:?}: {why}")]
    Conflict {
        /// `pods`.
        plural: String,
        /// The object's name.
        name: String,
        /// What does not hold.
        why: String,
    },
    /// The object breaks rules; all of them at once.
    #[error("{kind} {name:?} is invalid: {}", listed(.causes))]
    Invalid {
        /// The kind's name.
        kind: Kind,
        /// The object's name.
        name: String,
        /// Every problem.
        causes: Vec<FieldError>,
    },
    /// The caller may not do it.
    #[error("{what} is forbidden: {why}")]
    Forbidden {
        /// `pods "x"`.
        what: String,
        /// Who may not do what.
        why: String,
    },
    /// Nobody is known to have called.
    #[error("{0}")]
    Unauthenticated(String),
    /// The request makes no sense, whatever the state.
    #[error("{0}")]
    BadRequest(String),
    /// The state does not allow it now.
    #[error("{0}")]
    Precondition(String),
    /// What the call is about stands behind a node that does not answer: another member would not reach it either.
    #[error("{0}")]
    Unreachable(String),
    /// A revision or continue token that is compacted away.
    #[error("{0}")]
    Expired(String),
    /// A limit of the store.
    #[error("{0}")]
    TooLarge(#[from] LimitExceeded),
    /// A limit on how much a client may do at once.
    #[error("{who} has {limit} {what} at once, which is the limit: wait for one to end")]
    TooMany {
        /// The client.
        who: String,
        /// "calls", "watches".
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// No quorum, no leader, or a peer is not reachable: trying again may help.
    #[error("{why}")]
    Unavailable {
        /// What is missing.
        why: String,
        /// Where the leader is thought to be.
        leader: Option<String>,
    },
    /// It was not done in time; whether it was done at all is unknown.
    #[error("{0}")]
    Timeout(String),
    /// A fault of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

fn listed(causes: &[FieldError]) -> String {
    match causes {
        [one] => one.to_string(),
        many => {
            let all: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("[{}]", all.join(", "))
        }
    }
}

impl ApiError {
    /// No such object.
    pub fn not_found(kind: Kind, name: &str) -> Self {
        Self::NotFound { plural: kind.qualified_plural(), name: name.to_owned() }
    }

    /// The name is taken.
    pub fn already_exists(kind: Kind, name: &str) -> Self {
        Self::AlreadyExists { plural: kind.qualified_plural(), name: name.to_owned() }
    }

    /// A precondition does not hold.
    pub fn conflict(kind: Kind, name: &str, why: impl Into<String>) -> Self {
        Self::Conflict { plural: kind.qualified_plural(), name: name.to_owned(), why: why.into() }
    }

    /// The object was changed since the revision that the caller has.
    pub fn modified(kind: Kind, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        Self::conflict(kind, name, why)
    }

    /// Not allowed.
    pub fn forbidden(kind: Kind, name: &str, why: impl Into<String>) -> Self {
        let plural = kind.qualified_plural();
        let what = if name.is_empty() { plural } else { format!("{plural} {name:?}") };
        Self::Forbidden { what, why: why.into() }
    }
}

impl From<Compacted> for ApiError {
    fn from(e: Compacted) -> Self {
        Self::Expired(e.to_string())
    }
}
