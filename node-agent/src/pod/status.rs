//! The machine's state in Kubernetes' words: `status` of a Pod.
use super::{
    machine::{CONFIG_ERROR, Ended, Machine, Phase, Record, State},
    plan::Role,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
        HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

/// The scheme of container ids in status.
const ID_SCHEME: &str = "trellis://";
/// The order in which conditions are written.
const CONDITIONS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];

/// Kubernetes' times have whole seconds.
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The status of `pod` as `machine` sees it. Conditions of others (PodScheduled) are kept.
pub fn build(machine: &Machine, pod: &Pod, host_ip: &str) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let phase = machine.phase();
    let addresses: Vec<String> = if machine.plan.host_network {
        vec![host_ip.to_owned()]
    } else if machine.addresses.is_empty() && !machine.released.is_empty() {
        machine.released.clone()
    } else if machine.addresses.is_empty() && machine.is_kept() {
        // A finished Pod keeps showing the address it had.
        old.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect()
    } else {
        machine.addresses.clone()
    };
    let statuses = |wanted: fn(Role) -> bool| -> Option<Vec<ContainerStatus>> {
        let all: Vec<_> =
            machine.containers.iter().filter(|c| wanted(c.plan.role)).map(|c| container(c, machine)).collect();
        (!all.is_empty()).then_some(all)
    };
    let (reason, message) = if machine.deadline_exceeded {
        let text = "Pod was active on the node longer than the specified deadline";
        (Some("DeadlineExceeded".to_owned()), Some(text.to_owned()))
    } else {
        (None, None)
    };
    PodStatus {
        phase: Some(phase.word().to_owned()),
        conditions: Some(conditions(machine, &old, pod.metadata.generation)),
        reason,
        message,
        host_ip: Some(host_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: host_ip.to_owned() }]),
        pod_ip: addresses.first().cloned(),
        pod_ips: (!addresses.is_empty()).then(|| addresses.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: Some(old.start_time.clone().unwrap_or_else(|| time(machine.start_time))),
        init_container_statuses: statuses(|r| r != Role::Main),
        container_statuses: statuses(|r| r == Role::Main),
        qos_class: old.qos_class.clone().or_else(|| Some(qos_class(pod).to_owned())),
        observed_generation: pod.metadata.generation,
        ..old
    }
}

fn conditions(machine: &Machine, old: &PodStatus, generation: Option<i64>) -> Vec<PodCondition> {
    let mut all: Vec<PodCondition> = CONDITIONS
        .iter()
        .filter_map(|kind| machine.conditions.get(kind).map(|c| (kind, c)))
        .map(|(kind, c)| PodCondition {
            type_: (*kind).to_owned(),
            status: if c.status { "True" } else { "False" }.to_owned(),
            reason: (!c.reason.is_empty()).then(|| c.reason.clone()),
            message: (!c.message.is_empty()).then(|| c.message.clone()),
            last_transition_time: Some(time(c.since)),
            observed_generation: generation,
            ..Default::default()
        })
        .collect();
    let others = old.conditions.iter().flatten();
    all.extend(others.filter(|c| !CONDITIONS.contains(&c.type_.as_str())).cloned());
    all
}

fn container(c: &Record, machine: &Machine) -> ContainerStatus {
    let ready = match (c.plan.role, &c.state) {
        (Role::Init, State::Ended(e)) => e.exit.code == 0,
        _ => c.ready(),
    };
    let starting = || {
        if let Some(missing) = &c.config_error {
            return waiting(CONFIG_ERROR, missing);
        }
        let reason = match (c.plan.role, machine.initialized()) {
            (Role::Main, true) => "ContainerCreating",
            (Role::Main, false) | (Role::Init | Role::Sidecar, _) => "PodInitializing",
        };
        waiting(reason, "")
    };
    // Deleted or finished before it could be started again: its last run is what there is.
    let settled = machine.is_kept() || machine.is_removing();
    let (state, last) = match (&c.state, &c.last) {
        (State::Waiting { .. }, Some(e)) if settled => (terminated(e), None),
        (State::Waiting { reason, message, .. }, last) => (waiting(reason, message), last.as_ref()),
        (State::Starting, last) => (starting(), last.as_ref()),
        (State::Running { since }, last) => {
            let running = ContainerStateRunning { started_at: Some(time(*since)) };
            (ContainerState { running: Some(running), ..Default::default() }, last.as_ref())
        }
        (State::Ended(e), last) => (terminated(e), last.as_ref()),
    };
    let id = match &c.state {
        State::Ended(e) => &e.id,
        State::Waiting { .. } if c.id.is_empty() => c.last.as_ref().map_or(&c.id, |e| &e.id),
        _ => &c.id,
    };
    let last_state = last.map(terminated).unwrap_or_default();
    let main_like = c.plan.role != Role::Init;
    ContainerStatus {
        name: c.plan.name.clone(),
        image: c.plan.image.clone(),
        image_id: c.image_id.clone(),
        container_id: (!id.is_empty()).then(|| format!("{ID_SCHEME}{id}")),
        ready,
        started: Some(if main_like { c.started && c.alive() } else { c.alive() }),
        restart_count: i32::try_from(c.restart_count()).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last_state),
        ..Default::default()
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: (!message.is_empty()).then(|| message.to_owned()),
    };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn terminated(e: &Ended) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: e.exit.code,
        signal: e.exit.signal,
        reason: Some(e.reason.clone()),
        message: (!e.exit.message.is_empty()).then(|| e.exit.message.clone()),
        started_at: e.exit.started.map(time),
        finished_at: Some(time(e.exit.finished)),
        container_id: (!e.id.is_empty()).then(|| format!("{ID_SCHEME}{}", e.id)),
    };
    ContainerState { terminated: Some(terminated), ..Default::default() }
}

/// Guaranteed, Burstable or BestEffort, by Kubernetes' rules over cpu and memory.
pub fn qos_class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let (mut any, mut guaranteed) = (false, true);
    for c in all {
        let resources = c.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        let requests = resources.requests.unwrap_or_default();
        for name in ["cpu", "memory"] {
            let (limit, request) = (limits.get(name), requests.get(name));
            any |= limit.is_some() || request.is_some();
            // Without a request, defaulting makes it equal to the limit.
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// True when the object itself says that the Pod has ended.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase.is_some_and(|p| p == Phase::Succeeded.word() || p == Phase::Failed.word())
}
