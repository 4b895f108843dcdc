//! `exec`: run a command in a container, with or without a terminal; its exit code is ours.

use std::io::{IsTerminal, Read, Write};

use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use trellis_model::Kind;
use trellis_proto::api::{ExecInput, ExecStart, TerminalSize, exec_input::Input, exec_output::Output};

use super::{container, pod_of};
use crate::cli::Global;
use crate::error::CliError;
use crate::session::{Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis exec web-1 -- cat /etc/hosts
  trellis exec -it deploy/web -- sh
  tar c src | trellis exec -i web-1 -c app -- tar x -C /srv";

/// Messages on their way to the server; stdin is not read faster than it is sent.
const QUEUE: usize = 16;
/// Bytes of stdin in one message.
const CHUNK_BYTES: usize = 32 * 1024;

/// Arguments of `exec`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// POD or TYPE/NAME
    #[arg(value_name = "POD|TYPE/NAME")]
    target: String,
    /// The container; not needed when there is one
    #[arg(short, long)]
    container: Option<String>,
    /// Pass stdin on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// What to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A terminal in raw mode; as it was when dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<RawMode> {
        let before = termios::tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(RawMode(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn size() -> Option<TerminalSize> {
    let w = termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(TerminalSize { rows: u32::from(w.ws_row), columns: u32::from(w.ws_col) })
}

/// Runs the command.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let (kind, name) = target::one(&args.target, Kind::Pod)?;
    let pod = pod_of(&session, kind, &name).await?;
    let container = container::meant(&pod, args.container.as_deref())?;
    let mut tty = args.tty;
    if tty && !std::io::stdin().is_terminal() {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let (namespace, name) = identity(&pod);
    let start = ExecStart {
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        container,
        command: args.command.clone(),
        stdin: args.stdin,
        tty,
        size: if tty { size() } else { None },
    };
    let code = converse(&session, start, args.stdin).await?;
    match u8::try_from(code) {
        Ok(0) => Ok(()),
        Ok(c) => Err(CliError::Exit(c)),
        Err(_) => Err(CliError::Exit(1)),
    }
}

/// Carries the streams; answers the exit code.
async fn converse(session: &Session, start: ExecStart, stdin: bool) -> Result<i32, CliError> {
    let tty = start.tty;
    let (tx, rx) = mpsc::channel(QUEUE);
    let message = |i: Input| ExecInput { input: Some(i) };
    tx.send(message(Input::Start(start))).await.map_err(CliError::local)?;
    // A stream of input cannot be sent twice, so this call is made once; a first call has made
    // sure that a member answers.
    let mut replies = session.conn.pods().exec(ReceiverStream::new(rx)).await?.into_inner();
    let raw = if tty { RawMode::enter() } else { None };
    if stdin {
        let tx = tx.clone();
        std::thread::spawn(move || pump_stdin(&tx));
    }
    if tty {
        tokio::spawn(pump_size(tx.clone()));
    }
    let mut code = None;
    while let Some(reply) = replies.message().await? {
        match reply.output {
            Some(Output::Stdout(data)) => {
                let mut out = std::io::stdout().lock();
                if out.write_all(&data).and_then(|()| out.flush()).is_err() {
                    return Ok(0);
                }
            }
            Some(Output::Stderr(data)) => {
                let mut err = std::io::stderr().lock();
                // A closed stderr must not end the command.
                let _ = err.write_all(&data).and_then(|()| err.flush());
            }
            Some(Output::ExitCode(c)) => {
                code = Some(c);
                break;
            }
            None => {}
        }
    }
    drop(raw);
    drop(tx);
    code.ok_or_else(|| CliError::Local("the connection ended before the command did".into()))
}

/// Reads stdin on a thread of its own: such a read cannot be cancelled, and the process must end
/// without it.
fn pump_stdin(tx: &mpsc::Sender<ExecInput>) {
    let mut stdin = std::io::stdin();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let input = match stdin.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => Input::StdinEof(true),
            Ok(n) => Input::Stdin(buffer[..n].to_vec().into()),
        };
        let last = matches!(input, Input::StdinEof(_));
        if tx.blocking_send(ExecInput { input: Some(input) }).is_err() || last {
            return;
        }
    }
}

async fn pump_size(tx: mpsc::Sender<ExecInput>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        // Once at first: it may have changed between the start message and the line above.
        if let Some(s) = size()
            && tx.send(ExecInput { input: Some(Input::Resize(s)) }).await.is_err()
        {
            return;
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}
