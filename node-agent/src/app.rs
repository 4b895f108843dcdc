//! Putting the agent together, in the order in which its needs appear: configuration,
//! certificate, images; then everything runs at once, netd and control plane come when they come.
use crate::{
    api::{
        self,
        events::Recorder,
        kept::Kept,
        node::{Machine, NodeReporter},
        refs::RefCache,
    },
    image,
    pod::{
        manager,
        registry::Registry,
        steps::{Context, STARTS_AT_ONCE},
        worker::Clock,
    },
    runtime::{netd::Netd, program::ShimProgram, warmth::Warmth},
    server,
};
use std::{
    collections::BTreeSet,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Semaphore, watch};
use trellis_image::{ImageStore, Options, gc::Limits};
use trellis_proto::{
    client::Connection,
    node_config::NodeConfig,
    service::{READY, STOPPING, notify},
    tls::{ClientTls, Credentials},
};

/// How often something that is missing is looked for …
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// … and how often that is logged.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `/etc/trellis`
    pub config_dir: PathBuf,
    /// `/var/lib/trellis/node-agent`
    pub data_dir: PathBuf,
    /// `/run/trellis`
    pub run_dir: PathBuf,
    /// The shim's program.
    pub shim: PathBuf,
    /// "own", "/" or a path below the cgroup root.
    pub cgroup_root: String,
    /// Registries spoken to over plain HTTP, besides those of node.json.
    pub insecure_registries: Vec<String>,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<String>,
    /// When unused images go.
    pub image_limits: Limits,
}

/// Runs the agent until `stop` is done. Pods run on after it.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(stop);
    let prepared = tokio::select! {
        () = &mut stop => return Ok(()),
        prepared = prepare(&settings) => prepared?,
    };
    let (config, credentials) = prepared;
    let ctx = context(&settings, &config, &credentials)?;
    server::start(ctx.clone(), &config, &credentials).await;
    let (network_tx, network) = watch::channel(Err("netd has not answered yet".to_owned()));
    let reporter = NodeReporter {
        conn: ctx.conn.clone(),
        config: config.clone(),
        machine: ctx.machine.clone(),
        data_dir: settings.data_dir.clone(),
        network,
    };
    tokio::spawn(reporter.run());
    api::lease::start(ctx.conn.clone(), config.node_name.clone());
    let pki = settings.config_dir.join("pki");
    api::renew::start(ctx.conn.clone(), credentials.clone(), pki, config.node_name.clone());
    let (config_dir, run_dir) = (settings.config_dir.clone(), settings.run_dir.clone());
    tokio::spawn(api::members::follow(config_dir, run_dir, config.clone(), ctx.conn.clone()));
    tokio::spawn(image::gc::run(ctx.clone(), settings.image_limits));
    tokio::spawn(manager::run(ctx, network_tx));
    notify(READY);
    tracing::info!(node = config.node_name, version = env!("CARGO_PKG_VERSION"), "node agent runs");
    stop.await;
    notify(STOPPING);
    tracing::info!("node agent ends; its Pods run on");
    Ok(())
}

/// Waits for node.json and the certificate.
async fn prepare(settings: &Settings) -> anyhow::Result<(NodeConfig, Arc<Credentials>)> {
    std::fs::create_dir_all(&settings.run_dir).map_err(|e| anyhow::anyhow!("{}: {e}", settings.run_dir.display()))?;
    for dir in [&settings.data_dir, &settings.run_dir.join("agent")] {
        roots_alone(dir).map_err(|e| anyhow::anyhow!("{}: {e}", dir.display()))?;
    }
    let config = wait("the node's configuration", || NodeConfig::load(&settings.config_dir)).await;
    let pki = settings.config_dir.join("pki");
    let credentials = wait("the agent's certificate", || Credentials::load(&pki, "agent")).await;
    Ok((config, credentials))
}

/// Nobody but root passes through: set-uid programs lie in images and writable layers as their images
/// have them, and Secrets with the modes that Pods want. Containers reach them by mounts. A folder
/// that an earlier release made open is closed.
fn roots_alone(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

async fn wait<T, E: std::fmt::Display>(what: &str, mut load: impl FnMut() -> Result<T, E>) -> T {
    let mut said: Option<tokio::time::Instant> = None;
    loop {
        match load() {
            Ok(value) => return value,
            Err(error) if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) => {
                tracing::info!(%error, "waiting for {what}");
                said = Some(tokio::time::Instant::now());
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn context(settings: &Settings, config: &NodeConfig, credentials: &Arc<Credentials>) -> anyhow::Result<Arc<Context>> {
    let conn = Connection::new(api::members::endpoints(config, &BTreeSet::new()), ClientTls::to_member(credentials)?);
    let mut insecure = config.insecure_registries.clone();
    insecure.extend(settings.insecure_registries.clone());
    let options = Options { insecure_registries: insecure, ..Options::default() };
    let images = ImageStore::open(&settings.data_dir.join("images"), options)?;
    Ok(Arc::new(Context {
        netd: Netd::new(&settings.run_dir)?,
        images,
        refs: RefCache::new(conn.clone(), Kept::open(&settings.data_dir, &settings.config_dir)),
        recorder: Recorder::start(conn.clone(), config.node_name.clone()),
        registry: Arc::new(Registry::default()),
        node_name: config.node_name.clone(),
        host_ip: config.advertise_address.to_string(),
        machine: Machine::measure(&settings.data_dir),
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        shim_program: ShimProgram::at(settings.shim.clone()),
        cgroup_root: settings.cgroup_root.clone(),
        cluster_dns: settings.cluster_dns.clone(),
        warmth: Warmth::start(),
        starts: Semaphore::new(STARTS_AT_ONCE),
        clock: Clock::start(),
        conn,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_that_others_could_pass_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (new, old) = (dir.path().join("a/new"), dir.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
        for path in [&new, &old] {
            roots_alone(path).unwrap();
            assert_eq!(mode(path), 0o700, "{}", path.display());
        }
    }
}
