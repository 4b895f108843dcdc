//! The engine: one thread that owns all state and all of the kernel's doors.
//!
//! ```text
//!   API watches ─┐
//!   gossip view ─┤                 ┌── ipam (on disk before an answer, beside the kernel's work)
//!   attach.sock ─┼─ Event ─► work ─┼── policy ─► links ─► routes      (plan, execute)
//!   handoff.sock ┤                 └── answers, applied revision
//!   kernel events, ticks
//! ```
//! Events only change what is known and mark it; `work` then recomputes everything from state.
//! Policy is committed before a Pod's link exists, and an Attach is answered when all is done.
//! Nothing is planned before every kind has been listed once, now or before the last restart; and
//! until every kind has been listed now, the engine is cautious: the file may be older than the
//! kernel, so that policy is only added to it.

mod apply;
mod event;
mod pods;
mod policies;
mod unrouted;

pub use event::{AttachedPod, Attachment, Config, EngineError, Event, Outputs, Status};
pub use unrouted::Unrouted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use trellis_gossip::View;

use crate::cluster::{Cluster, Incoming, Kind, ObjectError};
use crate::ipam::Ipam;
use crate::kernel::KernelError;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::nft::Nft;
use crate::kernel::rtnl::Rtnl;
use crate::links::DesiredLinks;
use crate::policy::ActualTable;
use crate::routes::DesiredRoutes;
use crate::store::{Saving, Store, StoreError};

/// Events waiting for the engine.
pub const QUEUE: usize = 1024;
/// Events taken up before the work they cause is done.
const BATCH: usize = 256;
/// Everything is compared with the kernel this often, inside Pods as well: drift is repaired
/// within 5 s even where no event told of it.
const RESYNC_PERIOD: Duration = Duration::from_secs(3);
/// [`Event::Tick`] comes this often.
pub const TICK_PERIOD: Duration = Duration::from_secs(1);
/// The cluster's state is written at most this often.
const SAVE_PERIOD: Duration = Duration::from_secs(2);
/// … and at most this often while Pods are attached: the node's power may fail the next moment, and
/// they are to come back with a netd that knows them, whether the control plane answers then or not.
/// What is not due yet is written with the next event, a tick later at most.
const SAVE_PERIOD_ATTACHED: Duration = Duration::from_millis(200);
/// The control plane counts as answering for this long after its last answer.
const API_FRESH: Duration = Duration::from_secs(3);
/// An Attach waits this long for the API to show the Pod, or the node its pod CIDR. It is looked at
/// with the next tick, a second later at most, and must be answered before the agent gives up.
const ATTACH_PATIENCE: Duration = trellis_proto::patience::ATTACH_LIMIT.saturating_sub(Duration::from_millis(1500));

/// A Pod's side, as it was handed over.
struct Held {
    /// Keeps the namespace alive until the Pod is detached.
    _netns: OwnedFd,
    rtnl: Rtnl,
}

struct PendingAttach {
    uid: String,
    since: Instant,
    reply: oneshot::Sender<Result<Attachment, EngineError>>,
}

/// See the module.
pub struct Engine {
    config: Config,
    store: Store,
    started: Instant,
    cluster: Cluster,
    ipam: Option<Ipam>,
    /// The allocator was begun anew, and not everything has been listed since.
    ipam_anew: bool,
    view: Arc<View>,
    min_applied: u64,
    api_heard: Option<Instant>,
    /// Kinds that were listed since the start.
    listed: BTreeSet<Kind>,
    // The kernel's doors.
    netns: OwnedFd,
    rtnl: Rtnl,
    nft: Nft,
    conntrack: Conntrack,
    held: BTreeMap<String, Held>,
    // What was wanted and done the last time, and what is to do.
    table: Option<ActualTable>,
    policies: Option<policies::Compiled>,
    compiled: Option<policies::Cached>,
    links: Option<DesiredLinks>,
    routes: Option<DesiredRoutes>,
    /// Connections from before the start have been judged by what is known now.
    judged: bool,
    /// Pod CIDRs of nodes that are not on our network.
    off_link: BTreeMap<Ipv4Network, Ipv4Addr>,
    /// Detached Pods' interfaces and addresses, until they are gone from the kernel.
    gone: BTreeMap<String, Ipv4Addr>,
    mtu: u32,
    /// Pods that could not be connected the last time, and why.
    failed: BTreeMap<String, Arc<KernelError>>,
    pending: Vec<PendingAttach>,
    detached: Vec<oneshot::Sender<Result<(), EngineError>>>,
    dirty: bool,
    look: bool,
    inspect: BTreeSet<String>,
    last_resync: Instant,
    /// What of the cluster is in the file, or on its way there.
    saved_changes: u64,
    unsaved: bool,
    /// A Pod has got its address since the last save.
    attached: bool,
    last_save: Instant,
    /// The cluster's state on its way to the disk.
    saving: Option<Saving>,
    /// The allocator knows something that its file may learn later.
    ipam_unsaved: bool,
    stopping: bool,
    applied: u64,
    repairs: u64,
    pod_cidr_out: watch::Sender<Option<Ipv4Network>>,
    nodes_out: watch::Sender<Vec<IpAddr>>,
    applied_out: watch::Sender<u64>,
    unrouted_out: watch::Sender<Unrouted>,
}

/// The engine cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A kernel door does not open.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The state on disk cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The own namespace cannot be opened.
    #[error("/proc/thread-self/ns/net: {0}")]
    Netns(std::io::Error),
}

impl Engine {
    /// Opens the kernel's doors in the calling thread's network namespace, and takes up where the
    /// last instance stopped.
    pub fn start(config: Config, store: Store) -> Result<(Self, Outputs), StartError> {
        let netns = std::fs::File::open("/proc/thread-self/ns/net").map_err(StartError::Netns)?;
        let mut cluster = store.load_cluster()?.unwrap_or_default();
        for error in cluster.restored() {
            tracing::error!(%error, "stored object not understood");
        }
        let mut ipam = store.load_ipam()?;
        if let Some(ipam) = &mut ipam {
            ipam.restarted(Duration::ZERO);
        }
        let (pod_cidr_out, pod_cidr) = watch::channel(ipam.as_ref().map(Ipam::cidr));
        let (nodes_out, nodes) = watch::channel(Vec::new());
        let (applied_out, applied) = watch::channel(0);
        let (unrouted_out, unrouted) = watch::channel(Unrouted::default());
        let now = Instant::now();
        let engine = Self {
            config,
            store,
            started: now,
            cluster,
            ipam,
            ipam_anew: false,
            view: Arc::default(),
            min_applied: 0,
            api_heard: None,
            listed: BTreeSet::new(),
            netns: netns.into(),
            rtnl: Rtnl::open()?,
            nft: Nft::open()?,
            conntrack: Conntrack::open()?,
            held: BTreeMap::new(),
            table: None,
            policies: None,
            compiled: None,
            judged: false,
            off_link: BTreeMap::new(),
            links: None,
            routes: None,
            gone: BTreeMap::new(),
            mtu: 0,
            failed: BTreeMap::new(),
            pending: Vec::new(),
            detached: Vec::new(),
            dirty: true,
            look: true,
            inspect: BTreeSet::new(),
            last_resync: now,
            saved_changes: 0,
            unsaved: false,
            attached: false,
            last_save: now,
            saving: None,
            ipam_unsaved: false,
            stopping: false,
            applied: 0,
            repairs: 0,
            pod_cidr_out,
            nodes_out,
            applied_out,
            unrouted_out,
        };
        Ok((engine, Outputs { pod_cidr, nodes, applied, unrouted }))
    }

    /// Works until [`Event::Stop`], and keeps what is known then; or, like one that is killed,
    /// until nobody can send events any more.
    pub fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.remove_half_made();
        self.work();
        while !self.stopping
            && let Some(event) = events.blocking_recv()
        {
            self.on_event(event);
            for _ in 1..BATCH {
                match events.try_recv() {
                    Ok(event) => self.on_event(event),
                    Err(_) => break,
                }
            }
            self.work();
            // Behind the work: the file is not to know what the kernel does not.
            let period = if self.attached { SAVE_PERIOD_ATTACHED } else { SAVE_PERIOD };
            if self.unsaved && self.last_save.elapsed() >= period {
                self.save_cluster();
            }
        }
        if let Some(saving) = self.saving.take() {
            self.saved(saving);
        }
        if self.stopping {
            self.save_last();
        }
    }

    fn save_last(&mut self) {
        if let Err(error) = self.store.save_cluster(&self.cluster) {
            tracing::error!(%error, "cannot store what is known of the cluster");
        }
        if self.ipam_unsaved
            && let Err(error) = self.save_allocations()
        {
            tracing::error!(%error, "cannot store the allocations");
        }
    }

    /// Is what is known, in part, from before the start?
    fn is_cautious(&self) -> bool {
        self.listed.len() < Kind::ALL.len()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn api_is_fresh(&self) -> bool {
        self.api_heard.is_some_and(|heard| heard.elapsed() < API_FRESH)
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Listed { revision, objects } => {
                for (kind, objects) in objects {
                    self.on_list(kind, revision, &objects);
                }
            }
            Event::Changed { kind, revision, object } => {
                let done = self.cluster.upsert(kind, &object);
                self.cluster_moved(kind, revision, done);
            }
            Event::Removed { kind, revision, object } => {
                let done = self.cluster.remove(kind, &object);
                self.cluster_moved(kind, revision, done);
            }
            Event::Bookmark { revision } => {
                self.cluster.seen(revision);
                self.dirty |= self.cluster.revision() > self.applied;
            }
            Event::MinApplied(revision) => {
                self.min_applied = revision;
                self.dirty |= !self.api_is_fresh();
                self.api_heard = Some(Instant::now());
            }
            Event::View(view) => {
                self.dirty |= *view != *self.view;
                self.view = view;
            }
            Event::Handoff { uid, netns, socket, reply } => {
                self.held.insert(uid.clone(), Held { _netns: netns, rtnl: Rtnl::from_fd(socket) });
                // Looked at with the Attach that follows, or at the next resync.
                self.inspect.insert(uid);
                let _ = reply.send(());
            }
            Event::Attach { uid, reply } => self.pending.push(PendingAttach { uid, since: Instant::now(), reply }),
            Event::Detach { uid, reply } => self.on_detach(&uid, reply),
            Event::Status { reply } => drop(reply.send(self.status())),
            Event::KernelChanged => self.look = true,
            Event::Tick => self.on_tick(),
            Event::Stop => self.stopping = true,
        }
    }

    fn on_tick(&mut self) {
        if self.last_resync.elapsed() >= RESYNC_PERIOD {
            self.last_resync = Instant::now();
            self.look = true;
            self.inspect.extend(self.held.keys().cloned());
        }
        if !self.failed.is_empty() || self.routes.is_none() {
            self.look = true;
            self.inspect.extend(self.failed.keys().cloned());
        }
        // Staleness of the API changes whom gossip may overrule.
        if self.api_heard.is_some() && !self.api_is_fresh() {
            self.api_heard = None;
            self.dirty = true;
        }
        if std::mem::take(&mut self.ipam_unsaved)
            && let Err(error) = self.save_allocations()
        {
            tracing::error!(%error, "cannot store the allocations");
            self.ipam_unsaved = true;
        }
    }

    fn on_list(&mut self, kind: Kind, revision: u64, objects: &[Incoming]) {
        for error in self.cluster.reset(kind, revision, objects) {
            tracing::error!(%error, "object not understood");
        }
        if self.listed.insert(kind) && !self.is_cautious() {
            // Caution is over: what it kept is looked for, whatever changed.
            self.look = true;
        }
        self.cluster_changed(kind);
    }

    fn cluster_moved(&mut self, kind: Kind, revision: u64, done: Result<(), ObjectError>) {
        if let Err(error) = done {
            tracing::error!(%error, "object not understood");
        }
        self.cluster.seen(revision);
        self.cluster_changed(kind);
    }

    fn cluster_changed(&mut self, kind: Kind) {
        self.dirty = true;
        self.unsaved |= self.cluster.changes() != self.saved_changes;
        if kind != Kind::Node {
            return;
        }
        let addresses: Vec<IpAddr> =
            self.cluster.nodes.values().filter_map(|node| node.address).map(IpAddr::V4).collect();
        self.nodes_out.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
    }

    /// Beside, for an Attach must not wait for it.
    fn save_cluster(&mut self) {
        match self.saving.take() {
            Some(saving) if !saving.is_finished() => {
                self.saving = Some(saving);
                return;
            }
            Some(saving) => self.saved(saving),
            None => {}
        }
        self.last_save = Instant::now();
        self.saved_changes = self.cluster.changes();
        match self.store.save_cluster_beside(&self.cluster) {
            Ok(saving) => (self.saving, self.unsaved, self.attached) = (Some(saving), false, false),
            Err(error) => tracing::error!(%error, "cannot store what is known of the cluster"),
        }
    }

    fn saved(&mut self, saving: Saving) {
        if let Err(error) = finish(saving) {
            tracing::error!(%error, "cannot store what is known of the cluster");
            (self.unsaved, self.attached) = (true, true);
        }
    }

    fn status(&self) -> Status {
        let in_use = self.ipam.iter().flat_map(Ipam::in_use);
        Status {
            attached: in_use
                .map(|(uid, address)| AttachedPod {
                    uid: uid.into(),
                    address,
                    interface: crate::links::host_interface(uid),
                    netns_held: self.held.contains_key(uid),
                })
                .collect(),
            pod_cidr: self.ipam.as_ref().map(Ipam::cidr),
            applied_revision: self.applied,
            repairs: self.repairs,
        }
    }
}

/// Waits for what is written beside. Writing panics nowhere.
fn finish(saving: Saving) -> Result<(), StoreError> {
    saving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gossip's addresses of these machines.
pub fn gossip_seeds(nodes: &[IpAddr]) -> Vec<SocketAddr> {
    nodes.iter().map(|ip| SocketAddr::new(*ip, trellis_proto::ports::GOSSIP)).collect()
}
