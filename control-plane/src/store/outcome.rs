//! What applying a command answers.

use serde::{Deserialize, Serialize};

use super::LimitExceeded;

/// The result of one command, the same on every member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The whole transaction was applied.
    Done {
        /// One per operation. Put: the object's revision (its present one when nothing
        /// changed); Delete: the deletion's revision; Check: the object's revision or 0;
        /// SysPut, SysDelete: the system revision; SetFeatureLevel: the level.
        revisions: Vec<u64>,
        /// Answered from memory: an earlier command with this request id did it.
        replayed: bool,
    },
    /// A condition did not hold; nothing was changed.
    Failed {
        /// Index of the operation at fault.
        op: usize,
        /// What did not hold.
        why: OpError,
        /// What is there instead.
        current: Option<Current>,
    },
    /// The entry landed in another term than the command's fence.
    FencedOut {
        /// The term it landed in.
        term: u64,
    },
    /// A limit; nothing was changed.
    TooLarge(LimitExceeded),
    /// The bytes in the log are no command this version understands (the text says why).
    /// Every member of this version answers alike and changes nothing.
    Refused(String),
}

impl Outcome {
    /// The revisions, when it was applied.
    pub fn done(&self) -> Option<&[u64]> {
        match self {
            Outcome::Done { revisions, .. } => Some(revisions),
            _ => None,
        }
    }
}

/// The present state of what a failed condition looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// Its revision (system revision for system entries).
    pub revision: u64,
    /// Its uid, empty for system entries.
    pub uid: String,
}

/// Why an operation's condition failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum OpError {
    /// It was to be absent.
    #[error("already exists")]
    AlreadyExists,
    /// It was to exist.
    #[error("not found")]
    NotFound,
    /// Somebody changed it since.
    #[error("the revision does not match")]
    RevisionMismatch,
    /// It is another object of the same name.
    #[error("the uid does not match")]
    UidMismatch,
    /// Two operations of one transaction name the same key.
    #[error("named twice in one transaction")]
    Duplicate,
    /// A feature level is never lowered.
    #[error("the feature level may only rise")]
    FeatureLevelLowered,
}
