//! The words of the protocol: what an agent asks and a shim answers.
//!
//! Every field added later carries `#[serde(default)]`: a shim of yesterday meets an agent of
//! today. Unknown fields are ignored, unknown requests answered with [`ErrorCode::Unsupported`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::records::{ContainerState, Event, Exit, SandboxState};

/// What a shim is launched with (JSON on its standard input); kept as `<dir>/sandbox.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Format version of this text: 1.
    pub version: u32,
    /// The Pod's uid: names the sandbox everywhere.
    pub pod_uid: String,
    /// For messages only.
    #[serde(default)]
    pub pod_namespace: String,
    /// For messages only.
    #[serde(default)]
    pub pod_name: String,
    /// The UTS hostname; empty leaves the host's (hostNetwork Pods).
    #[serde(default)]
    pub hostname: String,
    /// The shim's own folder, `<run dir>/shims/<pod uid>`, mode 0700: socket, state, mount points.
    pub dir: PathBuf,
    /// The Pod's cgroup below the cgroup root, e.g. `trellis/pod<uid>`. The shim itself runs in
    /// its child `shim`, each container in a child named by the container's id.
    pub cgroup_path: String,
    /// What `cgroup_path` is relative to: `/` the hierarchies' root as mounted, `own` the
    /// cgroups that the agent runs in, or a path below the root.
    #[serde(default = "root_path")]
    pub cgroup_root: String,
    /// The Pod's own limits (the sum over containers), when all of them have limits.
    #[serde(default)]
    pub limits: CgroupLimits,
    /// Keep the node's network namespace.
    #[serde(default)]
    pub host_network: bool,
    /// Keep the node's IPC namespace.
    #[serde(default)]
    pub host_ipc: bool,
    /// Containers see the node's processes. The shim then is not the init of a PID namespace of
    /// its own, so its death alone does not end them: [`SandboxConfig`] users clean by cgroup.
    #[serde(default)]
    pub host_pid: bool,
    /// All containers share one PID namespace (shareProcessNamespace): one of their own, below the
    /// shim's, whose first process is nobody (`trellis_sandbox::pause`).
    #[serde(default)]
    pub share_pid: bool,
    /// Namespaced sysctls, `net.ipv4.ip_unprivileged_port_start` = `0`.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// A folder of the node, root's alone, where compiled seccomp filters are kept for all Pods;
    /// without it each container compiles its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<PathBuf>,
    /// Size of the `/dev/shm` that the Pod's containers share.
    #[serde(default = "shm_default")]
    pub shm_bytes: u64,
}

fn root_path() -> String {
    "/".to_owned()
}

/// 64 MiB, as every other runtime gives.
fn shm_default() -> u64 {
    64 << 20
}

impl SandboxConfig {
    /// A config with every option at its default.
    #[must_use]
    pub fn new(pod_uid: &str, dir: impl Into<PathBuf>, cgroup_path: &str) -> Self {
        Self {
            version: 1,
            pod_uid: pod_uid.to_owned(),
            pod_namespace: String::new(),
            pod_name: String::new(),
            hostname: String::new(),
            dir: dir.into(),
            cgroup_path: cgroup_path.to_owned(),
            cgroup_root: root_path(),
            limits: CgroupLimits::default(),
            host_network: false,
            host_ipc: false,
            host_pid: false,
            share_pid: false,
            sysctls: BTreeMap::new(),
            filters: None,
            shm_bytes: shm_default(),
        }
    }

    /// Where the shim listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }
}

/// The socket's name in the shim's folder.
pub const SOCKET: &str = "shim.sock";
/// The persisted [`SandboxState`]'s name in the shim's folder.
pub const STATE: &str = "state.json";
/// The persisted [`SandboxConfig`]'s name in the shim's folder.
pub const SANDBOX: &str = "sandbox.json";
/// The shim's own log (bounded) in its folder.
pub const SHIM_LOG: &str = "shim.log";

/// Limits of one cgroup; `None` means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// Memory with its page cache.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// CPU time per period.
    #[serde(default)]
    pub cpu_quota_micros: Option<u64>,
    /// The period, 100 ms if unset.
    #[serde(default)]
    pub cpu_period_micros: Option<u64>,
    /// cgroup v1 shares (1024 a CPU); converted to a weight on v2.
    #[serde(default)]
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    #[serde(default)]
    pub pids: Option<u64>,
}

/// What an agent asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// The first frame of a connection. Answer: [`Reply::Hello`].
    Hello {
        /// Versions the agent speaks.
        versions: Vec<u32>,
    },
    /// Answer: [`Reply::State`].
    State,
    /// Answer: [`Reply::Netns`] with two descriptors: the Pod's network namespace and an
    /// rtnetlink socket (NETLINK_ROUTE, SOCK_RAW) that was opened inside it.
    GetNetns,
    /// Makes root file system, cgroup and namespaces; the process waits before its `execve`.
    /// Idempotent by id while the container is in phase created. Answer: [`Reply::Created`].
    CreateContainer(Box<CreateContainer>),
    /// Lets a created container run. Answer: [`Reply::Done`].
    StartContainer {
        /// The container.
        id: String,
    },
    /// Answer: [`Reply::Done`]; also when it has exited already.
    Signal {
        /// The container.
        id: String,
        /// Signal number, e.g. 15.
        signal: i32,
        /// Every process of the container instead of its first one.
        #[serde(default)]
        all: bool,
    },
    /// Answers [`Reply::Exited`] when the container has ended. Use a connection of its own.
    Wait {
        /// The container.
        id: String,
    },
    /// Kills what still runs in it, unmounts its root, removes its cgroup and forgets it.
    /// Idempotent: an unknown id is done. Answer: [`Reply::Done`].
    DeleteContainer {
        /// The container.
        id: String,
        /// Also remove the writable layer (upper and work directory).
        #[serde(default)]
        remove_upper: bool,
    },
    /// Runs a process in a running container. Without a terminal the frame carries three
    /// descriptors: stdin, stdout, stderr. Answer: [`Reply::ExecStarted`]; with a terminal it
    /// carries one descriptor, the pty's master, on which the agent reads, writes and resizes.
    Exec(Box<Exec>),
    /// Answers [`Reply::Exited`] when the process has ended. Use a connection of its own.
    WaitExec {
        /// From [`Reply::ExecStarted`].
        exec_id: u64,
    },
    /// Answer: [`Reply::Done`]; also when it has ended already.
    SignalExec {
        /// From [`Reply::ExecStarted`].
        exec_id: u64,
        /// Signal number.
        signal: i32,
    },
    /// Reopens a container's log by its path, after somebody else moved it away. Answer: [`Reply::Done`].
    ReopenLogs {
        /// The container.
        id: String,
    },
    /// Turns the connection into a stream of [`Reply::Event`]: first those kept whose sequence
    /// number is greater than `after` (the shim keeps the last [`EVENTS_KEPT`]), then each new one.
    Events {
        /// 0 for all that are kept.
        after: u64,
    },
    /// Unless this is asked again within the time, the shim kills all containers (for Pods that must
    /// never run twice). `None` disarms it. Answer: [`Reply::Done`].
    SetStopDeadline {
        /// From now.
        after_millis: Option<u64>,
    },
    /// Kills all containers, unmounts, removes their cgroups, answers [`Reply::Done`] and ends. The
    /// caller then removes the Pod's cgroup and the shim's folder with `trellis_sandbox::cleanup`.
    Shutdown,
}

/// How long a shim lets a helper work on [`Request::CreateContainer`] or [`Request::Exec`]: one that
/// takes longer hangs on a dead disk or network file system.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// How many events a shim keeps for subscribers that come later.
pub const EVENTS_KEPT: usize = 64;

/// One container to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateContainer {
    /// Unique within the Pod for ever (a restart gets a new one): `[A-Za-z0-9_.+-]{1,64}`.
    pub id: String,
    /// Labels the agent wants back with the state (container name, attempt); at most 16 of them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The root file system. `root.path` of the spec is overwritten with it.
    pub rootfs: Rootfs,
    /// OCI runtime spec 1.x as JSON. The shim overwrites: `root.path`, `linux.namespaces`,
    /// `linux.cgroupsPath`, `hostname`; it turns `process.noNewPrivileges: false` into absent
    /// (libcontainer would otherwise load the filter too late), clamps `process.oomScoreAdj` to
    /// what this machine permits, and lets a `/dev/shm` mount be the Pod's shared one.
    pub spec: serde_json::Value,
    /// A cgroup namespace of its own.
    #[serde(default)]
    pub cgroup_namespace: bool,
    /// Where its output goes.
    pub log: LogConfig,
    /// Give it a pipe as stdin that stays open instead of `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Mounts of the spec whose source is a place inside a volume that containers may write to.
    /// The shim opens each anew, with the volume as root, and mounts what it opened: a link that
    /// is exchanged meanwhile leads nowhere. The spec's own source is for shims that do not know
    /// this field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sub_paths: Vec<SubPath>,
}

/// A mount of a part of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubPath {
    /// Which mount of the spec is meant: its destination.
    pub destination: PathBuf,
    /// The volume.
    pub volume: PathBuf,
    /// Where in it: relative, exists.
    pub path: PathBuf,
}

/// Where a container's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Rootfs {
    /// The shim mounts an overlay in its own mount namespace: it vanishes with the shim.
    Overlay {
        /// Image layers' folders, topmost first (1 to 500).
        lower: Vec<PathBuf>,
        /// The writable layer; made by the shim (0755) if missing.
        upper: PathBuf,
        /// overlayfs' work folder, on the same file system as `upper`; made if missing.
        work: PathBuf,
    },
    /// A folder that is a root file system already.
    Path {
        /// The folder.
        path: PathBuf,
    },
}

/// A container's log: CRI lines, `<RFC 3339 time> <stdout|stderr> <F|P> <text>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file, e.g. `/var/log/…/0.log`; its folder is made if missing. `None` throws output away.
    pub path: Option<PathBuf>,
    /// Rotate at this size (kubelet's containerLogMaxSize: 10 MiB).
    #[serde(default = "log_max_bytes")]
    pub max_bytes: u64,
    /// How many files at most, the current one included: `0.log`, `0.log.1`, … (kubelet: 5).
    #[serde(default = "log_max_files")]
    pub max_files: u32,
}

fn log_max_bytes() -> u64 {
    10 << 20
}

fn log_max_files() -> u32 {
    5
}

impl LogConfig {
    /// A log at `path` with the default bounds.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), max_bytes: log_max_bytes(), max_files: log_max_files() }
    }
}

/// One process to run in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The container.
    pub id: String,
    /// Program and arguments; the program is looked up in the container's PATH.
    pub argv: Vec<String>,
    /// Added to (or replacing in) the container's environment: `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `None`: the container's.
    #[serde(default)]
    pub cwd: Option<String>,
    /// uid; `None`: the container's.
    #[serde(default)]
    pub uid: Option<u32>,
    /// gid; `None`: the container's.
    #[serde(default)]
    pub gid: Option<u32>,
    /// A terminal of its own.
    #[serde(default)]
    pub tty: bool,
    /// Rows and columns the terminal starts with.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
    /// Kill it when the connection that asked for it closes (probes, interactive sessions).
    #[serde(default)]
    pub kill_on_disconnect: bool,
}

/// What a shim answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The version both speak from here on.
        version: u32,
        /// Version of the shim's program.
        shim: String,
        /// Whose shim this is.
        pod_uid: String,
    },
    /// Done; nothing to tell.
    Done,
    /// To [`Request::State`].
    State(Box<SandboxState>),
    /// To [`Request::GetNetns`]; two descriptors beside it.
    Netns,
    /// To [`Request::CreateContainer`].
    Created(Box<ContainerState>),
    /// To [`Request::Wait`] and [`Request::WaitExec`].
    Exited(Exit),
    /// To [`Request::Exec`].
    ExecStarted {
        /// Names the process in later requests.
        exec_id: u64,
    },
    /// On a connection that asked for [`Request::Events`].
    Event(Event),
    /// The request failed.
    Error {
        /// What kind of failure.
        code: ErrorCode,
        /// What happened, to what.
        message: String,
    },
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No common version, or a request this shim does not know.
    Unsupported,
    /// The request makes no sense; sending it again will not help.
    Invalid,
    /// No such container or exec.
    NotFound,
    /// The id is taken by another container.
    AlreadyExists,
    /// The container is not in the phase the request needs.
    WrongPhase,
    /// The kernel or the runtime refused; the message says what.
    Failed,
    /// A limit of the shim is reached; the message says which.
    LimitReached,
}
