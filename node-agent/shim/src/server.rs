//! The poll loop: connections, containers' output, helpers, signals, deadlines. One thread, nothing blocks
//! but the removal of a container (bounded).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec};
use trellis_sandbox::cgroup::Cgroup;
use trellis_sandbox::process;
use trellis_shim_protocol::{ErrorCode, Event, Exit, HELPER_TIMEOUT, Moment, Reply, SandboxConfig};

use crate::clock;
use crate::conn::{Conn, Waiting};
use crate::container::Container;
use crate::helper::Helper;
use crate::logs::READ_BYTES;

/// An agent uses a handful: one to ask, one for events, one a waiting exec.
const MAX_CONNECTIONS: usize = 128;

/// What the daemon has opened for the loop.
pub struct Surface {
    /// The agent's way in.
    pub listener: UnixListener,
    /// SIGCHLD, and those that are ignored.
    pub signals: SignalFd,
    /// The /proc of the agent's PID namespace.
    pub outer_proc: OwnedFd,
    /// The Pod's cgroup.
    pub group: Cgroup,
    /// Limits are set through cgroup v2.
    pub is_v2: bool,
    /// The Pod's shared `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// The first process of the PID namespace that the Pod's containers share, if they do.
    pub pause: Option<i32>,
}

/// An exec'd process.
pub struct ExecRecord {
    /// Its process; 0 while it is being started.
    pub pid: i32,
    /// How it ended.
    pub exit: Option<Exit>,
    /// To be killed with this connection.
    pub bound_to: Option<u64>,
    /// The container.
    pub container: String,
}

/// Everything.
pub struct Shim {
    pub config: SandboxConfig,
    pub surface: Surface,
    pub host_pid: i32,
    pub started_at: Moment,
    pub containers: BTreeMap<String, Container>,
    pub execs: BTreeMap<u64, ExecRecord>,
    pub helpers: Vec<Helper>,
    pub conns: BTreeMap<u64, Conn>,
    pub events: VecDeque<Event>,
    pub last_event: u64,
    pub next_id: u64,
    /// Children that ended before their helper had named them.
    pub unclaimed: VecDeque<(i32, rustix::process::WaitStatus)>,
    pub stop_deadline: Option<Instant>,
    pub ending: bool,
    pub notes: u32,
    pub said: BTreeSet<String>,
    buffer: Vec<u8>,
}

/// Whom a poll answer concerns.
enum Token {
    Listener,
    Signals,
    Conn(u64),
    Helper(i32),
    Output(String, usize),
}

impl Shim {
    pub fn new(config: SandboxConfig, surface: Surface) -> Self {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let host_pid =
            process::pidfd(own).and_then(|fd| process::pid_as_seen_by(&surface.outer_proc, &fd)).unwrap_or(0);
        Self {
            config,
            surface,
            host_pid,
            started_at: clock::now(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            helpers: Vec::new(),
            conns: BTreeMap::new(),
            events: VecDeque::new(),
            last_event: 0,
            next_id: 1,
            unclaimed: VecDeque::new(),
            stop_deadline: None,
            ending: false,
            notes: 0,
            said: BTreeSet::new(),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Serves until [`trellis_shim_protocol::Request::Shutdown`].
    pub fn serve(&mut self) {
        loop {
            let ready = self.wait();
            for (token, flags) in ready {
                match token {
                    Token::Listener => self.accept(),
                    Token::Signals => while matches!(self.surface.signals.read_signal(), Ok(Some(_))) {},
                    Token::Conn(id) => self.serve_conn(id, flags),
                    Token::Helper(pid) => {
                        if let Some(helper) = self.helpers.iter_mut().find(|h| h.pid == pid) {
                            helper.listen();
                        }
                    }
                    Token::Output(id, which) => {
                        self.read_output(&id, which);
                    }
                }
            }
            self.reap();
            self.finish_helpers();
            self.check_deadlines();
            self.send();
            if self.ending && self.conns.values().all(|c| !c.wants_write()) {
                return;
            }
        }
    }

    fn wait(&self) -> Vec<(Token, PollFlags)> {
        let mut tokens = vec![Token::Signals];
        let mut fds = vec![PollFd::new(&self.surface.signals, PollFlags::IN)];
        if self.conns.len() < MAX_CONNECTIONS {
            tokens.push(Token::Listener);
            fds.push(PollFd::new(&self.surface.listener, PollFlags::IN));
        }
        for (id, conn) in &self.conns {
            let mut flags = if conn.waiting == Waiting::No { PollFlags::IN } else { PollFlags::RDHUP };
            if conn.wants_write() {
                flags |= PollFlags::OUT;
            }
            tokens.push(Token::Conn(*id));
            fds.push(PollFd::new(&conn.stream, flags));
        }
        for helper in self.helpers.iter().filter(|h| !h.ended) {
            tokens.push(Token::Helper(helper.pid));
            fds.push(PollFd::new(&helper.socket, PollFlags::IN));
        }
        for (id, container) in &self.containers {
            for (which, stream) in container.streams.iter().enumerate() {
                if let Some(stream) = stream {
                    tokens.push(Token::Output(id.clone(), which));
                    fds.push(PollFd::from_borrowed_fd(stream.fd.as_fd(), PollFlags::IN));
                }
            }
        }
        let timeout = self.next_deadline().map(|d| {
            let left = d.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        // EINTR and the like: go round with nothing.
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let flags: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        tokens.into_iter().zip(flags).filter(|(_, f)| !f.is_empty()).collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.helpers.iter().map(|h| h.deadline).chain(self.stop_deadline).min()
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        for helper in self.helpers.iter_mut().filter(|h| h.deadline <= now) {
            helper.said.error = Some(format!("it took longer than {} s and was given up", HELPER_TIMEOUT.as_secs()));
            helper.ended = true;
            let _ = process::kill(helper.pid, rustix::process::Signal::KILL.as_raw());
        }
        if self.helpers.iter().any(|h| h.deadline <= now) {
            self.finish_helpers();
        }
        if self.stop_deadline.is_some_and(|d| d <= now) {
            self.stop_deadline = None;
            self.note("the agent did not renew its stop deadline: all containers are killed");
            self.kill_all();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.surface.listener.accept() {
            if let Ok(conn) = Conn::new(stream) {
                let id = self.next_id;
                self.next_id += 1;
                self.conns.insert(id, conn);
            }
            if self.conns.len() >= MAX_CONNECTIONS {
                break;
            }
        }
    }

    fn serve_conn(&mut self, id: u64, flags: PollFlags) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let gone = flags.intersects(PollFlags::ERR | PollFlags::NVAL)
            || (conn.waiting != Waiting::No && flags.intersects(PollFlags::HUP | PollFlags::RDHUP))
            || (conn.waiting == Waiting::No
                && flags.intersects(PollFlags::IN | PollFlags::HUP)
                && !conn.fill(&mut self.buffer));
        if gone {
            self.drop_conn(id);
            return;
        }
        while let Some((request, fds)) = self.conns.get_mut(&id).and_then(Conn::request) {
            self.handle(id, request, fds);
        }
    }

    fn send(&mut self) {
        let mut gone = Vec::new();
        for (id, conn) in &mut self.conns {
            if !conn.flush() || (conn.closing && !conn.wants_write()) {
                gone.push(*id);
            }
        }
        for id in gone {
            self.drop_conn(id);
        }
        // A reply frees its connection for the request that is already here.
        let idle: Vec<u64> = self.conns.iter().filter(|(_, c)| c.waiting == Waiting::No).map(|(id, _)| *id).collect();
        for id in idle {
            while let Some((request, fds)) = self.conns.get_mut(&id).and_then(Conn::request) {
                self.handle(id, request, fds);
            }
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.flush();
            }
        }
    }

    fn drop_conn(&mut self, id: u64) {
        self.conns.remove(&id);
        for record in self.execs.values().filter(|r| r.bound_to == Some(id) && r.exit.is_none() && r.pid > 0) {
            let _ = process::kill(record.pid, rustix::process::Signal::KILL.as_raw());
        }
    }

    /// Answers a connection that waits, and frees it for its next request.
    pub fn answer(&mut self, conn: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.waiting = Waiting::No;
            conn.reply(reply, fds);
        }
    }

    /// Answers all that wait for something.
    pub fn answer_waiting(&mut self, what: &Waiting, reply: &Reply) {
        let waiting: Vec<u64> = self.conns.iter().filter(|(_, c)| c.waiting == *what).map(|(id, _)| *id).collect();
        for id in waiting {
            self.answer(id, reply, Vec::new());
        }
    }

    /// Reads one chunk of a container's output into its log.
    pub fn read_output(&mut self, id: &str, which: usize) -> bool {
        match self.containers.get_mut(id) {
            Some(container) => container.read_output(which, &mut self.buffer),
            None => false,
        }
    }
}

/// An error reply.
pub fn refuse(code: ErrorCode, message: impl Into<String>) -> Reply {
    Reply::Error { code, message: message.into() }
}
