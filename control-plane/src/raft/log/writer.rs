//! The one thread that writes the log: it takes whatever has queued up meanwhile, writes it in
//! one go, makes it durable with one fsync, and only then reports each job as done. Order in
//! the file is the order of the jobs, votes and entries alike: that is what Raft's safety
//! rests on.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::memory::{Memory, Place};
use super::record::{self, Head, MAGIC, MAGIC_LEN, Record};
use super::spare::Spares;
use crate::raft::config::{Entry, LogId, TypeConfig, Vote};
use crate::raft::disk::{Disk, DiskFile, SyncSite};

/// Most bytes in one write: beyond this, waiting longer only adds latency.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Whom to tell that a job is durable.
pub(super) enum Done {
    Raft(IOFlushed<TypeConfig>),
    Caller(oneshot::Sender<io::Result<()>>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Done::Raft(callback) => callback.io_completed(result),
            // A caller that went away needs no answer.
            Done::Caller(sender) => drop(sender.send(result)),
        }
    }
}

/// Work for the writer.
pub(super) enum Job {
    Append {
        append: u64,
        entries: Vec<Entry>,
        done: Done,
    },
    Vote {
        vote: Vote,
        done: Done,
    },
    /// Rides along with the next job that needs an fsync: losing it costs nothing but time.
    Committed(LogId),
    Truncate(Option<u64>),
    Purge {
        upto: LogId,
        done: Done,
    },
}

pub(super) type SharedMemory = Arc<Mutex<Memory>>;

pub(super) fn lock(memory: &SharedMemory) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    memory: SharedMemory,
    segment_bytes: u64,
    cache_bytes: usize,
    file: Box<dyn DiskFile>,
    spares: Spares,
    /// The file's number and what the next head will say.
    head: Head,
    offset: u64,
    segments: VecDeque<u64>,
    committed: Option<LogId>,
    buffer: Vec<u8>,
    broken: Option<String>,
}

#[derive(Default)]
struct Batch {
    places: Vec<(u64, Vec<(u64, Place)>)>,
    done: Vec<Done>,
    has_vote: bool,
    purged: bool,
}

impl Writer {
    /// Starts a fresh segment behind `segments`.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        memory: SharedMemory,
        sizes: (u64, usize),
        segments: Vec<u64>,
        number: u64,
    ) -> io::Result<Self> {
        let mut segments = VecDeque::from(segments);
        segments.push_back(number);
        let head = {
            let known = lock(&memory);
            Head {
                segment: number,
                first_segment: known.first_segment().unwrap_or(number),
                vote: known.vote,
                committed: known.committed,
                purged: known.purged,
            }
        };
        let mut spares = Spares::new(disk.clone(), &dir, sizes.0)?;
        let (file, offset) = begin(&*disk, &dir, &head, &mut spares)?;
        Ok(Self {
            disk,
            dir,
            memory,
            segment_bytes: sizes.0,
            cache_bytes: sizes.1,
            file,
            spares,
            head,
            offset,
            segments,
            committed: None,
            buffer: Vec::new(),
            broken: None,
        })
    }

    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut batch = Batch::default();
            self.buffer.clear();
            // Staged even when preparing failed: the job's owner must be told.
            let prepared = self.prepare();
            let mut result = prepared.and(self.stage(first, &mut batch));
            while self.buffer.len() < BATCH_BYTES && result.is_ok() {
                let Ok(job) = jobs.try_recv() else { break };
                result = self.stage(job, &mut batch);
            }
            let result = result.and_then(|()| self.commit(&batch));
            self.report(batch, result);
        }
    }

    fn prepare(&mut self) -> io::Result<()> {
        if let Some(why) = &self.broken {
            // After a failed fsync nobody knows what is on disk: never write on.
            return Err(io::Error::other(format!("the log failed before: {why}")));
        }
        if self.offset >= self.segment_bytes {
            self.rotate()?;
        } else if self.offset >= self.segment_bytes / 2 {
            self.spares.begin();
        }
        Ok(())
    }

    fn stage(&mut self, job: Job, batch: &mut Batch) -> io::Result<()> {
        let segment = self.head.segment;
        match job {
            Job::Append { append, entries, done } => {
                batch.done.push(done);
                let mut places = Vec::with_capacity(entries.len());
                for entry in &entries {
                    let start = self.buffer.len();
                    record::encode_entry(&mut self.buffer, segment, entry)?;
                    let place = Place {
                        segment,
                        offset: self.offset + start as u64,
                        length: (self.buffer.len() - start) as u32,
                    };
                    places.push((entry.log_id.index, place));
                }
                batch.places.push((append, places));
            }
            Job::Vote { vote, done } => {
                batch.done.push(done);
                batch.has_vote = true;
                self.head.vote = Some(vote);
                record::encode(&mut self.buffer, segment, &Record::Vote(vote))?;
            }
            Job::Committed(id) => self.committed = Some(id),
            Job::Truncate(keep) => {
                record::encode(&mut self.buffer, segment, &Record::Truncate(keep))?;
            }
            Job::Purge { upto, done } => {
                batch.done.push(done);
                batch.purged = true;
                let first_segment = lock(&self.memory).first_segment().unwrap_or(segment);
                self.head.purged = self.head.purged.max(Some(upto));
                self.head.first_segment = self.head.first_segment.max(first_segment);
                let first_segment = self.head.first_segment;
                record::encode(&mut self.buffer, segment, &Record::Purge { upto, first_segment })?;
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Some(id) = self.committed.take() {
            self.head.committed = Some(id);
            record::encode(&mut self.buffer, self.head.segment, &Record::Committed(id))?;
        }
        self.file.write_at(self.offset, &self.buffer)?;
        self.file.sync(if batch.has_vote { SyncSite::Vote } else { SyncSite::Append })?;
        self.offset += self.buffer.len() as u64;
        Ok(())
    }

    fn report(&mut self, batch: Batch, result: io::Result<()>) {
        match &result {
            Ok(()) => {
                let mut memory = lock(&self.memory);
                for (append, places) in &batch.places {
                    memory.placed(*append, places, self.cache_bytes);
                }
            }
            Err(e) => {
                tracing::error!(error = %e, "the Raft log cannot be written: this member stops");
                self.broken.get_or_insert_with(|| e.to_string());
            }
        }
        for done in batch.done {
            done.tell(match &result {
                Ok(()) => Ok(()),
                Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
            });
        }
        if batch.purged && result.is_ok() {
            self.drop_segments();
        }
    }

    /// Begins the next segment. The finished one is whole and durable: it ends with the last
    /// commit's fsync, and is never shorter than what was preallocated.
    fn rotate(&mut self) -> io::Result<()> {
        self.head.segment += 1;
        self.segments.push_back(self.head.segment);
        (self.file, self.offset) = begin(&*self.disk, &self.dir, &self.head, &mut self.spares)?;
        Ok(())
    }

    /// Removes segments that hold nothing live. Should a crash bring one back, the first
    /// segment named in a newer one voids it.
    fn drop_segments(&mut self) {
        while let Some(&oldest) = self.segments.front()
            && oldest < self.head.first_segment
        {
            if let Err(error) = self.disk.remove(&self.dir.join(record::file_name(oldest))) {
                tracing::warn!(segment = oldest, %error, "a purged log segment cannot be removed");
            }
            self.segments.pop_front();
        }
    }
}

/// Begins a segment and makes its name durable; its head becomes so with the first commit, and until
/// then nothing rests on it: older segments are dropped only after a commit.
fn begin(disk: &dyn Disk, dir: &Path, head: &Head, spares: &mut Spares) -> io::Result<(Box<dyn DiskFile>, u64)> {
    let mut file = spares.take(head.segment)?;
    let mut bytes = MAGIC.to_vec();
    debug_assert_eq!(bytes.len() as u64, MAGIC_LEN);
    record::encode(&mut bytes, head.segment, &Record::Head(head.clone()))?;
    file.write_at(0, &bytes)?;
    disk.sync_dir(dir, SyncSite::LogDir)?;
    Ok((file, bytes.len() as u64))
}
