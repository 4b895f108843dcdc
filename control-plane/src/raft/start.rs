//! Starting a member: open its folder, run raft, serve, keep house.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::config::Tuning;
use super::consensus::{Consensus, Inner, RaftHandle};
use super::disk::Disk;
use super::log::LogStore;
use super::machine::Machine;
use super::network::{Dialer, Network, Peers};
use super::server::PeerServices;
use super::snapshots::Snapshots;
use super::types::{LeaderHooks, Leadership};
use super::{leader, proposer, reads, upkeep};
use crate::store::Store;

/// What a member is started with.
pub struct Options {
    /// This member's id.
    pub id: u64,
    /// For openraft's messages.
    pub cluster_name: String,
    /// Folder of log and snapshots; nobody else may use it.
    pub data_dir: PathBuf,
    /// The disk; [`RealDisk`](super::disk::RealDisk) outside tests.
    pub disk: Arc<dyn Disk>,
    /// Makes connections to other members.
    pub dialer: Arc<dyn Dialer>,
    /// What only the leader's memory knows.
    pub hooks: Arc<dyn LeaderHooks>,
    /// Timings and sizes.
    pub tuning: Tuning,
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data cannot be read.
    #[error("member {id} cannot open its data in {}: {source}", dir.display())]
    Data {
        /// The member.
        id: u64,
        /// Its folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The timings make no sense.
    #[error("the raft settings are refused: {0}")]
    Config(#[from] openraft::ConfigError),
    /// Raft refuses its stored state.
    #[error("raft does not start: {0}")]
    Raft(String),
}

/// What a member's folder holds.
struct Opened {
    lock: Box<dyn Send + Sync>,
    log: LogStore,
    snapshots: Arc<Snapshots>,
}

async fn open(options: &Options) -> Result<Opened, StartError> {
    let (disk, tuning, dir) = (options.disk.clone(), options.tuning.clone(), options.data_dir.clone());
    let open = move || {
        disk.create_dir(&dir)?;
        Ok(Opened {
            lock: disk.lock(&dir)?,
            log: LogStore::open(disk.clone(), &dir.join("log"), &tuning)?,
            snapshots: Snapshots::open(disk, &dir.join("snapshots"))?,
        })
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let opened = opened.map_err(io::Error::other).and_then(|o| o);
    opened.map_err(|source| StartError::Data { id: options.id, dir: options.data_dir.clone(), source })
}

/// Starts a member from what its folder holds. With an empty folder it waits to be added to a
/// cluster, or for [`Consensus::bootstrap`]. The services are to be served on its peer address.
pub async fn start(options: Options, store: Store) -> Result<(Consensus, PeerServices), StartError> {
    let Opened { lock, log, snapshots } = open(&options).await?;
    let blank = log.is_blank();
    let machine = Machine::new(store.clone(), snapshots.clone());
    let applied = machine.applied();
    let peers = Peers::new(options.dialer);
    let network = Network { peers: peers.clone() };
    let config = options.tuning.raft_config(&options.cluster_name)?;
    let refused = |e: &dyn std::fmt::Display| StartError::Raft(e.to_string());
    let raft = RaftHandle::new(options.id, config, network, log.clone(), machine).await.map_err(|e| refused(&e))?;
    let (tell_leadership, leadership) = watch::channel(Leadership::default());
    let following = leader::follow(raft.clone(), options.id, applied.clone(), tell_leadership);
    let inner = Arc::new(Inner::new(
        options.id,
        store.clone(),
        raft.clone(),
        (peers, options.hooks, options.tuning.clone()),
        (leadership, applied),
        lock,
    ));
    let stop = inner.stopped.clone();
    let (proposals, proposed) = mpsc::channel(proposer::QUEUE);
    let (barriers, asked) = mpsc::channel(reads::QUEUE);
    run(&stop, Box::pin(proposer::run(inner.clone(), proposed)));
    run(&stop, Box::pin(reads::run(inner.clone(), asked)));
    run(&stop, Box::pin(leader::hear_news(inner.clone())));
    let upkeep = upkeep::run(raft.clone(), log, store, options.tuning, stop.clone());
    run(&stop, Box::pin(upkeep));
    tokio::spawn(async move {
        following.await;
        // Raft ended by itself: its disk failed. Nothing here can go on.
        stop.cancel();
    });
    if raft.voter_ids().eq([options.id]) {
        // Nobody else to wait for.
        raft.trigger().elect(false).await.map_err(|e| refused(&e))?;
    }
    let services = PeerServices::new(raft, snapshots, inner.clone(), blank);
    Ok((Consensus::new(inner, proposals, barriers), services))
}

fn run(stop: &CancellationToken, task: BoxFuture<'static, ()>) {
    let stop = stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(task).await });
}
