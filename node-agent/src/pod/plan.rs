//! What the machine needs to know of a Pod's spec, and nothing else of it.
use k8s_openapi::api::core::v1::{Container, Pod};
use std::time::Duration;

/// Kubernetes' default for `spec.terminationGracePeriodSeconds`.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever ended is started again.
    Always,
    /// Only what failed is started again.
    OnFailure,
    /// Nothing is started again.
    Never,
}

/// What part a container plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, runs beside the others.
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

/// A container as the machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Its name, unique in the Pod.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// The image reference as written in the spec.
    pub image: String,
    /// Has a startup probe.
    pub startup_probe: bool,
    /// Has a readiness probe.
    pub readiness_probe: bool,
    /// Has a liveness probe.
    pub liveness_probe: bool,
    /// Has a preStop hook.
    pub pre_stop: bool,
}

/// A Pod as the machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    /// metadata.uid
    pub uid: String,
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// What happens to containers that end.
    pub restart: RestartPolicy,
    /// Uses the node's own network: nothing to attach.
    pub host_network: bool,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// `spec.activeDeadlineSeconds`.
    pub active_deadline: Option<Duration>,
    /// Init containers in order, then the others.
    pub containers: Vec<ContainerPlan>,
}

impl PodPlan {
    /// Reads the plan out of an object.
    pub fn from_pod(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let mut containers = Vec::new();
        for c in spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default() {
            let role = match c.restart_policy.as_deref() {
                Some("Always") => Role::Sidecar,
                _ => Role::Init,
            };
            containers.push(container(c, role));
        }
        for c in spec.map(|s| s.containers.as_slice()).unwrap_or_default() {
            containers.push(container(c, Role::Main));
        }
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            restart: match spec.and_then(|s| s.restart_policy.as_deref()) {
                Some("Never") => RestartPolicy::Never,
                Some("OnFailure") => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            grace: spec.and_then(|s| s.termination_grace_period_seconds).map_or(DEFAULT_GRACE, seconds),
            active_deadline: spec.and_then(|s| s.active_deadline_seconds).map(seconds),
            containers,
        }
    }
}

/// Whole seconds of an API field; negative ones count as none.
pub fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

fn container(c: &Container, role: Role) -> ContainerPlan {
    // Probes of ordinary init containers are refused by validation; ignoring them keeps the
    // machine's rule simple: only what runs beside the others is probed.
    let probed = role != Role::Init;
    ContainerPlan {
        name: c.name.clone(),
        role,
        image: c.image.clone().unwrap_or_default(),
        startup_probe: probed && c.startup_probe.is_some(),
        readiness_probe: probed && c.readiness_probe.is_some(),
        liveness_probe: probed && c.liveness_probe.is_some(),
        pre_stop: c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()),
    }
}
