//! What the operations need from below: a store to read and somebody to propose to. The raft
//! layer is one; tests apply straight to a store.

use futures::future::BoxFuture;

use super::ApiError;
use crate::store::{Command, Outcome, Store};

/// Proposes transactions and tells when reads are fresh.
pub trait Backend: Send + Sync + 'static {
    /// The local replica.
    fn store(&self) -> &Store;

    /// Answers once the command is applied here, so that the caller reads its own write.
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ApiError>>;

    /// Answers once every write acknowledged before the call is applied here.
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ApiError>>;
}

/// One member in memory, without a log: for tests of what lies above.
#[derive(Debug, Default)]
pub struct InMemory {
    store: Store,
}

impl InMemory {
    /// With an empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Backend for InMemory {
    fn store(&self) -> &Store {
        &self.store
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ApiError>> {
        Box::pin(async move {
            let bytes = command.encode().map_err(|e| ApiError::Internal(e.to_string()))?;
            let outcome = self.store.apply([(1, &bytes[..])]).pop();
            outcome.ok_or_else(|| ApiError::Internal("nothing was applied".into()))
        })
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }
}
