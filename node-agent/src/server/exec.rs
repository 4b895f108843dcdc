//! Exec: a process in a running container, its stdio carried over the stream; its exit code is
//! the last message. It is killed when the caller goes away.
use super::{Service, container};
use crate::{
    pod::registry::{ContainerView, PodView},
    runtime::shim::Shim,
};
use bytes::Bytes;
use rustix::termios::Winsize;
use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::{mpsc::Sender, watch},
    time::Instant,
};
use tonic::{Status, Streaming};
use trellis_proto::api::{ExecInput, ExecOutput, ExecStart, TerminalSize, exec_input::Input, exec_output::Output};
use trellis_shim_protocol::{Exec, Exit};

const CHUNK_BYTES: usize = 32 * 1024;
/// How long the client has to say what it wants.
const START_WITHIN: Duration = Duration::from_secs(10);
/// After a process' end its output is over when nothing has come for so long …
const DRAIN: Duration = Duration::from_millis(300);
/// … or was waited for so long in all, or this much has come: its children may hold the pipes open
/// and write for ever. What the process itself has written lies in the pipe at its end: it takes no
/// waiting, and a pipe holds no more.
const DRAIN_WAIT: Duration = Duration::from_secs(3);
const DRAIN_BYTES: usize = 1 << 20;

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

async fn finish<E: std::fmt::Display>(mut guard: Guard, exit: Result<Exit, E>, tx: &Tx) {
    let output = match exit {
        Ok(exit) => Ok(ExecOutput { output: Some(Output::ExitCode(exit.code)) }),
        Err(error) => Err(Status::unavailable(format!("the process' end is not known: {error}"))),
    };
    guard.armed = false;
    drop(tx.send(output).await);
}

/// Reads of one stream of a process' output. Only waiting for bytes counts against what may come after the
/// process' end, not the time that a slow caller takes to receive them.
struct Drain {
    ended: watch::Receiver<bool>,
    wait: Duration,
    bytes: usize,
}

impl Drain {
    fn new(ended: &watch::Sender<bool>) -> Self {
        Self { ended: ended.subscribe(), wait: DRAIN_WAIT, bytes: DRAIN_BYTES }
    }

    /// What `read` gives; `None` at the end of the output.
    async fn next(&mut self, read: impl Future<Output = io::Result<usize>>) -> Option<usize> {
        let (began, late) = (Instant::now(), *self.ended.borrow());
        if late && self.bytes == 0 {
            return None;
        }
        let patience = DRAIN.min(self.wait);
        let idle = async {
            // Err: whoever waits for the process is gone, and so is the caller.
            drop(self.ended.wait_for(|ended| *ended).await);
            tokio::time::sleep(patience).await;
        };
        let n = tokio::select! {
            biased;
            read = read => read.ok().filter(|n| *n > 0)?,
            () = idle => return None,
        };
        if late {
            self.wait = self.wait.saturating_sub(began.elapsed());
            self.bytes = self.bytes.saturating_sub(n);
        }
        Some(n)
    }
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
    let (ended, _) = watch::channel(false);
    let out = tokio::spawn(copy_out(receiver(out_read.into())?, tx.clone(), Output::Stdout, Drain::new(&ended)));
    let err = tokio::spawn(copy_out(receiver(err_read.into())?, tx.clone(), Output::Stderr, Drain::new(&ended)));
    let write = in_write.map(|fd| nonblocking(fd).and_then(|fd| pipe::Sender::from_owned_fd(fd).map_err(refused)));
    let feed = tokio::spawn(copy_in(write.transpose()?, input));
    let shim = guard.shim.clone();
    tokio::spawn(async move {
        let waited = async {
            let exit = guard.shim.wait_exec(guard.exec_id).await;
            ended.send_replace(true);
            drop(futures::future::join(out, err).await);
            finish(guard, exit, &tx).await;
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

async fn copy_out(mut from: pipe::Receiver, tx: Tx, wrap: fn(Bytes) -> Output, mut drain: Drain) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Some(n) = drain.next(from.read(&mut buffer)).await {
        let data = Bytes::copy_from_slice(&buffer[..n]);
        if tx.send(Ok(ExecOutput { output: Some(wrap(data)) })).await.is_err() {
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
    let (ended, _) = watch::channel(false);
    let (reader, out, mut drain) = (Arc::clone(&master), tx.clone(), Drain::new(&ended));
    let read = tokio::spawn(async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        // EIO is a terminal's end of file.
        while let Some(n) = drain
            .next(reader.async_io(Interest::READABLE, |fd| rustix::io::read(fd, &mut buffer[..]).map_err(Into::into)))
            .await
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
            let exit = guard.shim.wait_exec(guard.exec_id).await;
            ended.send_replace(true);
            drop(read.await);
            finish(guard, exit, &tx).await;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    /// One byte at a time into a pipe, until nobody reads it.
    fn ticking(mut to: std::io::PipeWriter) {
        std::thread::spawn(move || {
            while to.write_all(b"x").is_ok() {
                std::thread::sleep(DRAIN / 4);
            }
        });
    }

    async fn all(from: std::io::PipeReader, slow: Duration) -> usize {
        let (ended, _) = watch::channel(true);
        let (tx, mut rx) = tokio::sync::mpsc::channel(1);
        let from = receiver(from.into()).unwrap();
        let copied = tokio::spawn(copy_out(from, tx, Output::Stdout, Drain::new(&ended)));
        let mut bytes = 0;
        loop {
            tokio::time::sleep(slow).await;
            let next = tokio::time::timeout(Duration::from_secs(20), rx.recv()).await;
            match next.expect("something, or the end") {
                Some(Ok(ExecOutput { output: Some(Output::Stdout(data)) })) => bytes += data.len(),
                Some(other) => panic!("{other:?}"),
                None => break,
            }
        }
        copied.await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn what_lies_in_the_pipe_is_sent_however_slow_its_reader_is() {
        let (from, mut to) = std::io::pipe().unwrap();
        to.write_all(&[b'x'; 60_000]).unwrap();
        // Held open: somebody else has it, too, and writes nothing.
        assert_eq!(all(from, DRAIN * 2).await, 60_000);
        drop(to);
    }

    #[tokio::test]
    async fn children_that_write_for_ever_do_not_keep_the_caller() {
        let (from, to) = std::io::pipe().unwrap();
        ticking(to);
        let limit = Duration::from_secs(60);
        assert!(tokio::time::timeout(limit, all(from, Duration::ZERO)).await.expect("an end") >= 1);
        let (from, mut to) = std::io::pipe().unwrap();
        std::thread::spawn(move || while to.write_all(&[b'x'; 4096]).is_ok() {});
        let bytes = tokio::time::timeout(limit, all(from, Duration::ZERO)).await.expect("an end");
        assert!((1..DRAIN_BYTES + CHUNK_BYTES).contains(&bytes), "{bytes}");
    }
}
