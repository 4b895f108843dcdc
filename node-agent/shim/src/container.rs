//! A container's record and its way through creation, start, signals and deletion.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use trellis_sandbox::cgroup::Cgroup;
use trellis_sandbox::{mounts, process};
use trellis_shim_protocol::{ContainerState, CreateContainer, ErrorCode, Happening, Phase, Reply, Rootfs};

use crate::clock;
use crate::conn::Waiting;
use crate::create::Create;
use crate::helper::{Helper, Purpose, Report};
use crate::logs::{Sink, Stream};
use crate::server::{Shim, refuse};
use crate::spec::Pids;

/// How long a killed container may take to vanish (a process in uninterruptible sleep).
const KILL_WITHIN: Duration = Duration::from_secs(8);

/// A Pod has a few; each holds two pipes.
const MAX_CONTAINERS: usize = 256;

/// One container.
pub struct Container {
    /// `None` while its helper works.
    pub state: Option<ContainerState>,
    /// Standard output and error; a terminal is the first.
    pub streams: [Option<Stream>; 2],
    /// Where they go.
    pub sink: Sink,
    /// Its cgroup.
    pub group: Cgroup,
    /// Keeps the writing end of its standard input open.
    pub stdin: Option<OwnedFd>,
    draft: Draft,
}

/// What becomes the state when the helper is done.
struct Draft {
    labels: BTreeMap<String, String>,
    log: trellis_shim_protocol::LogConfig,
    rootfs: PathBuf,
    upper: Option<(PathBuf, PathBuf)>,
    cgroup_path: String,
}

impl Container {
    /// One read; `false` when nothing (more) is there now.
    pub fn read_output(&mut self, which: usize, buffer: &mut [u8]) -> bool {
        let Some(stream) = &mut self.streams[which] else { return false };
        let mut lines = Vec::new();
        let now = clock::now().wall_nanos;
        let more = match rustix::io::read(&stream.fd, &mut *buffer) {
            Ok(n) if n > 0 => {
                stream.push(&buffer[..n], now, &mut lines);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // The end; a terminal's master says it with EIO.
            _ => {
                stream.end(now, &mut lines);
                self.streams[which] = None;
                false
            }
        };
        if !lines.is_empty() {
            self.sink.write(&lines);
        }
        more
    }

    /// It lives: it has a process and has not exited.
    pub fn is_live(&self) -> bool {
        self.state.as_ref().is_some_and(|s| s.phase != Phase::Exited)
    }
}

/// Connects to a socket whose path may be longer than the 107 bytes that an address holds.
fn connect_long(path: &Path) -> std::io::Result<UnixStream> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let dir = fs::File::open(dir)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

fn valid_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id != "."
        && id != ".."
        && id != "shim"
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b))
}

impl Shim {
    /// The container's folder.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.config.dir.join("containers").join(id)
    }

    fn runtime(&self) -> PathBuf {
        self.config.dir.join("runtime")
    }

    /// Starts the helper that makes a container.
    pub fn create(&mut self, conn: u64, request: CreateContainer) {
        let id = request.id.clone();
        if let Err(reply) = self.check_create(&request) {
            self.answer(conn, &reply, Vec::new());
            return;
        }
        match self.start_create(conn, request) {
            Ok(()) => {
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.waiting = Waiting::Helper;
                }
            }
            Err(message) => {
                self.containers.remove(&id);
                self.answer(conn, &refuse(ErrorCode::Failed, message), Vec::new());
            }
        }
        process::trim_heap();
    }

    fn check_create(&self, request: &CreateContainer) -> Result<(), Reply> {
        let id = &request.id;
        if !valid_id(id) {
            return Err(refuse(ErrorCode::Invalid, format!("container id {id:?} must match [A-Za-z0-9_.+-]{{1,64}}")));
        }
        if let Some(existing) = self.containers.get(id) {
            return Err(match &existing.state {
                Some(state) if state.phase == Phase::Created => Reply::Created(Box::new(state.clone())),
                _ => refuse(ErrorCode::AlreadyExists, format!("container {id} exists already")),
            });
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(refuse(
                ErrorCode::LimitReached,
                format!("this Pod has {MAX_CONTAINERS} containers, the limit"),
            ));
        }
        match &request.rootfs {
            Rootfs::Overlay { lower, .. } if lower.is_empty() || lower.len() > 500 => {
                Err(refuse(ErrorCode::Invalid, format!("{} lower folders: 1 to 500 are possible", lower.len())))
            }
            _ => Ok(()),
        }
    }

    fn start_create(&mut self, conn: u64, request: CreateContainer) -> Result<(), String> {
        let id = request.id.clone();
        let bundle = self.bundle(&id);
        fs::create_dir_all(&bundle).map_err(|e| format!("cannot make folder {}: {e}", bundle.display()))?;
        fs::create_dir_all(self.runtime())
            .map_err(|e| format!("cannot make folder {}: {e}", self.runtime().display()))?;
        let sink = Sink::open(request.log.clone()).map_err(|e| format!("cannot open the log of {id}: {e}"))?;
        let group = self.surface.group.child(&id);
        let cgroup_path = group.path().display().to_string();
        let (rootfs, upper) = match &request.rootfs {
            Rootfs::Overlay { upper, work, .. } => (bundle.join("rootfs"), Some((upper.clone(), work.clone()))),
            Rootfs::Path { path } => (path.clone(), None),
        };
        let draft = Draft {
            labels: request.labels.clone(),
            log: request.log.clone(),
            rootfs,
            upper,
            cgroup_path: cgroup_path.clone(),
        };
        let pipes = if request.spec["process"]["terminal"] == true { None } else { Some(Pipes::make(&request)?) };
        let (ours, theirs) = UnixStream::pair().map_err(|e| format!("cannot make a socket pair: {e}"))?;
        let mut keep = vec![theirs.as_raw_fd()];
        let (stdio, streams, stdin) = match pipes {
            Some(p) => {
                keep.extend(p.child.iter().map(AsRawFd::as_raw_fd));
                (Some(p.child), p.streams, p.stdin)
            }
            None => (None, [None, None], None),
        };
        let job = Create {
            request,
            bundle,
            runtime: self.runtime(),
            cgroup_path,
            pids: self.pids(),
            v1_groups: if self.surface.is_v2 { Vec::new() } else { group.v1_dirs().collect() },
            shm: self.surface.shm.clone(),
            filters: self.config.filters.clone(),
            v2_group: if self.surface.is_v2 { self.containers_v2_dir(&id) } else { None },
            stdio,
            socket: theirs,
        };
        // Dropped here after the fork: the parent's copies of the child's descriptors close.
        let mut job = Some(job);
        let pid = process::fork_child(&keep, || job.take().map_or(1, Create::run)).map_err(|e| e.to_string())?;
        drop(job);
        self.containers.insert(id.clone(), Container { state: None, streams, sink, group, stdin, draft });
        let helper = Helper::new(pid, ours, Purpose::Create(id), conn).map_err(|e| e.to_string())?;
        self.helpers.push(helper);
        Ok(())
    }

    fn pids(&self) -> Pids {
        match self.surface.pause {
            Some(pid) => Pids::Shared(PathBuf::from(format!("/proc/{pid}/ns/pid"))),
            None if self.config.host_pid => Pids::Node,
            None => Pids::Own,
        }
    }

    fn containers_v2_dir(&self, id: &str) -> Option<PathBuf> {
        self.surface.group.child(id).dirs().next()
    }

    /// The helper has reported.
    pub fn created(&mut self, conn: u64, id: &str, said: Report, master: Option<OwnedFd>) {
        for note in &said.notes {
            self.note(note);
        }
        let Some(pid) = said.pid.filter(|_| said.error.is_none()) else {
            let message = said.error.unwrap_or_else(|| "the helper that made it died".to_owned());
            self.note(&format!("container {id}: {message}"));
            self.discard(id, true);
            self.answer(conn, &refuse(ErrorCode::Failed, message), Vec::new());
            return;
        };
        let host_pid =
            process::pidfd(pid).and_then(|fd| process::pid_as_seen_by(&self.surface.outer_proc, &fd)).unwrap_or(0);
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(master) = master
            && rustix::io::ioctl_fionbio(&master, true).is_ok()
        {
            container.streams[0] = Some(Stream::new(master, "stdout"));
        }
        let draft = &container.draft;
        let state = ContainerState {
            id: id.to_owned(),
            labels: draft.labels.clone(),
            phase: Phase::Created,
            pid,
            host_pid,
            created_at: clock::now(),
            started_at: None,
            exit: None,
            log: draft.log.clone(),
            log_bytes_lost: 0,
            cgroup_path: draft.cgroup_path.clone(),
            rootfs: draft.rootfs.clone(),
            upper: draft.upper.clone(),
        };
        container.state = Some(state.clone());
        self.happened(id, Happening::Created);
        self.answer(conn, &Reply::Created(Box::new(state)), Vec::new());
    }

    /// Lets a created container's process go on to its `execve`.
    pub fn start(&mut self, id: &str) -> Reply {
        let socket = self.runtime().join(id).join("notify.sock");
        let Some(state) = self.containers.get_mut(id).and_then(|c| c.state.as_mut()) else {
            return refuse(ErrorCode::NotFound, format!("no container {id}"));
        };
        match state.phase {
            Phase::Created => {}
            // A repeated request after a lost answer.
            Phase::Running => return Reply::Done,
            Phase::Exited => return refuse(ErrorCode::WrongPhase, format!("container {id} has exited")),
        }
        let told = connect_long(&socket).and_then(|mut s| s.write_all(b"start container"));
        if let Err(e) = told {
            return refuse(ErrorCode::Failed, format!("cannot start container {id}: {}: {e}", socket.display()));
        }
        state.phase = Phase::Running;
        state.started_at = Some(clock::now());
        self.happened(id, Happening::Started);
        Reply::Done
    }

    /// Signals a container's first process, or all.
    pub fn signal(&mut self, id: &str, signal: i32, all: bool) -> Reply {
        let Some(container) = self.containers.get(id) else {
            return refuse(ErrorCode::NotFound, format!("no container {id}"));
        };
        let Some(state) = container.state.as_ref().filter(|s| s.phase != Phase::Exited) else { return Reply::Done };
        if !(1..=64).contains(&signal) {
            return refuse(ErrorCode::Invalid, format!("{signal} is no signal"));
        }
        let kill = rustix::process::Signal::KILL.as_raw();
        if signal == kill {
            // Frozen tasks of cgroup v1 ignore even this one.
            container.group.thaw();
        }
        let pids: Vec<i32> = if all { container.group.processes().into_iter().collect() } else { vec![state.pid] };
        for pid in pids {
            if let Err(e) = process::kill(pid, signal) {
                return refuse(ErrorCode::Failed, e.to_string());
            }
        }
        Reply::Done
    }

    /// SIGKILL to everything.
    pub fn kill_all(&mut self) {
        for container in self.containers.values() {
            container.group.thaw();
            for pid in container.group.processes() {
                let _ = process::kill(pid, rustix::process::Signal::KILL.as_raw());
            }
        }
    }

    /// Kills, waits for the exit, unmounts, removes.
    pub fn delete(&mut self, id: &str, remove_upper: bool) -> Reply {
        let Some(container) = self.containers.get(id) else { return Reply::Done };
        if container.state.is_none() {
            return refuse(ErrorCode::WrongPhase, format!("container {id} is being made"));
        }
        if let Err(e) = container.group.kill(KILL_WITHIN) {
            return refuse(ErrorCode::Failed, e.to_string());
        }
        let deadline = Instant::now() + KILL_WITHIN;
        while self.containers.get(id).is_some_and(Container::is_live) && Instant::now() < deadline {
            self.reap();
            std::thread::sleep(Duration::from_millis(1));
        }
        match self.discard(id, remove_upper) {
            Some(error) => refuse(ErrorCode::Failed, error),
            None => {
                self.happened(id, Happening::Deleted);
                Reply::Done
            }
        }
    }

    /// Removes all traces of a container that has no process (any more); gives the first error.
    pub fn discard(&mut self, id: &str, remove_upper: bool) -> Option<String> {
        let (bundle, runtime) = (self.bundle(id), self.runtime().join(id));
        let container = self.containers.get(id)?;
        let mut errors = Vec::new();
        if let Err(e) = container.group.kill(KILL_WITHIN).and_then(|_| container.group.remove(KILL_WITHIN)) {
            errors.push(e.to_string());
        }
        let unmounted = mounts::detach_below(&bundle);
        let mut doomed: Vec<&Path> = vec![&runtime];
        match &unmounted {
            Ok(_) => doomed.push(&bundle),
            Err(e) => errors.push(e.to_string()),
        }
        if let (true, Some((upper, work))) = (remove_upper && unmounted.is_ok(), &container.draft.upper) {
            doomed.extend([upper.as_path(), work.as_path()]);
        }
        for dir in doomed {
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => errors.push(format!("{}: {e}", dir.display())),
                _ => {}
            }
        }
        // One that was never made must not block its id; the Pod's cleanup gets what is left of it.
        if errors.is_empty() || container.state.is_none() {
            self.containers.remove(id);
        }
        errors.into_iter().next()
    }
}

/// The standard descriptors of a container without a terminal.
struct Pipes {
    child: [OwnedFd; 3],
    streams: [Option<Stream>; 2],
    stdin: Option<OwnedFd>,
}

impl Pipes {
    fn make(request: &CreateContainer) -> Result<Self, String> {
        let pipe = || {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| format!("cannot make a pipe: {e}"))
        };
        let user = &request.spec["process"]["user"];
        let id = |name: &str| user[name].as_u64().and_then(|v| u32::try_from(v).ok()).unwrap_or(0);
        let (out, out_child) = pipe()?;
        let (err, err_child) = pipe()?;
        for (ours, theirs) in [(&out, &out_child), (&err, &err_child)] {
            rustix::io::ioctl_fionbio(ours, true).map_err(|e| e.to_string())?;
            // A program that opens /dev/stdout again does so as the container's user.
            let (uid, gid) = (rustix::fs::Uid::from_raw(id("uid")), rustix::fs::Gid::from_raw(id("gid")));
            rustix::fs::fchown(theirs, Some(uid), Some(gid)).map_err(|e| e.to_string())?;
        }
        let (stdin_child, stdin) = if request.stdin {
            let (theirs, ours) = pipe()?;
            (theirs, Some(ours))
        } else {
            (fs::File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?.into(), None)
        };
        Ok(Self {
            child: [stdin_child, out_child, err_child],
            streams: [Some(Stream::new(out, "stdout")), Some(Stream::new(err, "stderr"))],
            stdin,
        })
    }
}
