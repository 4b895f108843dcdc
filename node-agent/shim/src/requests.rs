//! What each request does: the dispatch, and the requests that are not a container's life.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use trellis_sandbox::{netns, process};
use trellis_shim_protocol::{ErrorCode, Exec, Phase, Reply, Request, VERSION, negotiate};

use crate::conn::Waiting;
use crate::exec::ExecJob;
use crate::helper::{Helper, Purpose, Report};
use crate::server::{ExecRecord, Shim, refuse};

/// Running at once in a Pod: probes and people.
const MAX_RUNNING_EXECS: usize = 256;

impl Shim {
    /// Handles one request of a connection.
    pub fn handle(&mut self, conn: u64, request: Request, fds: Vec<OwnedFd>) {
        let greeted = self.conns.get(&conn).is_some_and(|c| c.version > 0);
        if !greeted && !matches!(request, Request::Hello { .. }) {
            self.answer(conn, &refuse(ErrorCode::Invalid, "the first request must be hello"), Vec::new());
            return;
        }
        let reply = match request {
            Request::Hello { versions } => self.hello(conn, &versions),
            Request::State => Reply::State(Box::new(self.state())),
            Request::GetNetns => return self.get_netns(conn),
            Request::CreateContainer(create) => return self.create(conn, *create),
            Request::StartContainer { id } => self.start(&id),
            Request::Signal { id, signal, all } => self.signal(&id, signal, all),
            Request::Wait { id } => match self.containers.get(&id).map(|c| c.state.as_ref()) {
                None => refuse(ErrorCode::NotFound, format!("no container {id}")),
                Some(state) => match state.and_then(|s| s.exit.clone()) {
                    Some(exit) => Reply::Exited(exit),
                    None => return self.wait_for(conn, Waiting::Container(id)),
                },
            },
            Request::DeleteContainer { id, remove_upper } => self.delete(&id, remove_upper),
            Request::Exec(exec) => return self.exec(conn, *exec, fds),
            Request::WaitExec { exec_id } => match self.execs.get(&exec_id) {
                None => refuse(ErrorCode::NotFound, format!("no exec {exec_id}, or its exit code was told long ago")),
                Some(ExecRecord { exit: Some(exit), .. }) => Reply::Exited(exit.clone()),
                Some(_) => return self.wait_for(conn, Waiting::Exec(exec_id)),
            },
            Request::SignalExec { exec_id, signal } => self.signal_exec(exec_id, signal),
            Request::ReopenLogs { id } => match self.containers.get_mut(&id).map(|c| c.sink.reopen()) {
                None => refuse(ErrorCode::NotFound, format!("no container {id}")),
                Some(Ok(())) => Reply::Done,
                Some(Err(e)) => refuse(ErrorCode::Failed, format!("cannot reopen the log of {id}: {e}")),
            },
            Request::Events { after } => return self.subscribe(conn, after),
            Request::SetStopDeadline { after_millis } => {
                self.stop_deadline = after_millis.map(|m| Instant::now() + Duration::from_millis(m));
                Reply::Done
            }
            Request::Shutdown => self.shutdown(),
        };
        self.answer(conn, &reply, Vec::new());
    }

    fn wait_for(&mut self, conn: u64, what: Waiting) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.waiting = what;
        }
    }

    fn hello(&mut self, conn: u64, versions: &[u32]) -> Reply {
        let Some(version) = negotiate(versions) else {
            return refuse(ErrorCode::Unsupported, format!("this shim speaks version {VERSION}, not {versions:?}"));
        };
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.version = version;
        }
        Reply::Hello { version, shim: env!("CARGO_PKG_VERSION").to_owned(), pod_uid: self.config.pod_uid.clone() }
    }

    fn get_netns(&mut self, conn: u64) {
        // The shim lives in the Pod's namespace: its own is the Pod's, and so is a socket it opens.
        match netns::current().and_then(|ns| Ok((ns, netns::rtnetlink_socket()?))) {
            Ok((ns, socket)) => self.answer(conn, &Reply::Netns, vec![ns, socket]),
            Err(e) => self.answer(conn, &refuse(ErrorCode::Failed, e.to_string()), Vec::new()),
        }
    }

    fn subscribe(&mut self, conn: u64, after: u64) {
        let Some(conn) = self.conns.get_mut(&conn) else { return };
        conn.waiting = Waiting::Events;
        for event in self.events.iter().filter(|e| e.sequence > after) {
            conn.reply(&Reply::Event(event.clone()), Vec::new());
        }
    }

    fn exec(&mut self, conn: u64, request: Exec, fds: Vec<OwnedFd>) {
        match self.start_exec(conn, request, fds) {
            Ok(()) => self.wait_for(conn, Waiting::Helper),
            Err(reply) => self.answer(conn, &reply, Vec::new()),
        }
    }

    fn start_exec(&mut self, conn: u64, request: Exec, fds: Vec<OwnedFd>) -> Result<(), Reply> {
        let failed = |e: &dyn std::error::Error| refuse(ErrorCode::Failed, e.to_string());
        let Some(container) = self.containers.get(&request.id) else {
            return Err(refuse(ErrorCode::NotFound, format!("no container {}", request.id)));
        };
        let Some(state) = container.state.as_ref().filter(|s| s.phase == Phase::Running) else {
            return Err(refuse(ErrorCode::WrongPhase, format!("container {} is not running", request.id)));
        };
        if self.execs.values().filter(|e| e.exit.is_none()).count() >= MAX_RUNNING_EXECS {
            return Err(refuse(
                ErrorCode::LimitReached,
                format!("{MAX_RUNNING_EXECS} execs run in this Pod, the limit"),
            ));
        }
        let stdio = if request.tty {
            None
        } else {
            let three: Result<[OwnedFd; 3], _> = fds.try_into();
            Some(three.map_err(|_| {
                refuse(ErrorCode::Invalid, "an exec without terminal needs three descriptors: stdin, stdout, stderr")
            })?)
        };
        let (ours, theirs) = UnixStream::pair().map_err(|e| failed(&e))?;
        let mut keep = vec![theirs.as_raw_fd()];
        keep.extend(stdio.iter().flatten().map(AsRawFd::as_raw_fd));
        let record = ExecRecord {
            pid: 0,
            exit: None,
            bound_to: request.kill_on_disconnect.then_some(conn),
            container: request.id.clone(),
        };
        let job = ExecJob {
            bundle: self.bundle(&request.id),
            filters: self.config.filters.clone(),
            pid: state.pid,
            cgroup: container.group.clone(),
            request,
            stdio,
            socket: theirs,
        };
        let mut job = Some(job);
        let pid = process::fork_child(&keep, || job.take().map_or(1, ExecJob::run)).map_err(|e| failed(&e))?;
        drop(job);
        let exec_id = self.next_id;
        self.next_id += 1;
        self.helpers.push(Helper::new(pid, ours, Purpose::Exec(exec_id), conn).map_err(|e| failed(&e))?);
        self.execs.insert(exec_id, record);
        Ok(())
    }

    /// The exec's helper has closed its socket: by `execve`, or after an error.
    pub fn exec_started(&mut self, conn: u64, exec_id: u64, said: Report, master: Option<OwnedFd>) {
        let gone = !self.conns.contains_key(&conn);
        match (said.pid, said.error) {
            (Some(pid), None) => {
                if let Some(record) = self.execs.get_mut(&exec_id) {
                    record.pid = pid;
                    if gone && record.bound_to == Some(conn) {
                        let _ = process::kill(pid, rustix::process::Signal::KILL.as_raw());
                    }
                }
                self.answer(conn, &Reply::ExecStarted { exec_id }, master.into_iter().collect());
            }
            (_, error) => {
                self.execs.remove(&exec_id);
                let message = error.unwrap_or_else(|| "the helper that started it died".to_owned());
                self.answer(conn, &refuse(ErrorCode::Failed, message), Vec::new());
            }
        }
    }

    fn signal_exec(&mut self, exec_id: u64, signal: i32) -> Reply {
        let Some(record) = self.execs.get(&exec_id) else {
            return refuse(ErrorCode::NotFound, format!("no exec {exec_id}"));
        };
        if record.exit.is_some() || record.pid == 0 {
            return Reply::Done;
        }
        match process::kill(record.pid, signal) {
            Ok(()) => Reply::Done,
            Err(e) => refuse(ErrorCode::Failed, format!("exec in container {}: {e}", record.container)),
        }
    }

    fn shutdown(&mut self) -> Reply {
        for helper in &mut self.helpers {
            let _ = process::kill(helper.pid, rustix::process::Signal::KILL.as_raw());
            helper.said.error = Some("the Pod is being shut down".to_owned());
            helper.ended = true;
        }
        self.finish_helpers();
        self.kill_all();
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        let mut failed = Vec::new();
        for id in ids {
            if let Reply::Error { message, .. } = self.delete(&id, false) {
                failed.push(message);
            }
        }
        if let Some(message) = failed.into_iter().next() {
            return refuse(ErrorCode::Failed, message);
        }
        self.ending = true;
        Reply::Done
    }
}
