//! The program `trellis-control-plane`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use trellis_control_plane::config::{Args, LogFormat, Settings};
use trellis_control_plane::run::{self, RunError};
use trellis_proto::service::{READY, STOPPING, notify};

/// openraft warns at each try to reach a member that is down, ten times a second;
/// `raft::network` says it once.
const LOGGED: &str =
    "info,openraft=warn,openraft::replication=error,openraft::engine::handler::replication_handler=error";

/// Worker threads: half of the cores. The machine runs Pods too, and on a machine with few cores
/// tasks that wake each other on one thread spare a switch between two, which costs more than
/// they do.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get() / 2).max(1)
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    trellis_proto::tls::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        told.cancel();
    });
    let settings = tokio::select! {
        settings = Settings::wait(&args) => settings,
        () = stop.cancelled() => return Ok(()),
    };
    let running = match run::start(settings, stop.clone()).await {
        Ok(running) => running,
        Err(RunError::Stopped) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    notify(READY);
    let failed = tokio::select! {
        () = running.failed() => true,
        () = running.tell_alive() => true,
        () = stop.cancelled() => false,
    };
    notify(STOPPING);
    running.shutdown().await;
    anyhow::ensure!(!failed, "raft stopped by itself: see the log");
    Ok(())
}
