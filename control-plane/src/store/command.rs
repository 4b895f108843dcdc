//! Commands: what is written into the log. One command is one transaction, all or nothing.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Key, Stored};

/// Largest object, in bytes of JSON: etcd's default request limit, which manifests fit today.
pub const MAX_OBJECT_BYTES: usize = 1_572_864;
/// Most operations in one transaction.
pub const MAX_TRANSACTION_OPS: usize = 1_000;
/// Largest transaction: it must fit one log record and one message between members.
pub const MAX_TRANSACTION_BYTES: usize = 8 * 1024 * 1024;
/// Longest request id: a uuid with a caller's name before it, with room to spare.
pub const MAX_REQUEST_ID_BYTES: usize = 256;
/// Longest key text of any object or system entry.
pub const MAX_KEY_BYTES: usize = 1_024;

/// First byte of an encoded command.
const FORMAT: u8 = 1;

/// One transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Made once per logical request and kept over retries; the state machine answers a
    /// repeated one from memory. Prefix it with the caller's identity: it is one space.
    pub request_id: Option<String>,
    /// The proposer's clock, Unix milliseconds: the only time that apply ever sees.
    pub now_millis: u64,
    /// Refused when the entry lands in another term than this.
    pub fence_term: Option<u64>,
    /// Preconditions are all checked against the state before the transaction.
    pub ops: Vec<Op>,
}

/// One step of a transaction. No two may name the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Creates or replaces an object. Equal content is no change: no new revision, no event.
    Put {
        /// Which object.
        key: Key,
        /// On which condition.
        when: When,
        /// Its new version.
        object: Stored,
    },
    /// Removes an object; NotFound when it is absent.
    Delete {
        /// Which object.
        key: Key,
        /// On which condition.
        when: When,
    },
    /// Changes nothing, but fails the transaction when the condition does not hold.
    Check {
        /// Which object.
        key: Key,
        /// The condition.
        when: When,
    },
    /// Writes into the system keyspace, which Resources never shows.
    SysPut {
        /// Path-like key, "ca/key".
        key: String,
        /// On which condition.
        when: SysWhen,
        /// The new value.
        value: Bytes,
    },
    /// Removes from the system keyspace.
    SysDelete {
        /// Path-like key.
        key: String,
        /// On which condition.
        when: SysWhen,
    },
    /// Starts new behaviour of apply; only ever raised, once all members support it.
    SetFeatureLevel(u32),
}

/// A condition on an object's present state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// None.
    Always,
    /// It does not exist.
    Absent,
    /// It exists.
    Exists,
    /// It exists at exactly this revision.
    Revision(u64),
    /// It exists with this uid.
    Uid(String),
    /// Both.
    RevisionAndUid(u64, String),
}

/// A condition on an entry of the system keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SysWhen {
    /// None.
    Always,
    /// It does not exist.
    Absent,
    /// It exists.
    Exists,
    /// It exists at exactly this system revision.
    Revision(u64),
}

/// A limit that a command exceeds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{what} is {actual}, the limit is {limit}")]
pub struct LimitExceeded {
    /// What is too large, naming the object.
    pub what: String,
    /// The limit's value.
    pub limit: u64,
    /// The value found.
    pub actual: u64,
}

/// Why bytes are not a command of this version.
#[derive(Debug, thiserror::Error)]
pub enum CommandDecodeError {
    /// Written by a newer version, or not a command at all.
    #[error("command format {found} is not known here (this version reads {FORMAT})")]
    Format {
        /// The leading byte.
        found: u8,
    },
    /// Nothing there.
    #[error("an empty command")]
    Empty,
    /// Broken content.
    #[error("command does not decode: {0}")]
    Content(#[from] postcard::Error),
}

impl Command {
    /// A command at `now_millis` without request id or fence.
    pub fn new(now_millis: u64, ops: Vec<Op>) -> Self {
        Self { request_id: None, now_millis, fence_term: None, ops }
    }

    /// Sets the request id.
    pub fn with_request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// Sets the fence.
    pub fn fenced(mut self, term: u64) -> Self {
        self.fence_term = Some(term);
        self
    }

    /// Encodes it for the log: a format byte, then postcard.
    pub fn encode(&self) -> Result<Bytes, postcard::Error> {
        let hint: usize = self.ops.iter().map(Op::len).sum();
        let mut out = Vec::with_capacity(hint + 64);
        out.push(FORMAT);
        Ok(Bytes::from(postcard::to_extend(self, out)?))
    }

    /// Reads what [`Command::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandDecodeError> {
        match bytes.split_first() {
            None => Err(CommandDecodeError::Empty),
            Some((&FORMAT, rest)) => Ok(postcard::from_bytes(rest)?),
            Some((&found, _)) => Err(CommandDecodeError::Format { found }),
        }
    }

    /// Checks sizes; the proposer does so early, apply does so again.
    pub fn check_limits(&self) -> Result<(), LimitExceeded> {
        let over = |what: String, limit: usize, actual: usize| LimitExceeded {
            what,
            limit: limit as u64,
            actual: actual as u64,
        };
        if self.ops.len() > MAX_TRANSACTION_OPS {
            let what = "the number of operations in one transaction".to_string();
            return Err(over(what, MAX_TRANSACTION_OPS, self.ops.len()));
        }
        if let Some(id) = &self.request_id
            && id.len() > MAX_REQUEST_ID_BYTES
        {
            let what = "the request id's length in bytes".to_string();
            return Err(over(what, MAX_REQUEST_ID_BYTES, id.len()));
        }
        let mut total = 0;
        for op in &self.ops {
            total += op.len();
            let (key_len, value_len) = op.sizes();
            if key_len > MAX_KEY_BYTES {
                let what = "the length of an object's identity in bytes".to_string();
                return Err(over(what, MAX_KEY_BYTES, key_len));
            }
            if value_len > MAX_OBJECT_BYTES {
                let what = format!("the size of {} in bytes", op.name());
                return Err(over(what, MAX_OBJECT_BYTES, value_len));
            }
        }
        if total > MAX_TRANSACTION_BYTES {
            let what = "the size of one transaction in bytes".to_string();
            return Err(over(what, MAX_TRANSACTION_BYTES, total));
        }
        Ok(())
    }
}

impl Op {
    /// Bytes it takes, roughly.
    fn len(&self) -> usize {
        let (key, value) = self.sizes();
        let index = match self {
            Op::Put { object, .. } => {
                let pairs = object.index.labels.iter().chain(&object.index.fields);
                pairs.map(|(a, b)| a.len() + b.len() + 2).sum::<usize>()
                    + object.index.owners.iter().map(|o| o.len() + 1).sum::<usize>()
                    + object.index.uid.len()
            }
            _ => 0,
        };
        key + value + index + 32
    }

    /// Bytes of its key and of its value.
    fn sizes(&self) -> (usize, usize) {
        match self {
            Op::Put { key, object, .. } => (key.len(), object.json.len()),
            Op::Delete { key, .. } | Op::Check { key, .. } => (key.len(), 0),
            Op::SysPut { key, value, .. } => (key.len(), value.len()),
            Op::SysDelete { key, .. } => (key.len(), 0),
            Op::SetFeatureLevel(_) => (0, 0),
        }
    }

    /// What it writes, for a person.
    fn name(&self) -> String {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => key.to_string(),
            Op::SysPut { key, .. } | Op::SysDelete { key, .. } => key.clone(),
            Op::SetFeatureLevel(level) => format!("feature level {level}"),
        }
    }
}
