//! One member, started and stopped: this wires the rooms together and decides nothing else.
//!
//! ```text
//! files → id → Raft (2380) → [bootstrap, seed] → API (6443, unix socket) → READY
//!       → beside it: controllers, gossip, renewal, node.json, and asking to be a member
//! ```

mod identity;
mod servers;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trellis_proto::file::FileError;
use trellis_proto::service::{ALIVE, Watchdog, notify};
use trellis_proto::tls::{ClientTls, TlsError};

use crate::api::cluster::{ClusterConfig, seed};
use crate::api::ops::{Ops, Sealer};
use crate::config::{ConfigError, Settings};
use crate::controllers::{self, AdmittedWriter, Controllers, PodRange};
use crate::nodes::{NodeRegistry, SharedGossip, presence, subscriber};
use crate::raft::disk::RealDisk;
use crate::raft::{self, Consensus, Member, Options, StartError, TlsDialer};
use crate::store::Store;

/// Leadership moves in milliseconds; who cannot take it within this time will win an election.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);
/// A watch never ends by itself: calls get this long to end when the member stops.
const END_WITHIN: Duration = Duration::from_millis(500);
/// Between two tries to seed a cluster.
const SEED_PAUSE: Duration = Duration::from_millis(200);
/// How often a member looks whether the cluster is seeded.
const SEEDED_LOOK: Duration = Duration::from_millis(20);

/// Why a member does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its files.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Raft.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its own record of its id.
    #[error(transparent)]
    Record(#[from] FileError),
    /// A port or socket.
    #[error("cannot listen on {at}: {source}")]
    Listen {
        /// Where.
        at: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An address in node.json.
    #[error("node.json: {0:?} is not IP:PORT")]
    Address(String),
    /// Reflection's descriptors.
    #[error("gRPC reflection: {0}")]
    Reflection(String),
    /// Told to stop before it ran.
    #[error("stopped before it was ready")]
    Stopped,
}

/// A running member.
#[derive(Debug)]
pub struct Running {
    /// Raft.
    pub consensus: Consensus,
    /// The operations.
    pub ops: Ops,
    tasks: JoinSet<()>,
    servers: CancellationToken,
}

/// Starts a member and answers once it serves; `stop` ends its attempts to do so.
///
/// # Errors
/// [`RunError`].
pub async fn start(settings: Settings, stop: CancellationToken) -> Result<Running, RunError> {
    let me = settings.me()?.clone();
    let starting = identity::resolve(&settings);
    let identity = tokio::select! {
        identity = starting => identity?,
        () = stop.cancelled() => return Err(RunError::Stopped),
    };
    let (registry, gossip) = (NodeRegistry::new(), SharedGossip::new());
    let options = Options {
        id: identity.id,
        cluster_name: settings.node.cluster_name.clone(),
        data_dir: settings.data_dir.join("raft"),
        disk: Arc::new(RealDisk),
        dialer: Arc::new(TlsDialer(ClientTls::to_member(&settings.credentials)?)),
        hooks: Arc::new(registry.clone()),
        tuning: settings.tuning.clone(),
    };
    let (consensus, peers) = raft::start(options, Store::default()).await?;
    let ops = Ops::new(Arc::new(consensus.clone()), Sealer::new(settings.kek.clone()));
    let servers = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let port = |text: &str| {
        let parsed = text.parse::<SocketAddr>().map_err(|_| RunError::Address(text.to_owned()));
        parsed.map(|a| SocketAddr::new(settings.listen, a.port()))
    };
    let peer_at = port(&me.peer_address)?;
    servers::serve_peers(&settings, peer_at, peers, &servers, &mut tasks).await?;
    // Seeded, it has no bootstrap.json any more: an empty log is then a lost one.
    if identity.bootstrap && settings.bootstrap.is_some() && !consensus.is_initialized().await {
        let member = Member {
            id: identity.id,
            name: me.name.clone(),
            api_address: me.api_address.clone(),
            peer_address: me.peer_address.clone(),
        };
        if let Err(error) = consensus.bootstrap(member).await {
            tracing::warn!(%error, "making the cluster");
        }
    }
    let api_at = port(&me.api_address)?;
    servers::serve_api(&settings, api_at, &consensus, &ops, &servers, &mut tasks).await?;
    beside(&settings, &consensus, &ops, registry, gossip, &servers, &mut tasks);
    tracing::info!(id = identity.id, api = %api_at, peers = %peer_at, "serving");
    Ok(Running { consensus, ops, tasks, servers })
}

/// What runs beside the servers.
fn beside(
    settings: &Settings,
    consensus: &Consensus,
    ops: &Ops,
    registry: NodeRegistry,
    gossip: SharedGossip,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let controllers = Controllers {
        store: ops.store().clone(),
        writer: Arc::new(AdmittedWriter::new(Arc::new(consensus.clone()), ops.admission().clone())),
        leadership: consensus.leadership(),
        registry,
        gossip: gossip.clone(),
    };
    let ended = stop.clone();
    tasks.spawn(async move {
        // They read the cluster's pod CIDRs when they begin to lead.
        let seeded = until_seeded(controllers.store.clone());
        if ended.clone().run_until_cancelled(seeded).await.is_some() {
            controllers::run(controllers, controllers_config, ended).await;
        }
    });
    tasks.spawn(subscriber::run(settings.run_dir.clone(), gossip.clone(), stop.clone()));
    tasks.spawn(presence::run(consensus.clone(), gossip, stop.clone()));
    let (s, c, o) = (settings.clone(), consensus.clone(), ops.clone());
    let all = stop.clone();
    tasks.spawn(async move {
        let seeding = seed_when_leading(&s, &c, &o);
        let renewing = upkeep::renew_certificate(&s, &o);
        let telling = upkeep::keep_node_json(&s, &c);
        let asking = upkeep::stay_a_member(&s, &c);
        tokio::select! {
            _ = async { tokio::join!(seeding, renewing, telling, asking) } => {}
            () = all.cancelled() => {}
        }
    });
}

/// Waits for the cluster's own facts: seconds on the first leader, moments on a member that joins.
async fn until_seeded(store: Store) {
    while ClusterConfig::read(&store).is_none() {
        tokio::time::sleep(SEEDED_LOOK).await;
    }
}

fn controllers_config(store: &Store) -> controllers::Config {
    let cluster = ClusterConfig::read(store);
    let mut config = controllers::Config::default();
    for text in cluster.iter().flat_map(|c| &c.pod_cidrs) {
        let prefix = cluster.as_ref().map_or(0, |c| c.node_prefix);
        let range = text
            .parse::<IpNetwork>()
            .map_err(|e| e.to_string())
            .and_then(|cidr| PodRange::new(cidr, prefix).map_err(|e| e.to_string()));
        match range {
            Ok(range) => config.pod_ranges.push(range),
            Err(error) => tracing::error!(cidr = text, error, "a pod CIDR is left out"),
        }
    }
    config
}

/// The first leader writes what `cluster init` left, once.
async fn seed_when_leading(settings: &Settings, consensus: &Consensus, ops: &Ops) {
    let Some(bootstrap) = &settings.bootstrap else { return };
    let mut leadership = consensus.leadership();
    loop {
        if leadership.wait_for(|l| l.is_leader).await.is_err() {
            return;
        }
        match seed(ops, bootstrap, &settings.node).await {
            Ok(true) => tracing::info!(cluster = bootstrap.cluster_name, "seeded the cluster"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "seeding the cluster");
                tokio::time::sleep(SEED_PAUSE).await;
                continue;
            }
        }
        // Once this member has lost its log, it must not make a second cluster of this name.
        let file = settings.config_dir.join("bootstrap.json");
        let done = settings.config_dir.join("bootstrap.json.done");
        if let Err(error) = std::fs::rename(&file, &done)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "the cluster is seeded: remove this file");
        }
        return;
    }
}

impl Running {
    /// Ends when Raft has stopped by itself: its disk failed, the process should end.
    pub async fn failed(&self) {
        self.consensus.stopped().await;
    }

    /// Tells the service manager's watchdog of life, as often as it asks and Raft's own loop
    /// answers. Never ends.
    pub async fn tell_alive(&self) {
        let mut watchdog = Watchdog::from_env();
        loop {
            watchdog.due().await;
            // A question that goes through the loop which appends, votes and applies.
            self.consensus.is_initialized().await;
            notify(ALIVE);
        }
    }

    /// Hands leadership over and stops.
    pub async fn shutdown(mut self) {
        if let Some(to) = successor(&self.consensus) {
            let handing = self.consensus.transfer_leader(to);
            match tokio::time::timeout(HAND_OVER_WITHIN, handing).await {
                Ok(Ok(())) => tracing::info!(to, "handed leadership over"),
                Ok(Err(error)) => tracing::warn!(to, %error, "leadership was not handed over"),
                Err(_) => tracing::warn!(to, "leadership was not handed over in time"),
            }
        }
        self.servers.cancel();
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_WITHIN, ending).await.is_err() {
            self.tasks.shutdown().await;
        }
        self.consensus.shutdown().await;
    }
}

/// Whom a leader hands over to before it stops.
fn successor(consensus: &Consensus) -> Option<u64> {
    if !consensus.leadership().borrow().is_leader {
        return None;
    }
    let members = consensus.members();
    let others = members.into_iter().filter(|m| m.voter && !m.leader);
    let alive = others.filter(|m| m.silent_millis.is_none_or(|s| s < 1_000));
    alive.max_by_key(|m| m.matched_index).map(|m| m.member.id)
}
