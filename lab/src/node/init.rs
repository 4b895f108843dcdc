//! PID 1 of a node: builds its root, keeps its daemons running, reaps its orphans.
//!
//! Single-threaded: whether a child is a daemon or an orphan is asked in the order in which
//! things happened.

use std::{
    fs,
    io::Read,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};

use super::{
    CONTROL_SOCKET, NODE_PATH, NodeSpec,
    control::{DaemonSpec, LINE_LIMIT_BYTES, Reply, Request},
    rootfs, spawn,
    supervisor::Supervisor,
};
use crate::{Error, Result};

/// Who connects speaks at once; a stuck one must not hold the init.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// Where daemons' logs lie on the node.
const LOGS: &str = "/var/log/trellis";

/// The body of `node-init`.
pub fn main(spec_path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    fs::File::open(spec_path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .map_err(Error::io(spec_path.display().to_string()))?;
    let spec: NodeSpec = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Format { what: spec_path.display().to_string(), why: e.to_string() })?;
    rootfs::enter(&spec)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("start a runtime"))?;
    runtime.block_on(serve())
}

async fn serve() -> Result<()> {
    let mut children = signal(SignalKind::child()).map_err(Error::io("watch for SIGCHLD"))?;
    let socket = Path::new("/run/lab").join(CONTROL_SOCKET);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(Error::io(socket.display().to_string()))?;
    let mut supervisor = Supervisor::default();
    loop {
        reap(&mut supervisor);
        let now = Instant::now();
        for daemon in supervisor.take_due(now) {
            match run(&daemon) {
                Ok(pid) => supervisor.spawned(&daemon.name, pid, now),
                Err(e) => supervisor.failed(&daemon.name, e.to_string(), now),
            }
        }
        let wake = supervisor.next_due().unwrap_or(now + Duration::from_secs(60));
        tokio::select! {
            _ = children.recv() => {}
            () = tokio::time::sleep_until(wake.into()) => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    // One at a time: each is a line; who dawdles is dropped.
                    let _ = tokio::time::timeout(REQUEST_LIMIT, answer(stream, &mut supervisor)).await;
                }
            }
        }
    }
}

async fn answer(mut stream: UnixStream, supervisor: &mut Supervisor) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader.take(LINE_LIMIT_BYTES)).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => handle(request, supervisor),
        Err(e) => Reply::Refused { why: e.to_string() },
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

fn handle(request: Request, supervisor: &mut Supervisor) -> Reply {
    match request {
        Request::Ping => Reply::Ok,
        Request::Start { daemon } => {
            supervisor.start(daemon, Instant::now());
            Reply::Ok
        }
        Request::Stop { name } => match supervisor.stop(&name) {
            Some(pid) => send(pid, Signal::SIGTERM),
            None => Reply::Ok,
        },
        Request::Signal { name, signal } => match (supervisor.pid(&name), Signal::try_from(signal)) {
            (Some(pid), Ok(signal)) => send(pid, signal),
            (None, _) => Reply::Refused { why: format!("daemon {name} does not run") },
            (_, Err(_)) => Reply::Refused { why: format!("there is no signal {signal}") },
        },
        Request::List => Reply::Daemons { daemons: supervisor.states() },
    }
}

fn send(pid: i32, signal: Signal) -> Reply {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Reply::Ok,
        Err(e) => Reply::Refused { why: format!("{signal} to {pid}: {e}") },
    }
}

fn run(daemon: &DaemonSpec) -> Result<i32> {
    let Some((program, args)) = daemon.argv.split_first() else {
        return Err(Error::Format { what: format!("daemon {}", daemon.name), why: "no program".to_owned() });
    };
    let log = spawn::append(&Path::new(LOGS).join(format!("{}.log", daemon.name)))?;
    let errors = log.try_clone().map_err(Error::io("share a log"))?;
    let mut command = Command::new(program);
    if let Some(user) = daemon.user {
        command.uid(user).gid(user);
    }
    // Not waited for here: `reap` does it for every child.
    let child = command
        .args(args)
        .env_clear()
        .env("PATH", NODE_PATH)
        .env("HOME", "/root")
        .envs(&daemon.env)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(Error::io(format!("start {program}")))?;
    Ok(child.id().cast_signed())
}

fn reap(supervisor: &mut Supervisor) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => {
                supervisor.exited(pid.as_raw(), format!("exit code {code}"), Instant::now());
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                supervisor.exited(pid.as_raw(), format!("signal {signal}"), Instant::now());
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
