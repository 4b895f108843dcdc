//! Requests and limits as cgroup figures.
use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, Spec};
use trellis_model::resources::{Amounts, pod_limits, pod_requests, qos_class};
use trellis_shim_protocol::CgroupLimits;

/// CFS period (Kubernetes: 100 ms).
const PERIOD_MICROS: u64 = 100_000;
/// The kernel takes no quota below 1 ms.
const QUOTA_MIN_MICROS: u64 = 1_000;
/// Shares of one CPU on cgroup v1.
const SHARES_PER_CPU: u64 = 1024;
/// The kernel's smallest and largest shares.
const SHARES_RANGE: (u64, u64) = (2, 262_144);
/// Processes and threads of a container, and of a Pod: a fork bomb ends here, a JVM does not.
pub const PIDS_LIMIT: i64 = 16_384;

fn shares(milli: i64) -> u64 {
    let milli = u64::try_from(milli).unwrap_or(0);
    (milli * SHARES_PER_CPU / 1000).clamp(SHARES_RANGE.0, SHARES_RANGE.1)
}

fn quota(milli: i64) -> Option<u64> {
    let milli = u64::try_from(milli).ok().filter(|m| *m > 0)?;
    Some((milli * PERIOD_MICROS / 1000).max(QUOTA_MIN_MICROS))
}

/// Puts a container's limits into its spec.
pub fn apply(spec: &mut Spec, pod: &Pod, c: &Container, node_memory_bytes: u64) {
    let resources = c.resources.clone().unwrap_or_default();
    let limits = Amounts::from_map(resources.limits.as_ref());
    let requests = Amounts::from_map(resources.requests.as_ref());
    // A limit without a request is its own request (defaulting says so; files from before may not).
    let cpu_request = if requests.cpu_milli > 0 { requests.cpu_milli } else { limits.cpu_milli };
    let memory_request = if requests.memory_bytes > 0 { requests.memory_bytes } else { limits.memory_bytes };
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(shares(cpu_request)));
    if let Some(quota) = quota(limits.cpu_milli) {
        cpu.set_quota(i64::try_from(quota).ok()).set_period(Some(PERIOD_MICROS));
    }
    let mut pids = LinuxPids::default();
    pids.set_limit(PIDS_LIMIT);
    if let Some(linux) = spec.linux_mut()
        && let Some(out) = linux.resources_mut()
    {
        out.set_cpu(Some(cpu)).set_pids(Some(pids));
        if limits.memory_bytes > 0 {
            let mut memory = LinuxMemory::default();
            memory.set_limit(Some(limits.memory_bytes));
            out.set_memory(Some(memory));
        }
    }
    let qos = pod.spec.as_ref().map_or("BestEffort", qos_class);
    let score = oom_score_adj(qos, memory_request, node_memory_bytes);
    if let Some(process) = spec.process_mut() {
        process.set_oom_score_adj(Some(score));
    }
}

/// kubelet's `GetContainerOOMScoreAdjust`.
pub fn oom_score_adj(qos: &str, memory_request_bytes: i64, node_memory_bytes: u64) -> i32 {
    match qos {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let capacity = i128::from(node_memory_bytes.max(1));
            let score = 1000 - 1000 * i128::from(memory_request_bytes) / capacity;
            // Between what is guaranteed and what is best effort.
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// The Pod's own cgroup: limits only where every container has one.
pub fn pod_cgroup(pod: &Pod) -> CgroupLimits {
    let Some(spec) = &pod.spec else { return CgroupLimits::default() };
    let all_limited = |name: &str| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .all(|c| c.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key(name)))
    };
    let (limits, requests) = (pod_limits(spec), pod_requests(spec));
    let cpu = quota(limits.cpu_milli).filter(|_| all_limited("cpu"));
    CgroupLimits {
        memory_bytes: u64::try_from(limits.memory_bytes).ok().filter(|b| *b > 0 && all_limited("memory")),
        cpu_quota_micros: cpu,
        cpu_period_micros: cpu.map(|_| PERIOD_MICROS),
        cpu_shares: Some(shares(requests.cpu_milli)),
        pids: u64::try_from(PIDS_LIMIT).ok(),
    }
}
