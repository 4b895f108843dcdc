//! `trellis-node-agent`: see the library's documentation.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use std::{path::PathBuf, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use trellis_image::gc::Limits;
use trellis_node_agent::app::{Settings, run};
use trellis_node_agent::end::{Ending, end_pods};

/// Work threads: the agent mostly waits.
const THREADS: usize = 2;
/// Threads for calls that block (shims, files): 30 Pods may start at once.
const BLOCKING_THREADS: usize = 48;
/// An idle one ends after this, and gives its stack back.
const THREAD_IDLE: Duration = Duration::from_secs(2);
/// Enough for JSON of the largest object, in debug builds, too.
const STACK_BYTES: usize = 2 << 20;

/// Makes this node's Pods as the control plane wants them, and reports them.
#[derive(Parser)]
#[command(name = "trellis-node-agent", version)]
struct Arguments {
    /// Where node.json and pki/ lie.
    #[arg(long, env = "TRELLIS_CONFIG_DIR", default_value = "/etc/trellis")]
    config_dir: PathBuf,
    /// Where images, logs and writable layers are kept.
    #[arg(long, default_value = "/var/lib/trellis/node-agent")]
    data_dir: PathBuf,
    /// Where sockets lie.
    #[arg(long, env = "TRELLIS_RUN_DIR", default_value = "/run/trellis")]
    run_dir: PathBuf,
    /// The per-Pod program; by default the trellis-shim beside this program.
    #[arg(long)]
    shim: Option<PathBuf>,
    /// Below which cgroup the Pods' cgroups are made: "own" (the agent's; of no use with cgroup v2,
    /// where a group that holds processes can hold no groups with limits), "/" or a path.
    #[arg(long, default_value = "own")]
    cgroup_root: String,
    /// A registry that is spoken to over plain HTTP (HOST[:PORT]); may be given several times.
    #[arg(long = "insecure-registry", value_name = "HOST")]
    insecure_registries: Vec<String>,
    /// A DNS server of the cluster for the Pods' resolv.conf; may be given several times.
    #[arg(long = "cluster-dns", value_name = "IP")]
    cluster_dns: Vec<String>,
    /// From this share of the file system on, unused images are removed (percent).
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(1..=100))]
    image_gc_high: u8,
    /// Until this share is reached (percent).
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low: u8,
    /// An image that came or was used within this time stays (seconds).
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    image_min_age: u64,
    /// An image unused for this long goes, whatever room there is (seconds; 0: never).
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    image_max_age: u64,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// End all Pods of this machine; the agent must not run, or it starts them again
    EndPods {
        /// How long containers may take after SIGTERM before they are killed
        #[arg(long, default_value_t = 20)]
        grace_seconds: u64,
        /// Also remove their cgroups, mounts and volumes
        #[arg(long)]
        remove: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    start_log(arguments.log_format);
    if let Some(Command::EndPods { grace_seconds, remove }) = arguments.command {
        let ended = end_pods(&Ending {
            run_dir: arguments.run_dir,
            data_dir: arguments.data_dir,
            cgroup_root: arguments.cgroup_root,
            grace: std::time::Duration::from_secs(grace_seconds),
            remove,
        })?;
        println!("{} Pods ended, {} of their containers by force", ended.pods, ended.killed);
        return Ok(());
    }
    trellis_proto::tls::install_crypto();
    let shim = match arguments.shim {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("trellis-shim"),
    };
    let settings = Settings {
        config_dir: arguments.config_dir,
        data_dir: arguments.data_dir,
        run_dir: arguments.run_dir,
        shim,
        cgroup_root: arguments.cgroup_root,
        insecure_registries: arguments.insecure_registries,
        cluster_dns: arguments.cluster_dns,
        image_limits: Limits {
            high_percent: arguments.image_gc_high,
            low_percent: arguments.image_gc_low.min(arguments.image_gc_high),
            min_age: Duration::from_secs(arguments.image_min_age),
            max_age: Some(arguments.image_max_age).filter(|s| *s > 0).map(Duration::from_secs),
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_IDLE)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        run(settings, stop).await
    });
    // Steps under way are not waited for: the next start finds what they did.
    runtime.shutdown_background();
    done
}

fn start_log(format: LogFormat) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
}
