//! The steps of a Pod's life that wait for something: each a function from a snapshot of the Pod
//! to an event for its machine. Each has a deadline of its own, or leans on one below it.
pub mod container;
pub mod probe;
pub mod sandbox;
pub mod volumes;

use super::{
    event::{Event, Note, Now},
    persist::PodDir,
    registry::Registry,
    worker::{Clock, Mailbox},
};
use crate::{
    api::{self, events::Recorder, node::Machine, refs::RefCache},
    runtime::{
        netd::Netd,
        program::ShimProgram,
        shim::Shim,
        spec::env::{self, Facts, RefKind},
        warmth::Warmth,
    },
    volume,
};
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use trellis_image::ImageStore;
use trellis_proto::client::Connection;

/// Sandboxes and containers made at once: beyond this they only take CPU from each other.
pub const STARTS_AT_ONCE: usize = 8;

/// What all Pods of a node share.
#[derive(Debug)]
pub struct Context {
    /// The control plane.
    pub conn: Connection,
    /// netd.
    pub netd: Netd,
    /// Images.
    pub images: ImageStore,
    /// ConfigMaps and Secrets.
    pub refs: Arc<RefCache>,
    /// Events.
    pub recorder: Recorder,
    /// For the server.
    pub registry: Arc<Registry>,
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub host_ip: String,
    /// The machine.
    pub machine: Machine,
    /// `/var/lib/trellis/node-agent`
    pub data_dir: PathBuf,
    /// `/run/trellis`
    pub run_dir: PathBuf,
    /// The shim's program.
    pub shim_program: ShimProgram,
    /// What the Pods' cgroups are below: "own", "/" or a path.
    pub cgroup_root: String,
    /// The cluster's DNS servers; empty while there are none.
    pub cluster_dns: Vec<String>,
    /// Keeps cgroups ready for what is started.
    pub warmth: Warmth,
    /// Bounds what is started at once.
    pub starts: Semaphore,
    /// Time.
    pub clock: Clock,
}

impl Context {
    /// Where a Pod's shim has its folder.
    pub fn shim_dir(&self, uid: &str) -> PathBuf {
        self.run_dir.join("shims").join(uid)
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// A machine's deadline as an instant.
    pub fn instant(&self, at: Duration) -> Instant {
        self.clock.instant(at)
    }

    /// What env and volumes may ask about node and Pod.
    pub fn facts(&self, pod_ips: &[String]) -> Facts {
        Facts {
            node_name: self.node_name.clone(),
            host_ip: self.host_ip.clone(),
            pod_ips: pod_ips.to_vec(),
            allocatable_cpu_milli: self.machine.cpus * 1000,
            allocatable_memory_bytes: i64::try_from(self.machine.allocatable_memory_bytes()).unwrap_or(i64::MAX),
        }
    }
}

/// All ConfigMaps and Secrets that a Pod refers to: volumes, env, pull secrets.
pub fn references(pod: &Pod) -> BTreeSet<(RefKind, String)> {
    let mut all = volume::references(pod);
    if let Some(spec) = &pod.spec {
        for c in spec.init_containers.iter().flatten().chain(&spec.containers) {
            all.extend(env::references(c));
        }
        all.extend(spec.image_pull_secrets.iter().flatten().map(|r| (RefKind::Secret, r.name.clone())));
    }
    all
}

/// A Pod as it was when the step began.
#[derive(Clone, Debug)]
pub struct Step {
    /// What all share.
    pub ctx: Arc<Context>,
    /// The object.
    pub pod: Arc<Pod>,
    /// Its folder.
    pub dir: PodDir,
    /// Its shim.
    pub shim: Shim,
    /// Its addresses, once attached.
    pub addresses: Vec<String>,
    /// Its worker.
    pub tx: Mailbox,
}

impl Step {
    /// metadata.uid
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// metadata.namespace
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// spec.hostNetwork
    pub fn host_network(&self) -> bool {
        self.pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
    }

    /// The addresses its processes see: the node's on the node's network.
    pub fn pod_ips(&self) -> Vec<String> {
        if self.host_network() { vec![self.ctx.host_ip.clone()] } else { self.addresses.clone() }
    }

    /// Tells people.
    pub fn note(&self, warning: bool, reason: &'static str, message: String, container: Option<&str>) {
        let container = container.map(str::to_owned);
        self.ctx.recorder.note(&self.pod, Note { warning, reason, message, container });
    }
}

/// Takes the object out of the API.
pub async fn delete_from_api(step: Step) -> Event {
    match api::delete_pod(&step.ctx.conn, &step.pod).await {
        Ok(()) => Event::ApiDeleted,
        Err(error) => Event::TeardownFailed { message: error.to_string() },
    }
}
