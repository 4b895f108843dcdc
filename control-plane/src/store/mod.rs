//! The store: a deterministic state machine of objects, held in memory, with one global
//! revision and a bounded history for watches.
//!
//! Owners: [`state`] decides what a command does (pure: no clock, no randomness, no hash
//! order); [`Store`] is the handle that many readers and the one applier share; [`watch`]
//! turns the history into streams; [`snapshot`] writes and reads all of it.
//!
//! Rules that everything here keeps:
//! - each changed object gets its own consecutive revision; readers only ever see the state
//!   between two transactions;
//! - objects are the bytes that were admitted and are never re-serialised;
//! - history is one for all watchers: a watcher is a cursor, nothing is queued for it. Who
//!   falls behind the bounded history is told so ([`Compacted`]), never skipped ahead;
//! - what decides an [`Outcome`] (limits, request memory) is constant or replicated; the
//!   history's bounds decide no outcome.
//!
//! Left out on purpose: what the objects mean (crate `trellis-model`, `api/`), encryption
//! (the proposer's; see [`Stored::sealed`]), and the log (`raft/`).

mod command;
mod handle;
mod history;
mod index;
mod key;
mod object;
mod outcome;
mod page;
mod requests;
pub mod snapshot;
mod state;
mod system;
#[cfg(test)]
mod tests;
mod watch;

pub use command::{
    Command, CommandDecodeError, LimitExceeded, MAX_KEY_BYTES, MAX_OBJECT_BYTES, MAX_REQUEST_ID_BYTES,
    MAX_TRANSACTION_BYTES, MAX_TRANSACTION_OPS, Op, SysWhen, When,
};
pub use handle::{Store, StoreStats};
pub use history::{Event, HistoryLimits};
pub use index::INDEXED_FIELDS;
pub use key::Key;
pub use object::{Index, Stored, Versioned, splice_revision};
pub use outcome::{Current, OpError, Outcome};
pub use page::{Page, RevisionError};
pub use requests::{MAX_REMEMBERED_REQUESTS, REQUEST_MEMORY_MILLIS, Revisions};
pub use state::{FIRST_FEATURE_LEVEL, State};
pub use system::SysValue;
pub use watch::{Compacted, WatchBatch, WatchFilter, Watcher};
