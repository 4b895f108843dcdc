//! This machine's Node object: made if it is not there, its labels and taints from the node's
//! configuration, its status kept true: written when it changes and every 5 minutes.
use super::{ApiError, create, get, key, update};
use crate::pod::status::time;
use k8s_openapi::{
    api::core::v1::{
        DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
        Taint,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};
use tokio::sync::watch;
use trellis_proto::{client::Connection, node_config::NodeConfig, ports};

/// Without a change the status is written this often (Kubernetes: nodeStatusReportFrequency, 5 min).
const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How often pressure is measured.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// After a failed write.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// A report is read, changed and written: others come in between once or twice.
const CONFLICTS_EXPECTED: u32 = 5;
/// Addresses of a node's /24 without network, broadcast, gateway and a reserve for those that rest.
const PODS_MAX: i64 = 200;
/// Kept for the node itself (kubelet's hard eviction threshold).
const MEMORY_RESERVED_BYTES: u64 = 100 << 20;
/// Below this share of free disk (kubelet: nodefs.available<10%) …
const DISK_FREE_MIN: f64 = 0.10;
/// … and with less than this the node reports DiskPressure: a tenth of a large disk holds many
/// images yet.
const DISK_FREE_MIN_BYTES: u64 = 10 << 30;

/// What the kernel says about the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs.
    pub cpus: i64,
    /// Memory.
    pub memory_bytes: u64,
    /// Size of the disk that Pods write to.
    pub disk_bytes: u64,
}

/// Whether Pods can have a network here, and why not.
pub type NetworkReady = watch::Receiver<Result<(), String>>;

impl Machine {
    /// Asks the kernel; `data` is where Pods write.
    pub fn measure(data: &std::path::Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = meminfo("MemTotal").unwrap_or(0);
        let disk = rustix::fs::statvfs(data).map_or(0, |s| s.f_blocks * s.f_frsize);
        Self { cpus: i64::try_from(cpus).unwrap_or(1), memory_bytes: memory, disk_bytes: disk }
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        let entries = [
            ("cpu", self.cpus.to_string()),
            ("memory", format!("{}Ki", self.memory_bytes / 1024)),
            ("ephemeral-storage", format!("{}Ki", self.disk_bytes / 1024)),
            ("pods", PODS_MAX.to_string()),
        ];
        entries.into_iter().map(|(k, v)| (k.to_owned(), Quantity(v))).collect()
    }

    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let mut all = self.capacity();
        all.insert("memory".into(), Quantity(format!("{}Ki", self.allocatable_memory_bytes() / 1024)));
        all
    }

    /// What Pods may use of the memory.
    pub fn allocatable_memory_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(MEMORY_RESERVED_BYTES)
    }
}

fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.strip_prefix(field).is_some_and(|r| r.starts_with(':')))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Keeps the Node object true.
#[derive(Debug)]
pub struct NodeReporter {
    /// The control plane.
    pub conn: Connection,
    /// This node's configuration.
    pub config: NodeConfig,
    /// The machine.
    pub machine: Machine,
    /// Where Pods write: for DiskPressure.
    pub data_dir: PathBuf,
    /// netd's word.
    pub network: NetworkReady,
}

impl NodeReporter {
    /// Registers the node, then reports for ever.
    pub async fn run(mut self) {
        let mut written: Option<NodeStatus> = None;
        let mut last_write = tokio::time::Instant::now();
        let mut lost = 0;
        loop {
            match self.report(written.as_ref(), last_write.elapsed() >= REPORT_EVERY).await {
                Ok(Some(status)) => {
                    written = Some(status);
                    lost = 0;
                    last_write = tokio::time::Instant::now();
                }
                Ok(None) => {}
                // Taints, labels and addresses are others' to write, most of all while it joins.
                Err(ApiError::Conflict(node)) if lost < CONFLICTS_EXPECTED => {
                    lost += 1;
                    tracing::debug!(node, "changed meanwhile: reporting on what it is now");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot report this Node: trying again");
                    lost = 0;
                    tokio::time::sleep(RETRY_EVERY).await;
                    continue;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(MEASURE_EVERY) => {}
                changed = self.network.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn report(&mut self, written: Option<&NodeStatus>, force: bool) -> Result<Option<NodeStatus>, ApiError> {
        let network = self.network.borrow_and_update().clone();
        if let Some(old) = written.filter(|_| !force)
            && same(old, &self.status(Some(old), &network))
        {
            return Ok(None);
        }
        let key = key("Node", "", &self.config.node_name);
        let node = match get::<Node>(&self.conn, &key).await {
            Ok(node) => node,
            Err(ApiError::NotFound(_)) => {
                match create(&self.conn, &key, &self.fresh()).await {
                    Ok(()) | Err(ApiError::Conflict(_)) => {}
                    // Made by somebody else in between.
                    Err(error) => tracing::debug!(%error, "creating the Node"),
                }
                get(&self.conn, &key).await?
            }
            Err(error) => return Err(error),
        };
        let mut node = self.labelled(&key, node).await?;
        let status = self.status(node.status.as_ref(), &network);
        node.status = Some(status);
        let stored: Node = update(&self.conn, &key, &node, "status").await?;
        Ok(stored.status)
    }

    /// The object as this node makes it.
    fn fresh(&self) -> Node {
        let taints: Vec<Taint> = self
            .config
            .taints
            .iter()
            .filter_map(|t| match serde_json::from_value(t.clone()) {
                Ok(taint) => Some(taint),
                Err(error) => {
                    tracing::error!(%error, taint = %t, "node.json: not a taint");
                    None
                }
            })
            .collect();
        Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(self.labels()),
                ..Default::default()
            },
            spec: Some(NodeSpec { taints: (!taints.is_empty()).then_some(taints), ..Default::default() }),
            status: None,
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, String> = [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        if self.config.is_control_plane() {
            all.insert("node-role.kubernetes.io/control-plane".into(), String::new());
        }
        all.extend(self.config.labels.clone());
        all
    }

    /// Adds the labels that are missing or differ; those that others set stay.
    async fn labelled(&self, key: &trellis_proto::api::ObjectKey, mut node: Node) -> Result<Node, ApiError> {
        let have = node.metadata.labels.get_or_insert_default();
        let wanted = self.labels();
        if wanted.iter().all(|(k, v)| have.get(k) == Some(v)) {
            return Ok(node);
        }
        have.extend(wanted);
        update(&self.conn, key, &node, "").await
    }

    fn status(&self, old: Option<&NodeStatus>, network: &Result<(), String>) -> NodeStatus {
        let address = |kind: &str, text: String| NodeAddress { type_: kind.into(), address: text };
        NodeStatus {
            capacity: Some(self.machine.capacity()),
            allocatable: Some(self.machine.allocatable()),
            addresses: Some(vec![
                address("InternalIP", self.config.advertise_address.to_string()),
                address("Hostname", self.config.node_name.clone()),
            ]),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(ports::AGENT) }),
            }),
            node_info: Some(node_info()),
            conditions: Some(self.conditions(old, network)),
            ..old.cloned().unwrap_or_default()
        }
    }

    fn conditions(&self, old: Option<&NodeStatus>, network: &Result<(), String>) -> Vec<NodeCondition> {
        let now = jiff::Timestamp::now();
        let empty = Vec::new();
        let before = old.and_then(|s| s.conditions.as_ref()).unwrap_or(&empty);
        let condition = |kind: &str, status: bool, reason: &str, message: &str| {
            let word = if status { "True" } else { "False" };
            let same = before.iter().find(|c| c.type_ == kind && c.status == word);
            NodeCondition {
                type_: kind.into(),
                status: word.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: Some(time(now)),
                last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(time(now))),
            }
        };
        let memory_low = meminfo("MemAvailable").is_some_and(|b| b < MEMORY_RESERVED_BYTES);
        // A disk that cannot be asked is not called full.
        let disk_low = rustix::fs::statvfs(&self.data_dir).is_ok_and(|s| {
            (s.f_bavail as f64) < DISK_FREE_MIN * s.f_blocks as f64 && s.f_bavail * s.f_frsize < DISK_FREE_MIN_BYTES
        });
        let mut all = vec![
            match memory_low {
                true => condition("MemoryPressure", true, "NodeHasInsufficientMemory", "less than 100Mi are available"),
                false => condition("MemoryPressure", false, "NodeHasSufficientMemory", "enough memory is available"),
            },
            match disk_low {
                true => condition(
                    "DiskPressure",
                    true,
                    "NodeHasDiskPressure",
                    "less than 10% of the disk and less than 10 GiB are free",
                ),
                false => condition("DiskPressure", false, "NodeHasNoDiskPressure", "enough of the disk is free"),
            },
            condition("PIDPressure", false, "NodeHasSufficientPID", "enough process ids are available"),
            match network {
                Ok(()) => condition("Ready", true, "NodeAgentReady", "the node agent can run Pods"),
                Err(why) => condition("Ready", false, "NetworkNotReady", why),
            },
        ];
        // Conditions of others (the control plane's NetworkUnavailable) are kept as they are.
        let own: Vec<String> = all.iter().map(|c| c.type_.clone()).collect();
        all.extend(before.iter().filter(|c| !own.contains(&c.type_)).cloned());
        all
    }
}

/// Equal but for the heartbeat's time?
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
            c.last_transition_time = None;
        }
        s
    };
    still(a) == still(b)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn node_info() -> NodeSystemInfo {
    let read = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    let release = read("/etc/os-release");
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let version = concat!("v", env!("CARGO_PKG_VERSION"));
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("trellis://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: version.into(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: name.trim_matches('"').into(),
        swap: None,
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
    }
}
