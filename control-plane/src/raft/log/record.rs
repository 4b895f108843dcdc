//! Records of the log's segment files.
//!
//! ```text
//! segment = "TRLLOG" 0 version:u8  record*
//! record  = length:u32le crc:u32le kind:u8 postcard(body)      length counts kind and body
//! ```
//! The checksum is seeded with the segment's number, so that bytes of another segment are
//! never taken for this one's. A length of 0 is the preallocated rest of the last segment.
//! The first record of each segment is a [`Head`]: all that older segments said about votes
//! and bounds, so that they can be dropped whole.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::raft::config::{Entry, LogId, Vote};

/// First bytes of a segment; the last one is the format version.
pub(super) const MAGIC: &[u8; 8] = b"TRLLOG\0\x01";
pub(super) const MAGIC_LEN: u64 = 8;
const PREFIX: usize = 8;
/// Largest record accepted on reading: a transaction at its limit, and room.
const MAX_RECORD: u32 = 32 * 1024 * 1024;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub segment: u64,
    /// Segments before this one hold nothing any more.
    pub first_segment: u64,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Head(Head),
    Entry(Entry),
    Vote(Vote),
    Committed(LogId),
    /// Entries after this index are void; `None`: all.
    Truncate(Option<u64>),
    Purge {
        upto: LogId,
        first_segment: u64,
    },
}

const HEAD: u8 = 1;
const ENTRY: u8 = 2;
const VOTE: u8 = 3;
const COMMITTED: u8 = 4;
const TRUNCATE: u8 = 5;
const PURGE: u8 = 6;

fn seeded(segment: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn put(out: &mut Vec<u8>, segment: u64, kind: u8, body: &impl Serialize) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    out.push(kind);
    let mut bytes = postcard::to_extend(body, std::mem::take(out)).map_err(io::Error::other)?;
    let payload = start + PREFIX;
    let length = u32::try_from(bytes.len() - payload).map_err(io::Error::other)?;
    let crc = seeded(segment, &bytes[payload..]);
    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
    bytes[start + 4..payload].copy_from_slice(&crc.to_le_bytes());
    *out = bytes;
    Ok(())
}

/// Appends an encoded entry; cheaper than through [`encode`], which wants to own it.
pub(super) fn encode_entry(out: &mut Vec<u8>, segment: u64, entry: &Entry) -> io::Result<()> {
    put(out, segment, ENTRY, entry)
}

/// Appends an encoded record.
pub(super) fn encode(out: &mut Vec<u8>, segment: u64, record: &Record) -> io::Result<()> {
    match record {
        Record::Head(head) => put(out, segment, HEAD, head),
        Record::Entry(entry) => put(out, segment, ENTRY, entry),
        Record::Vote(vote) => put(out, segment, VOTE, vote),
        Record::Committed(id) => put(out, segment, COMMITTED, id),
        Record::Truncate(keep) => put(out, segment, TRUNCATE, keep),
        Record::Purge { upto, first_segment } => put(out, segment, PURGE, &(upto, first_segment)),
    }
}

/// What lies at the start of some bytes of a segment.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A record and the bytes it takes.
    Record(Record, usize),
    /// Nothing was ever written here.
    End,
    /// Written, but not whole.
    Broken,
}

/// Decodes the record at the start of `bytes`.
pub(super) fn decode(bytes: &[u8], segment: u64) -> io::Result<Found> {
    if bytes.is_empty() {
        return Ok(Found::End);
    }
    let Some((prefix, rest)) = bytes.split_at_checked(PREFIX) else {
        return Ok(Found::Broken);
    };
    let word = |i: usize| u32::from_le_bytes([prefix[i], prefix[i + 1], prefix[i + 2], prefix[i + 3]]);
    let (length, crc) = (word(0), word(4));
    if length == 0 {
        // The rest of the file tells whether this is the preallocated end or a hole in front
        // of something written.
        let end = bytes.iter().all(|b| *b == 0);
        return Ok(if end { Found::End } else { Found::Broken });
    }
    if length > MAX_RECORD || rest.len() < length as usize {
        return Ok(Found::Broken);
    }
    let payload = &rest[..length as usize];
    if seeded(segment, payload) != crc {
        return Ok(Found::Broken);
    }
    let record = body(payload[0], &payload[1..])?;
    Ok(Found::Record(record, PREFIX + length as usize))
}

fn body(kind: u8, bytes: &[u8]) -> io::Result<Record> {
    fn read<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
        // The checksum held, so it was written like this: by a newer program.
        postcard::from_bytes(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("log record: {e}")))
    }
    Ok(match kind {
        HEAD => Record::Head(read(bytes)?),
        ENTRY => Record::Entry(read(bytes)?),
        VOTE => Record::Vote(read(bytes)?),
        COMMITTED => Record::Committed(read(bytes)?),
        TRUNCATE => Record::Truncate(read(bytes)?),
        PURGE => {
            let (upto, first_segment) = read(bytes)?;
            Record::Purge { upto, first_segment }
        }
        other => {
            let text = format!("log record of kind {other}: written by a newer version");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    })
}

/// Name of a segment's file.
pub(super) fn file_name(segment: u64) -> String {
    format!("{segment:016x}.log")
}

/// The number in a segment's file name.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".log")?, 16).ok()
}
