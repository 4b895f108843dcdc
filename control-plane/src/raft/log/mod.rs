//! The Raft log on disk: segment files of checksummed records, one writer thread, group commit.
//!
//! Entries, votes, truncations and purges are records of one sequence, so that their order on
//! disk is their order in time ([`writer`]). Purging drops whole segments; each segment's head
//! repeats what older ones said ([`record`]). At start the sequence is read back ([`recover`]).
//! Segments are made and filled with zeros ahead ([`spare`]). The newest entries stay in memory for followers in step ([`memory`]); older ones are read
//! from disk.

mod memory;
mod record;
mod recover;
mod spare;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

use super::config::{Entry, LogId, Tuning, TypeConfig, Vote};
use super::disk::Disk;
use memory::{Looked, Place};
use record::{Found, Record};
use writer::{Done, Job, SharedMemory, Writer, lock};

/// Jobs that may wait for the writer; each is a batch of entries already.
const JOBS: usize = 256;
/// Most bytes of entries read in one go: one message to a follower stays below gRPC's limit.
const READ_BYTES: usize = 1024 * 1024;
/// Entries read at a time for applying.
const APPLY_ENTRIES: u64 = 256;

/// The log of one member. Clones share it; openraft holds one, each of its readers another.
#[derive(Debug, Clone)]
pub struct LogStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    memory: SharedMemory,
    jobs: mpsc::Sender<Job>,
}

impl LogStore {
    /// Opens the log in `dir`, or begins one. Reads all of it; starts the writer thread, which
    /// ends when the last clone is dropped.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, tuning: &Tuning) -> io::Result<Self> {
        let found = recover::recover(&*disk, dir)?;
        let memory: SharedMemory = Arc::new(std::sync::Mutex::new(found.memory));
        let sizes = (tuning.segment_bytes, tuning.cache_bytes);
        let writer =
            Writer::new(disk.clone(), dir.to_path_buf(), memory.clone(), sizes, found.segments, found.next_segment)?;
        let (jobs, queue) = mpsc::channel(JOBS);
        std::thread::Builder::new().name("raft-log".into()).spawn(move || writer.run(queue))?;
        Ok(Self { disk, dir: dir.to_path_buf(), memory, jobs })
    }

    /// Bytes of live entries on disk.
    pub fn bytes(&self) -> u64 {
        lock(&self.memory).disk_bytes()
    }

    /// Nothing was ever written to it.
    pub fn is_blank(&self) -> bool {
        let memory = lock(&self.memory);
        memory.vote.is_none() && memory.last_log_id().is_none()
    }

    async fn send(&self, job: Job) -> io::Result<()> {
        let stopped = |_| io::Error::other("the log's writer has stopped");
        self.jobs.send(job).await.map_err(stopped)
    }

    async fn durable(&self, job: impl FnOnce(Done) -> Job) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        self.send(job(Done::Caller(tell))).await?;
        told.await.map_err(|_| io::Error::other("the log's writer has stopped"))?
    }

    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let found = lock(&self.memory).look(start, end, max_bytes);
        let cold = found.iter().any(|(_, l)| matches!(l, Looked::OnDisk(_)));
        if !cold {
            let here = found.into_iter().filter_map(|(_, l)| match l {
                Looked::Here(entry) => Some(entry),
                Looked::OnDisk(_) => None,
            });
            return Ok(here.collect());
        }
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        let read = move || {
            let load = |(id, looked)| match looked {
                Looked::Here(entry) => Ok(entry),
                Looked::OnDisk(place) => load(&*disk, &dir, id, place),
            };
            found.into_iter().map(load).collect()
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

fn load(disk: &dyn Disk, dir: &Path, id: LogId, place: Place) -> io::Result<Entry> {
    let path = dir.join(record::file_name(place.segment));
    let bytes = disk.read_at(&path, place.offset, place.length as usize)?;
    match record::decode(&bytes, place.segment)? {
        Found::Record(Record::Entry(entry), _) if entry.log_id == id => Ok(entry),
        _ => {
            let text = format!("entry {id} is damaged in {} at byte {}", path.display(), place.offset);
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(s) => *s,
        Bound::Excluded(s) => s + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(e) => e + 1,
        Bound::Excluded(e) => *e,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        let first = lock(&self.memory).first_index();
        self.read(start.max(first), end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.memory).vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Piece by piece: a long range of large entries would not fit memory.
        let (start, end) = bounds(&range);
        let log = self.clone();
        let pieces = futures::stream::try_unfold(start, move |next| {
            let log = log.clone();
            async move {
                if next >= end {
                    return Ok(None);
                }
                let piece = log.read(next, end.min(next + APPLY_ENTRIES), READ_BYTES).await?;
                if piece.is_empty() && next < lock(&log.memory).first_index() {
                    // Ending here would make openraft take the rest for applied.
                    let text = format!("log entries from {next} are to be applied, but are purged");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                let after = next + piece.len() as u64;
                let items = futures::stream::iter(piece.into_iter().map(Ok::<_, io::Error>));
                Ok::<_, io::Error>((after > next).then_some((items, after)))
            }
        });
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = lock(&self.memory);
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        self.durable(|done| Job::Vote { vote, done }).await?;
        // Readers compare it with the entries they read: only what is durable counts.
        lock(&self.memory).vote = Some(vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(id) = committed else {
            return Ok(());
        };
        lock(&self.memory).committed = Some(id);
        self.send(Job::Committed(id)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.memory).committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let append = lock(&self.memory).append(&entries);
        let done = Done::Raft(callback);
        self.send(Job::Append { append, entries, done }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let keep = last_log_id.map(|id| id.index);
        lock(&self.memory).truncate(keep);
        self.send(Job::Truncate(keep)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        lock(&self.memory).purge(log_id);
        self.durable(|done| Job::Purge { upto: log_id, done }).await
    }
}
