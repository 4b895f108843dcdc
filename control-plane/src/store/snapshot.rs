//! Snapshots of the whole state, streamed.
//!
//! ```text
//! "TRLSTORE" version:u8
//! record*      record = length:u32le crc32:u32le postcard(Record)
//! ```
//! Order: Head, then every version that is live or that the history mentions (by revision),
//! the history's events (naming versions by revision), system entries, remembered requests,
//! End with the count of records. The history is in it because all members must be able to
//! continue a watch from the same revision; each version is written once however many
//! events mention it.
//!
//! Taking a [`Capture`] copies pointers only; encoding happens without any lock.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::history::{Event, History, HistoryLimits};
use super::index::Objects;
use super::requests::{Remembered, Requests};
use super::state::State;
use super::{Store, SysValue, Versioned};

const MAGIC: &[u8; 8] = b"TRLSTORE";
const VERSION: u8 = 1;
/// Largest record accepted on reading: an object at its limit with generous index keys.
const MAX_RECORD: u32 = 16 * 1024 * 1024;

#[derive(Deserialize)]
enum Record {
    Head(Head),
    Version { live: bool, version: Versioned },
    Event(EventRecord),
    System { key: String, value: Bytes, revision: u64 },
    Request { key: [u8; 16], at_millis: u64, revisions: Vec<u64> },
    End { records: u64 },
}

/// The same for writing, by reference: a snapshot is many small records, and copying each would
/// cost more than encoding it. Variants and fields stand in [`Record`]'s order.
#[derive(Serialize)]
enum RecordRef<'a> {
    Head(&'a Head),
    Version { live: bool, version: &'a Versioned },
    Event(EventRecord),
    System { key: &'a str, value: &'a Bytes, revision: u64 },
    Request { key: [u8; 16], at_millis: u64, revisions: &'a [u64] },
    End { records: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    revision: u64,
    sys_revision: u64,
    logged_millis: u64,
    feature_level: u32,
    floor: u64,
    dropped: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct EventRecord {
    revision: u64,
    txn_end: u64,
    old: Option<u64>,
    new: Option<u64>,
}

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The source failed.
    #[error("reading the snapshot: {0}")]
    Io(#[from] io::Error),
    /// Not a snapshot of the store.
    #[error("this is no store snapshot (it does not begin with TRLSTORE)")]
    Magic,
    /// A newer program wrote it.
    #[error("snapshot version {0} is not known here (this program reads {VERSION}): update this member")]
    Version(u8),
    /// Bits flipped or were lost.
    #[error("snapshot record {0} is damaged: {1}")]
    Damaged(u64, String),
}

/// The state at one moment, by reference.
#[derive(Debug)]
pub struct Capture {
    head: Head,
    live: Vec<Arc<Versioned>>,
    events: Vec<Event>,
    system: Vec<(String, SysValue)>,
    requests: Vec<Remembered>,
}

impl Store {
    /// Captures the present state; copies pointers, so apply waits only briefly.
    pub fn capture(&self) -> Capture {
        self.read(|s| {
            let (events, floor, dropped) = s.history().parts();
            Capture {
                head: Head {
                    revision: s.revision,
                    sys_revision: s.sys_revision,
                    logged_millis: s.logged_millis,
                    feature_level: s.feature_level,
                    floor,
                    dropped: dropped.clone(),
                },
                live: s.objects().iter().cloned().collect(),
                events: events.iter().cloned().collect(),
                system: s.system.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
                requests: s.requests.iter().cloned().collect(),
            }
        })
    }
}

impl Capture {
    /// The revision it is of.
    pub fn revision(&self) -> u64 {
        self.head.revision
    }

    /// Writes it.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&[VERSION])?;
        let mut sink = Sink { out, records: 0, buffer: Vec::new() };
        sink.put(&RecordRef::Head(&self.head))?;
        for (version, live) in self.versions() {
            sink.put(&RecordRef::Version { live, version })?;
        }
        for e in &self.events {
            sink.put(&RecordRef::Event(EventRecord {
                revision: e.revision,
                txn_end: e.txn_end,
                old: e.old.as_ref().map(|v| v.revision),
                new: e.new.as_ref().map(|v| v.revision),
            }))?;
        }
        for (key, value) in &self.system {
            sink.put(&RecordRef::System { key, value: &value.value, revision: value.revision })?;
        }
        for r in &self.requests {
            sink.put(&RecordRef::Request {
                key: r.key.to_be_bytes(),
                at_millis: r.at_millis,
                revisions: &r.revisions,
            })?;
        }
        let records = sink.records;
        sink.put(&RecordRef::End { records })
    }

    /// Each version once, by revision, and whether it is live.
    fn versions(&self) -> Vec<(&Versioned, bool)> {
        let told = self.events.iter().flat_map(|e| [&e.old, &e.new]).flatten();
        let mut versions: Vec<(&Versioned, bool)> = told.map(|v| (&**v, false)).collect();
        versions.extend(self.live.iter().map(|v| (&**v, true)));
        // Live ones first among equals: those are kept.
        versions.sort_unstable_by_key(|(v, live)| (v.revision, !live));
        versions.dedup_by_key(|(v, _)| v.revision);
        versions
    }
}

struct Sink<'a, W> {
    out: &'a mut W,
    records: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Sink<'_, W> {
    fn put(&mut self, record: &RecordRef<'_>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let buffer = postcard::to_extend(record, buffer).map_err(io::Error::other)?;
        let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&crc32fast::hash(&buffer).to_le_bytes())?;
        self.out.write_all(&buffer)?;
        self.buffer = buffer;
        self.records += 1;
        Ok(())
    }
}

struct Source<'a, R> {
    input: &'a mut R,
    records: u64,
}

impl<R: Read> Source<'_, R> {
    fn next(&mut self) -> Result<Record, SnapshotError> {
        let mut head = [0; 8];
        self.input.read_exact(&mut head)?;
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let (length, crc) = (word(0), word(4));
        if length > MAX_RECORD {
            return Err(self.damaged(format!("its length is {length}, the limit {MAX_RECORD}")));
        }
        let mut body = vec![0; length as usize];
        self.input.read_exact(&mut body)?;
        if crc32fast::hash(&body) != crc {
            return Err(self.damaged("its checksum does not match".into()));
        }
        let record = postcard::from_bytes(&body).map_err(|e| self.damaged(e.to_string()))?;
        self.records += 1;
        Ok(record)
    }

    fn damaged(&self, why: String) -> SnapshotError {
        SnapshotError::Damaged(self.records, why)
    }
}

/// Reads what [`Capture::write_to`] wrote.
pub fn read_from(input: &mut impl Read, limits: HistoryLimits) -> Result<State, SnapshotError> {
    let mut start = [0; 9];
    input.read_exact(&mut start)?;
    if &start[..8] != MAGIC {
        return Err(SnapshotError::Magic);
    }
    if start[8] != VERSION {
        return Err(SnapshotError::Version(start[8]));
    }
    let mut source = Source { input, records: 0 };
    let Record::Head(head) = source.next()? else {
        return Err(source.damaged("the first record is not the head".into()));
    };
    let mut versions: BTreeMap<u64, Arc<Versioned>> = BTreeMap::new();
    let mut objects = Objects::default();
    let mut history = History::restore(limits, head.floor, head.dropped);
    let mut system = BTreeMap::new();
    let mut requests = Requests::default();
    loop {
        match source.next()? {
            Record::Head(_) => return Err(source.damaged("a second head".into())),
            Record::Version { live, version } => {
                let version = Arc::new(version);
                versions.insert(version.revision, version.clone());
                if live {
                    objects.put(version);
                }
            }
            Record::Event(e) => {
                let find = |revision: Option<u64>| match revision {
                    None => Ok(None),
                    Some(r) => versions.get(&r).cloned().map(Some).ok_or(r),
                };
                let missing = |r: u64| source.damaged(format!("version {r} is missing"));
                history.push(Event {
                    revision: e.revision,
                    txn_end: e.txn_end,
                    old: find(e.old).map_err(missing)?,
                    new: find(e.new).map_err(missing)?,
                });
            }
            Record::System { key, value, revision } => {
                system.insert(key, SysValue { value, revision });
            }
            Record::Request { key, at_millis, revisions } => requests.remember(Remembered {
                key: u128::from_be_bytes(key),
                at_millis,
                revisions: revisions[..].into(),
            }),
            Record::End { records } if records + 1 == source.records => break,
            Record::End { records } => {
                return Err(source.damaged(format!("it counts {records} records before it")));
            }
        }
    }
    history.trim();
    Ok(State {
        revision: head.revision,
        sys_revision: head.sys_revision,
        logged_millis: head.logged_millis,
        feature_level: head.feature_level,
        objects,
        history,
        requests,
        system,
    })
}
