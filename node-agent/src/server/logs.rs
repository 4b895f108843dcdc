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
    fs::{File, Metadata},
    io::{self, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{io::unix::AsyncFd, sync::mpsc::Sender};
use tonic::Status;
use trellis_proto::api::{LogChunk, LogsRequest};

const CHUNK_BYTES: usize = 32 * 1024;
/// A line longer than this is sent in pieces (the shim cuts at 16 KiB).
const LINE_MAX_BYTES: usize = 256 * 1024;
/// How often the log's files are listed while a rotation renames them under our eyes.
const LOOKS: usize = 10;
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
        let attempt = run(c, request.previous).ok_or_else(|| {
            Status::invalid_argument(format!(
                "previous terminated container {name:?} in pod {:?} not found",
                request.pod
            ))
        })?;
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
        let mut reader = Reader::begin(&path, self.tail)?;
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

/// The run that is meant. The previous one is what status calls lastState: where the container waits for
/// its next start that is its last run.
fn run(c: &ContainerView, previous: bool) -> Option<u32> {
    let last = c.attempts.checked_sub(1)?;
    if previous && !c.state.starts_with("waiting") { last.checked_sub(1) } else { Some(last) }
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

/// Reads the log's files in order, each by the file itself: its name changes with every rotation,
/// and it may be removed while it is read.
struct Reader {
    file: Option<File>,
    /// A successor was seen at this file's end: what was written in between is read before going on.
    last_look: bool,
    rest: Vec<u8>,
    mid_line: bool,
}

impl Reader {
    /// Begins with the oldest file, or where the last `tail` lines begin. All files are open before one of
    /// them is chosen: a rotation in between changes only their names.
    fn begin(live: &Path, tail: Option<u32>) -> io::Result<Self> {
        let mut all = None;
        for _ in 0..LOOKS {
            all = opened(live)?;
            if all.is_some() {
                break;
            }
        }
        let mut all = all.ok_or_else(|| io::Error::other("its files are rotated faster than they can be opened"))?;
        let file = match tail {
            Some(lines) => log_file::tail(all.iter_mut().map(|(file, _)| file), lines)?,
            None => 0,
        };
        let file = all.into_iter().nth(file).map(|(file, _)| file);
        Ok(Self { file, last_look: false, rest: Vec::new(), mid_line: false })
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

    /// At the end of a file: on to the one that was begun after it, if there is one.
    fn turn_over(&mut self, live: &Path) -> io::Result<bool> {
        let Some(next) = self.successor(live)? else {
            self.last_look = false;
            return Ok(false);
        };
        // The shim wrote to this one until it was rotated, perhaps after our last read.
        if self.file.is_some() && !std::mem::replace(&mut self.last_look, true) {
            return Ok(true);
        }
        self.file = Some(next);
        self.last_look = false;
        Ok(true)
    }

    /// The file after this one, by inode. Names change while one looks: then once more.
    fn successor(&self, live: &Path) -> io::Result<Option<File>> {
        let own = match &self.file {
            Some(file) => Some(file.metadata()?),
            None => None,
        };
        let is_own = |m: &Metadata| own.as_ref().is_some_and(|own| same(own, m));
        if std::fs::metadata(live).is_ok_and(|m| is_own(&m)) {
            return Ok(None);
        }
        for _ in 0..LOOKS {
            let Some(all) = opened(live)? else { continue };
            let at = all.iter().position(|(_, m)| is_own(m));
            let removed = match &self.file {
                Some(file) => file.metadata()?.nlink() == 0,
                None => true,
            };
            let next = match at {
                Some(n) => n + 1,
                // All that are left came after it.
                None if removed => 0,
                None => continue,
            };
            return Ok(all.into_iter().nth(next).map(|(file, _)| file));
        }
        Ok(None)
    }
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// The log's files, oldest first; `None` when their names changed meanwhile, and one may be missing.
fn opened(live: &Path) -> io::Result<Option<Vec<(File, Metadata)>>> {
    let mut all = Vec::new();
    let paths = files(live);
    for path in &paths {
        match File::open(path) {
            Ok(file) => all.push((file.metadata()?, file)),
            // The one being written is missing for a moment.
            Err(e) if e.kind() == io::ErrorKind::NotFound && path == live => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    let still = all.iter().zip(&paths).all(|((m, _), path)| std::fs::metadata(path).is_ok_and(|now| same(m, &now)));
    Ok(still.then(|| all.into_iter().map(|(m, file)| (file, m)).collect()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{fs, io::Write, path::PathBuf};

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
        fs::write(dir.path().join("0.log.1"), line("one")).unwrap();
        fs::write(&live, line("two")).unwrap();
        let mut reader = Reader::begin(&live, None).unwrap();
        assert_eq!(drain(&mut reader, &live), "one\ntwo\n");
        assert_eq!(drain(&mut reader, &live), "");
        fs::OpenOptions::new().append(true).open(&live).unwrap().write_all(line("three").as_bytes()).unwrap();
        assert_eq!(drain(&mut reader, &live), "three\n");
        rotate(&live, 4, "four");
        assert_eq!(drain(&mut reader, &live), "four\n");
        assert_eq!(drain(&mut reader, &live), "");
    }

    fn line(text: &str) -> String {
        format!("2026-01-01T00:00:00Z stdout F {text}\n")
    }

    /// As the shim does it, keeping `files` rotated ones; then a new file with this line.
    fn rotate(live: &Path, files: u32, text: &str) {
        let numbered = |n: u32| PathBuf::from(format!("{}.{n}", live.display()));
        for n in (1..files).rev() {
            drop(fs::rename(numbered(n), numbered(n + 1)));
        }
        fs::rename(live, numbered(1)).unwrap();
        fs::write(live, line(text)).unwrap();
    }

    #[test]
    fn a_rotation_does_not_move_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.1"), line("one")).unwrap();
        fs::write(&live, line("two") + &line("three")).unwrap();
        for (lines, want) in [(0, "new\n"), (1, "three\nnew\n"), (3, "one\ntwo\nthree\nnew\n")] {
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join("0.log");
            fs::copy(live.with_extension("log.1"), copy.with_extension("log.1")).unwrap();
            fs::copy(&live, &copy).unwrap();
            let mut reader = Reader::begin(&copy, Some(lines)).unwrap();
            rotate(&copy, 4, "new");
            assert_eq!(drain(&mut reader, &copy), want, "{lines} lines");
        }
    }

    #[test]
    fn the_previous_run_is_the_last_one_where_the_container_waits() {
        let runs = |state: &str, attempts| {
            let view = ContainerView {
                name: "a".into(),
                id: String::new(),
                running: state == "running",
                state: state.into(),
                attempts,
                main: true,
            };
            (run(&view, false), run(&view, true))
        };
        assert_eq!(runs("waiting (ContainerCreating)", 0), (None, None));
        assert_eq!(runs("running", 1), (Some(0), None));
        assert_eq!(runs("waiting (CrashLoopBackOff)", 1), (Some(0), Some(0)));
        assert_eq!(runs("being started", 2), (Some(1), Some(0)));
        assert_eq!(runs("running", 3), (Some(2), Some(1)));
        assert_eq!(runs("waiting (CrashLoopBackOff)", 3), (Some(2), Some(2)));
        assert_eq!(runs("terminated (Completed, exit code 0)", 2), (Some(1), Some(0)));
    }

    #[test]
    fn what_was_written_right_before_a_rotation_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, line("one")).unwrap();
        let mut reader = Reader::begin(&live, None).unwrap();
        assert_eq!(drain(&mut reader, &live), "one\n");
        // Its last read has found nothing; now, before it looks for a successor:
        fs::OpenOptions::new().append(true).open(&live).unwrap().write_all(line("late").as_bytes()).unwrap();
        rotate(&live, 4, "new");
        assert!(reader.turn_over(&live).unwrap());
        assert_eq!(drain(&mut reader, &live), "late\nnew\n");
    }

    #[test]
    fn rotations_are_caught_up_with_however_many_there_were() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        fs::write(&live, line("0")).unwrap();
        fs::write(dir.path().join("0.log.1"), line("before")).unwrap();
        // It has opened the first file of two when the names change.
        let mut reader = Reader::begin(&live, None).unwrap();
        rotate(&live, 4, "1");
        rotate(&live, 4, "2");
        assert_eq!(drain(&mut reader, &live), "before\n0\n1\n2\n");
        // More than are kept: it goes on with the oldest that is left.
        for text in ["3", "4", "5", "6", "7", "8"] {
            rotate(&live, 2, text);
        }
        fs::remove_file(dir.path().join("0.log.3")).unwrap();
        assert_eq!(drain(&mut reader, &live), "6\n7\n8\n");
    }
}
