//! Reading and following a container's log. Following waits on inotify, not on a timer; it goes
//! on over rotation, and into the next run of the container, and ends when the Pod does.
use super::log_file::{self, files, format, parse};
use crate::pod::{
    persist::PodDir,
    registry::{ContainerView, PodView},
    steps::Context,
};
use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{io::unix::AsyncFd, sync::mpsc::Sender};
use tonic::Status;
use trellis_proto::api::{LogChunk, LogsRequest};

const CHUNK_BYTES: usize = 32 * 1024;
/// A line longer than this is sent in pieces (the shim cuts at 16 KiB).
const LINE_MAX_BYTES: usize = 256 * 1024;
/// The Pod's end shows in no file: it is looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Tx = Sender<Result<LogChunk, Status>>;

/// One reader.
pub struct Task {
    ctx: Arc<Context>,
    uid: String,
    container: String,
    attempt: u32,
    dir: PodDir,
    follow: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<u32>,
}

enum Ended {
    /// The caller is gone.
    Reader,
    /// Something could not be read.
    Failed(io::Error),
}

impl From<io::Error> for Ended {
    fn from(e: io::Error) -> Self {
        Self::Failed(e)
    }
}

impl Task {
    /// Finds out which file is meant.
    #[allow(clippy::result_large_err)]
    pub fn new(ctx: &Arc<Context>, view: &PodView, c: &ContainerView, request: &LogsRequest) -> Result<Self, Status> {
        let name = &c.name;
        if c.attempts == 0 {
            return Err(Status::failed_precondition(format!(
                "container {name:?} in pod {:?} is waiting to start: `trellis describe pod` says why",
                request.pod
            )));
        }
        let last = c.attempts - 1;
        let attempt = match (request.previous, last) {
            (false, last) => last,
            (true, 0) => {
                return Err(Status::invalid_argument(format!(
                    "previous terminated container {name:?} in pod {:?} not found",
                    request.pod
                )));
            }
            (true, last) => last - 1,
        };
        let since = request.since_seconds.and_then(|s| Timestamp::now().checked_sub(SignedDuration::from_secs(s)).ok());
        Ok(Self {
            ctx: ctx.clone(),
            uid: view.uid().to_owned(),
            container: name.clone(),
            attempt,
            dir: PodDir::new(&ctx.data_dir, view.uid()),
            follow: request.follow && !request.previous,
            timestamps: request.timestamps,
            since,
            tail: request.tail_lines,
        })
    }

    /// Sends everything, then what comes.
    pub async fn run(mut self, tx: Tx) {
        let done = async {
            loop {
                self.one_run(&tx).await?;
                // Only the run that was asked for, unless it is followed into the next one.
                if !self.follow || !self.next_run().await {
                    return Ok(());
                }
                self.tail = None;
            }
        };
        let result = tokio::select! {
            result = done => result,
            () = tx.closed() => return,
        };
        if let Err(Ended::Failed(error)) = result {
            drop(tx.send(Err(Status::internal(format!("reading the log: {error}")))).await);
        }
    }

    /// Waits for the container's next start; false when there will be none.
    async fn next_run(&mut self) -> bool {
        // A reader of `logs -f` of a container that ended for good is done, as with kubectl.
        let attempts = self.view().map_or(0, |c| c.attempts);
        if attempts > self.attempt + 1 {
            self.attempt = attempts - 1;
            return true;
        }
        false
    }

    fn view(&self) -> Option<ContainerView> {
        let view = self.ctx.registry.get(&self.uid)?;
        view.containers.iter().find(|c| c.name == self.container).cloned()
    }

    /// This run still writes.
    fn live(&self) -> bool {
        self.view().is_some_and(|c| c.running && c.attempts == self.attempt + 1)
    }

    async fn one_run(&mut self, tx: &Tx) -> Result<(), Ended> {
        let path = self.dir.log(&self.container, self.attempt);
        // Before the first read: nothing written in between is missed.
        let mut watch = if self.follow { Some(Watch::new(path.parent().unwrap_or(Path::new("/")))?) } else { None };
        let all = files(&path);
        let (first, offset) = match self.tail {
            Some(lines) => log_file::tail(&all, lines)?,
            None => (0, 0),
        };
        let mut reader = Reader::new(all[first.min(all.len() - 1)..].to_vec(), offset);
        loop {
            // In this order: what was written before the end is read after it was seen.
            let live = self.live();
            while let Some(data) = reader.next_chunk(self.timestamps, self.since, &path)? {
                tx.send(Ok(LogChunk { data: data.into() })).await.map_err(|_| Ended::Reader)?;
            }
            let Some(watch) = watch.as_mut().filter(|_| live) else { return Ok(()) };
            drop(tokio::time::timeout(LOOK_EVERY, watch.changed()).await);
        }
    }
}

/// Wakes when a file of a folder changes.
struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new(folder: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, folder, what)?;
        Ok(Self { fd: super::exec::watched(fd)? })
    }

    async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.fd.readable().await?;
        let mut space = [MaybeUninit::uninit(); 4096];
        // Level, not edge: which file changed does not matter.
        let mut events = inotify::Reader::new(self.fd.get_ref(), &mut space);
        while events.next().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

/// Reads a list of files in order; the last one may be rotated away while it is read.
struct Reader {
    waiting: Vec<PathBuf>,
    file: Option<File>,
    offset: u64,
    rest: Vec<u8>,
    mid_line: bool,
}

impl Reader {
    fn new(mut files: Vec<PathBuf>, offset: u64) -> Self {
        files.reverse();
        let mut reader = Self { waiting: files, file: None, offset: 0, rest: Vec::new(), mid_line: false };
        reader.open_next();
        if let Some(file) = &mut reader.file
            && file.seek(SeekFrom::Start(offset)).is_ok()
        {
            reader.offset = offset;
        }
        reader
    }

    /// False, and the file at hand is kept, when none is waiting: [`Reader::turn_over`] compares it.
    fn open_next(&mut self) -> bool {
        while let Some(path) = self.waiting.pop() {
            if let Ok(file) = File::open(path) {
                self.file = Some(file);
                self.offset = 0;
                return true;
            }
        }
        false
    }

    /// The next formatted lines; `None` when there are none now.
    fn next_chunk(&mut self, timestamps: bool, since: Option<Timestamp>, live: &Path) -> io::Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = match &mut self.file {
                Some(file) => file.read(&mut buffer)?,
                None => 0,
            };
            if n == 0 {
                if self.turn_over(live)? {
                    continue;
                }
                return Ok((!out.is_empty()).then_some(out));
            }
            self.offset += n as u64;
            self.rest.extend_from_slice(&buffer[..n]);
            self.take_lines(timestamps, since, &mut out);
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
    }

    fn take_lines(&mut self, timestamps: bool, since: Option<Timestamp>, out: &mut Vec<u8>) {
        let mut begin = 0;
        while let Some(end) = self.rest[begin..].iter().position(|b| *b == b'\n').map(|at| begin + at) {
            if let Some(line) = parse(&self.rest[begin..end])
                && format(&line, timestamps, since, self.mid_line, out)
            {
                self.mid_line = line.partial;
            }
            begin = end + 1;
        }
        self.rest.drain(..begin);
        if self.rest.len() > LINE_MAX_BYTES {
            self.rest.clear();
        }
    }

    /// At the end of a file: on to the next, or to the file that took this one's place.
    fn turn_over(&mut self, live: &Path) -> io::Result<bool> {
        if self.open_next() {
            return Ok(true);
        }
        let Ok(now) = std::fs::metadata(live) else { return Ok(false) };
        let same = match &self.file {
            Some(file) => {
                let mine = file.metadata()?;
                mine.ino() == now.ino() && mine.dev() == now.dev()
            }
            None => false,
        };
        if same {
            return Ok(false);
        }
        self.waiting.push(live.to_owned());
        Ok(self.open_next())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{fs, io::Write};

    fn drain(reader: &mut Reader, live: &Path) -> String {
        let mut all = Vec::new();
        // A reader that goes round in circles must fail the test, not hang it.
        for _ in 0..100 {
            match reader.next_chunk(false, None, live).unwrap() {
                Some(data) => all.extend(data),
                None => return String::from_utf8(all).unwrap(),
            }
        }
        panic!("no end after 100 chunks: {} bytes", all.len());
    }

    #[test]
    fn each_line_is_read_once_over_appends_and_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        let line = |text: &str| format!("2026-01-01T00:00:00Z stdout F {text}\n");
        fs::write(dir.path().join("0.log.1"), line("one")).unwrap();
        fs::write(&live, line("two")).unwrap();
        let mut reader = Reader::new(files(&live), 0);
        assert_eq!(drain(&mut reader, &live), "one\ntwo\n");
        assert_eq!(drain(&mut reader, &live), "");
        fs::OpenOptions::new().append(true).open(&live).unwrap().write_all(line("three").as_bytes()).unwrap();
        assert_eq!(drain(&mut reader, &live), "three\n");
        fs::rename(&live, dir.path().join("0.log.2")).unwrap();
        fs::write(&live, line("four")).unwrap();
        assert_eq!(drain(&mut reader, &live), "four\n");
        assert_eq!(drain(&mut reader, &live), "");
    }
}
