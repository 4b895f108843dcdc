//! A command in a running container, run to its end with a bounded output: exec probes and
//! preStop hooks.
use super::shim::{Shim, ShimError};
use std::{os::fd::OwnedFd, time::Duration};
use tokio::{io::AsyncReadExt, net::unix::pipe};
use trellis_shim_protocol::Exec;

/// How much of a probe's output an event may quote.
const OUTPUT_LIMIT_BYTES: usize = 4 * 1024;
/// How long the rest of the output is awaited after the command's end.
const DRAIN: Duration = Duration::from_millis(100);

/// How it went.
#[derive(Debug)]
pub enum Outcome {
    /// Exit code, and the beginning of its output.
    Exited(i32, String),
    /// It was killed because its time was over.
    TimedOut,
}

/// Runs `argv` in container `id` for at most `timeout`.
pub async fn run(shim: &Shim, id: &str, argv: Vec<String>, timeout: Duration) -> Result<Outcome, ShimError> {
    let failed = |source: std::io::Error| ShimError::Stream { path: "pipe".into(), source };
    let null = std::fs::File::open("/dev/null").map_err(failed)?;
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let both: OwnedFd = writer.into();
    let again = both.try_clone().map_err(failed)?;
    let exec = Exec { id: id.to_owned(), argv, ..Exec::default() };
    let exec_id = shim.exec(exec, [null.into(), both, again]).await?;
    let reader = OwnedFd::from(reader);
    rustix::io::ioctl_fionbio(&reader, true).map_err(|e| failed(e.into()))?;
    let mut output = pipe::Receiver::from_owned_fd(reader).map_err(failed)?;
    let mut text = Vec::new();
    let collect = async {
        let mut buffer = [0; 1024];
        // Read on beyond the limit: a full pipe would block the command.
        while let Ok(n) = output.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            let room = OUTPUT_LIMIT_BYTES.saturating_sub(text.len()).min(n);
            text.extend_from_slice(&buffer[..room]);
        }
    };
    let waited = async {
        let mut collect = std::pin::pin!(collect);
        let mut exit = std::pin::pin!(shim.wait_exec(exec_id));
        tokio::select! {
            () = &mut collect => exit.await,
            exit = &mut exit => {
                // What it wrote is in the pipe already; a child it left behind may keep that open.
                drop(tokio::time::timeout(DRAIN, collect).await);
                exit
            }
        }
    };
    match tokio::time::timeout(timeout, waited).await {
        Ok(exit) => Ok(Outcome::Exited(exit?.code, String::from_utf8_lossy(&text).trim_end().to_owned())),
        Err(_) => {
            shim.signal_exec(exec_id, 9).await?;
            Ok(Outcome::TimedOut)
        }
    }
}
