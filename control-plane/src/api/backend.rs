//! The raft layer as the operations' backend: the mapping of its errors.

use futures::future::BoxFuture;

use super::ops::{ApiError, Backend};
use crate::raft::{Consensus, LeaderError, MemberError, ProposeError};
use crate::store::{Command, Outcome, Store};

impl Backend for Consensus {
    fn store(&self) -> &Store {
        Consensus::store(self)
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ApiError>> {
        let repeatable = command.request_id.is_some();
        Box::pin(async move { Consensus::propose(self, command).await.map_err(|e| propose_error(e, repeatable)) })
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move { Consensus::read_barrier(self).await.map_err(ApiError::from) })
    }
}

fn propose_error(error: ProposeError, repeatable: bool) -> ApiError {
    let why = error.to_string();
    match error {
        ProposeError::Unavailable { leader_api_address: leader, .. } => ApiError::Unavailable { why, leader },
        // With a request id the client may simply send it again; without one, only it can know.
        ProposeError::Unknown { .. } if repeatable => ApiError::Unavailable { why, leader: None },
        ProposeError::Unknown { .. } => ApiError::Timeout(why),
        ProposeError::TooLarge(limit) => ApiError::TooLarge(limit),
        ProposeError::Encode(_) => ApiError::Internal(why),
        ProposeError::Stopped(_) => ApiError::Unavailable { why, leader: None },
    }
}

impl From<LeaderError> for ApiError {
    fn from(error: LeaderError) -> Self {
        let why = error.to_string();
        match error {
            LeaderError::Unavailable { leader_api_address: leader, .. } => Self::Unavailable { why, leader },
            LeaderError::Stopped(_) => Self::Unavailable { why, leader: None },
        }
    }
}

impl From<MemberError> for ApiError {
    fn from(error: MemberError) -> Self {
        match error {
            MemberError::Leader(e) => e.into(),
            other => Self::Precondition(other.to_string()),
        }
    }
}
