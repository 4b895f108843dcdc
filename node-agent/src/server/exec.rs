//! Exec: a process in a running container, its stdio carried over the stream; its exit code is
//! the last message. It is killed when the caller goes away.
use super::{Service, container};
use crate::{
    pod::registry::{ContainerView, PodView},
    runtime::shim::Shim,
};
use bytes::Bytes;
use rustix::termios::Winsize;
use std::{os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::mpsc::Sender,
};
use tonic::{Status, Streaming};
use trellis_proto::api::{ExecInput, ExecOutput, ExecStart, TerminalSize, exec_input::Input, exec_output::Output};
use trellis_shim_protocol::Exec;

const CHUNK_BYTES: usize = 32 * 1024;
/// How long the client has to say what it wants.
const START_WITHIN: Duration = Duration::from_secs(10);
/// What a process wrote before its end is read for so long after it.
const DRAIN: Duration = Duration::from_millis(300);

type Tx = Sender<Result<ExecOutput, Status>>;

/// Starts the process; the rest happens in tasks.
pub async fn begin(service: &Service, mut input: Streaming<ExecInput>, tx: Tx) -> Result<(), Status> {
    let first = tokio::time::timeout(START_WITHIN, input.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no start message within 10 s"))??;
    let Some(Input::Start(start)) = first.and_then(|f| f.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    if start.command.is_empty() {
        return Err(Status::invalid_argument("a command must be given"));
    }
    let view = service.pod(&start.namespace, &start.pod)?;
    let found = container(&view, &start.container)?;
    if !found.running || found.id.is_empty() {
        return Err(not_running(&view, found));
    }
    let shim = Shim::at(&service.ctx.shim_dir(view.uid()));
    let exec = Exec {
        id: found.id.clone(),
        argv: start.command.clone(),
        tty: start.tty,
        size: start.size.as_ref().and_then(size),
        ..Exec::default()
    };
    if start.tty { terminal(shim, exec, input, tx).await } else { pipes(shim, exec, &start, input, tx).await }
}

fn not_running(view: &PodView, c: &ContainerView) -> Status {
    let pod = view.pod.metadata.name.as_deref().unwrap_or_default();
    Status::failed_precondition(format!(
        "cannot exec in container {} of pod {pod}: it is not running but {}; `trellis describe pod {pod}` says why",
        c.name, c.state
    ))
}

fn size(s: &TerminalSize) -> Option<(u16, u16)> {
    Some((u16::try_from(s.rows).ok()?, u16::try_from(s.columns).ok()?))
}

fn refused(error: impl std::fmt::Display) -> Status {
    Status::failed_precondition(error.to_string())
}

/// Kills the process when the tasks around it are dropped.
struct Guard {
    shim: Shim,
    exec_id: u64,
    armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            let (shim, exec_id) = (self.shim.clone(), self.exec_id);
            tokio::spawn(async move { shim.signal_exec(exec_id, 9).await });
        }
    }
}

async fn killed(shim: &Shim, exec_id: u64) {
    if let Err(error) = shim.signal_exec(exec_id, 9).await {
        tracing::debug!(exec_id, %error, "a process whose caller went away has ended by itself");
    }
}

async fn finish(mut guard: Guard, tx: &Tx) {
    let output = match guard.shim.wait_exec(guard.exec_id).await {
        Ok(exit) => Ok(ExecOutput { output: Some(Output::ExitCode(exit.code)) }),
        Err(error) => Err(Status::unavailable(format!("the process' end is not known: {error}"))),
    };
    guard.armed = false;
    drop(tx.send(output).await);
}

async fn pipes(shim: Shim, exec: Exec, start: &ExecStart, input: Streaming<ExecInput>, tx: Tx) -> Result<(), Status> {
    let (in_read, in_write): (OwnedFd, Option<OwnedFd>) = if start.stdin {
        let (r, w) = std::io::pipe().map_err(refused)?;
        (r.into(), Some(w.into()))
    } else {
        (std::fs::File::open("/dev/null").map_err(refused)?.into(), None)
    };
    let (out_read, out_write) = std::io::pipe().map_err(refused)?;
    let (err_read, err_write) = std::io::pipe().map_err(refused)?;
    let stdio = [in_read, out_write.into(), err_write.into()];
    let exec_id = shim.exec(exec, stdio).await.map_err(refused)?;
    let guard = Guard { shim, exec_id, armed: true };
    let out = tokio::spawn(copy_out(receiver(out_read.into())?, tx.clone(), Output::Stdout));
    let err = tokio::spawn(copy_out(receiver(err_read.into())?, tx.clone(), Output::Stderr));
    let write = in_write.map(|fd| nonblocking(fd).and_then(|fd| pipe::Sender::from_owned_fd(fd).map_err(refused)));
    let feed = tokio::spawn(copy_in(write.transpose()?, input));
    let shim = guard.shim.clone();
    tokio::spawn(async move {
        let waited = async {
            let exit = guard.shim.wait_exec(guard.exec_id).await;
            // Its children may hold the pipes open for ever; kubectl does not wait for them either.
            let rest = futures::future::join(out, err);
            drop(tokio::time::timeout(DRAIN, rest).await);
            drop(exit);
            finish(guard, &tx).await;
        };
        tokio::select! {
            () = waited => {}
            // Before its input ends: it must not take that for all.
            () = tx.closed() => killed(&shim, exec_id).await,
        }
        feed.abort();
    });
    Ok(())
}

#[allow(clippy::result_large_err)]
fn nonblocking(fd: OwnedFd) -> Result<OwnedFd, Status> {
    rustix::io::ioctl_fionbio(&fd, true).map_err(refused)?;
    Ok(fd)
}

#[allow(clippy::result_large_err)]
fn receiver(fd: OwnedFd) -> Result<pipe::Receiver, Status> {
    pipe::Receiver::from_owned_fd(nonblocking(fd)?).map_err(refused)
}

async fn copy_out(mut from: pipe::Receiver, tx: Tx, wrap: fn(Bytes) -> Output) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n) = from.read(&mut buffer).await {
        let data = Bytes::copy_from_slice(&buffer[..n]);
        if n == 0 || tx.send(Ok(ExecOutput { output: Some(wrap(data)) })).await.is_err() {
            return;
        }
    }
}

/// A caller that went away has not said that this was all: the program must not take it for that
/// before it is killed, so the pipe stays open until then.
async fn copy_in(mut to: Option<pipe::Sender>, mut input: Streaming<ExecInput>) {
    loop {
        let message = match input.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(_) => std::future::pending().await,
        };
        match message.input {
            Some(Input::Stdin(data)) => {
                if let Some(pipe) = &mut to
                    && pipe.write_all(&data).await.is_err()
                {
                    to = None;
                }
            }
            Some(Input::StdinEof(true)) => to = None,
            _ => {}
        }
    }
}

async fn terminal(shim: Shim, exec: Exec, mut input: Streaming<ExecInput>, tx: Tx) -> Result<(), Status> {
    let (exec_id, master) = shim.exec_tty(exec).await.map_err(refused)?;
    let guard = Guard { shim, exec_id, armed: true };
    let master = Arc::new(watched(nonblocking(master)?).map_err(refused)?);
    let (reader, out) = (Arc::clone(&master), tx.clone());
    let read = tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        // EIO is a terminal's end of file.
        while let Ok(n @ 1..) =
            reader.async_io(Interest::READABLE, |fd| rustix::io::read(fd, &mut buffer[..]).map_err(Into::into)).await
        {
            let output = Output::Stdout(Bytes::copy_from_slice(&buffer[..n]));
            if out.send(Ok(ExecOutput { output: Some(output) })).await.is_err() {
                return;
            }
        }
    });
    let feed = tokio::spawn(async move {
        while let Ok(Some(message)) = input.message().await {
            let done = match message.input {
                Some(Input::Stdin(data)) => write_all(&master, &data).await,
                Some(Input::Resize(s)) => resize(&master, &s),
                // End of input on a terminal is a character: ^D.
                Some(Input::StdinEof(true)) => write_all(&master, &[4]).await,
                _ => Ok(()),
            };
            if done.is_err() {
                return;
            }
        }
    });
    let shim = guard.shim.clone();
    tokio::spawn(async move {
        let waited = async {
            drop(guard.shim.wait_exec(guard.exec_id).await);
            drop(tokio::time::timeout(DRAIN, read).await);
            finish(guard, &tx).await;
        };
        tokio::select! {
            () = waited => {}
            // Before its input ends: it must not take that for all.
            () = tx.closed() => killed(&shim, exec_id).await,
        }
        feed.abort();
    });
    Ok(())
}

/// `AsyncFd::new` is deprecated for descriptors that may be closed behind its back; an `OwnedFd`
/// that is never taken out again cannot be.
#[allow(deprecated)]
pub(super) fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

async fn write_all(master: &AsyncFd<OwnedFd>, mut data: &[u8]) -> std::io::Result<()> {
    while !data.is_empty() {
        let n = master.async_io(Interest::WRITABLE, |fd| rustix::io::write(fd, data).map_err(Into::into)).await?;
        data = &data[n..];
    }
    Ok(())
}

fn resize(master: &AsyncFd<OwnedFd>, s: &TerminalSize) -> std::io::Result<()> {
    let Some((rows, columns)) = size(s) else { return Ok(()) };
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master.get_ref(), size)?)
}
