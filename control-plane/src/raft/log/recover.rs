//! Reading the log back at start.
//!
//! Finished segments must be whole: a flaw in one is corruption, and the member refuses to
//! start rather than forget what it has acknowledged. The last segment may end in a torn
//! tail: nothing behind the last fsync was acknowledged, so it is cut off there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use openraft::EntryPayload;

use super::memory::{Memory, Place};
use super::record::{self, Found, Head, MAGIC, MAGIC_LEN, Record};
use crate::raft::config::{LogId, Vote};
use crate::raft::disk::{Disk, SyncSite};

/// What was found.
pub(super) struct Recovered {
    pub memory: Memory,
    /// Number for the next segment.
    pub next_segment: u64,
    pub segments: Vec<u64>,
}

/// One segment's content.
struct Segment {
    number: u64,
    records: Vec<(Record, Place)>,
    first_segment: u64,
}

fn corrupt(dir: &Path, number: u64, offset: u64, why: &str) -> io::Error {
    let path = dir.join(record::file_name(number));
    let text = format!(
        "the Raft log is damaged: {} at byte {offset}: {why}. This member cannot vouch for what it \
         acknowledged: remove it from the cluster, empty its data folder, and add it again",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

pub(super) fn recover(disk: &dyn Disk, dir: &Path) -> io::Result<Recovered> {
    disk.create_dir(dir)?;
    let mut numbers: Vec<u64> = disk.list(dir)?.iter().filter_map(|n| record::parse_name(n)).collect();
    numbers.sort_unstable();
    let last = numbers.last().copied();
    let mut segments = Vec::new();
    for number in &numbers {
        if let Some(segment) = read_segment(disk, dir, *number, Some(*number) == last)? {
            segments.push(segment);
        }
    }
    let needed = segments.iter().map(|s| s.first_segment).max().unwrap_or(0);
    // Segments dropped before the crash may have come back with it.
    for old in numbers.iter().filter(|n| **n < needed) {
        disk.remove(&dir.join(record::file_name(*old)))?;
    }
    segments.retain(|s| s.number >= needed);
    let mut expected = needed;
    for segment in &segments {
        if segment.number != expected {
            return Err(corrupt(dir, expected, 0, "the segment is missing"));
        }
        expected += 1;
    }
    let kept = segments.iter().map(|s| s.number).collect();
    let memory = replay(dir, segments)?;
    Ok(Recovered { memory, next_segment: expected, segments: kept })
}

/// Reads one segment; `None`: the last one, torn before its head was whole, and removed.
fn read_segment(disk: &dyn Disk, dir: &Path, number: u64, last: bool) -> io::Result<Option<Segment>> {
    let path = dir.join(record::file_name(number));
    let mut bytes = Vec::new();
    disk.reader(&path)?.read_to_end(&mut bytes)?;
    if !bytes.starts_with(&MAGIC[..7]) || bytes.len() < MAGIC.len() {
        if last {
            disk.remove(&path)?;
            return Ok(None);
        }
        return Err(corrupt(dir, number, 0, "it does not begin as a log segment"));
    }
    if bytes[7] != MAGIC[7] {
        let text =
            format!("{} has log format {}, this program reads {}: update it", path.display(), bytes[7], MAGIC[7]);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut at = MAGIC_LEN as usize;
    let mut segment = Segment { number, records: Vec::new(), first_segment: 0 };
    let whole = loop {
        match record::decode(&bytes[at..], number)? {
            Found::Record(mut found, length) => {
                match &found {
                    Record::Head(Head { first_segment, .. }) | Record::Purge { first_segment, .. } => {
                        segment.first_segment = segment.first_segment.max(*first_segment);
                    }
                    _ => {}
                }
                if let Record::Entry(entry) = &mut found {
                    // Only its place is needed: the whole log need not fit memory.
                    entry.payload = EntryPayload::Blank;
                }
                let place = Place { segment: number, offset: at as u64, length: length as u32 };
                segment.records.push((found, place));
                at += length;
            }
            Found::End => break at == bytes.len(),
            Found::Broken => break false,
        }
    };
    let headed = matches!(segment.records.first(), Some((Record::Head(h), _)) if h.segment == number);
    match (last, headed, whole) {
        (true, false, _) => {
            disk.remove(&path)?;
            return Ok(None);
        }
        (false, false, _) => return Err(corrupt(dir, number, MAGIC_LEN, "its head is missing")),
        (false, true, false) => {
            return Err(corrupt(dir, number, at as u64, "a record is not whole"));
        }
        (true, true, false) => {
            // Cut off, or what lies behind might one day look like a record again.
            let mut file = disk.open(&path)?;
            file.set_len(at as u64)?;
            file.sync(SyncSite::Repair)?;
        }
        (_, true, true) => {}
    }
    Ok(Some(segment))
}

fn replay(dir: &Path, segments: Vec<Segment>) -> io::Result<Memory> {
    let mut vote: Option<Vote> = None;
    let mut committed: Option<LogId> = None;
    let mut purged: Option<LogId> = None;
    let mut entries: BTreeMap<u64, (LogId, Place)> = BTreeMap::new();
    for (found, place) in segments.into_iter().flat_map(|s| s.records) {
        match found {
            Record::Head(head) => {
                vote = head.vote.or(vote);
                committed = head.committed.or(committed);
                purged = purged.max(head.purged);
            }
            Record::Entry(entry) => {
                entries.insert(entry.log_id.index, (entry.log_id, place));
            }
            Record::Vote(v) => vote = Some(v),
            Record::Committed(id) => committed = Some(id),
            Record::Truncate(keep) => {
                entries.split_off(&keep.map_or(0, |k| k + 1));
            }
            Record::Purge { upto, .. } => purged = purged.max(Some(upto)),
        }
    }
    let mut memory = Memory::default();
    (memory.vote, memory.committed, memory.purged) = (vote, committed, purged);
    for (index, (log_id, place)) in entries.split_off(&memory.first_index()) {
        if index != memory.next_index() {
            return Err(corrupt(dir, place.segment, place.offset, "entries before this one are missing"));
        }
        memory.recovered(log_id, place);
    }
    Ok(memory)
}
