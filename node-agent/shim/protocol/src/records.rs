//! What a shim remembers and tells: containers, how they ended, when.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::LogConfig;

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Nanoseconds since 1970 UTC.
    pub wall_nanos: u64,
    /// CLOCK_BOOTTIME nanoseconds: for durations, also across the agent's restart.
    pub boot_nanos: u64,
}

/// How a container or exec ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal for a killed process.
    pub code: i32,
    /// The signal, if one killed it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// It failed, and the kernel's OOM killer had killed in its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
    /// When the shim reaped it.
    pub at: Moment,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Made; its program has not been executed.
    Created,
    /// Running.
    Running,
    /// Ended; [`ContainerState::exit`] says how.
    Exited,
}

/// One container as the shim knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container.
    pub id: String,
    /// As given at creation.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where it stands.
    pub phase: Phase,
    /// Its first process, as the shim's PID namespace numbers it.
    pub pid: i32,
    /// The same, as the agent's PID namespace numbers it; 0 if that is unknown.
    #[serde(default)]
    pub host_pid: i32,
    /// When it was made.
    pub created_at: Moment,
    /// When its program was let go.
    #[serde(default)]
    pub started_at: Option<Moment>,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Where its output goes.
    pub log: LogConfig,
    /// Bytes of output that could not be written (disk full).
    #[serde(default)]
    pub log_bytes_lost: u64,
    /// Its cgroup, below the cgroup root.
    pub cgroup_path: String,
    /// Its root file system, as the shim's mount namespace sees it.
    pub rootfs: PathBuf,
    /// The writable layer (upper, work), if it is an overlay.
    #[serde(default)]
    pub upper: Option<(PathBuf, PathBuf)>,
}

/// Everything a restarted agent needs to adopt the Pod; also kept as `<dir>/state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    /// Format version of this text: 1.
    pub version: u32,
    /// The Pod.
    pub pod_uid: String,
    /// The shim, as the agent's PID namespace numbers it.
    pub shim_pid: i32,
    /// When the sandbox stood.
    pub started_at: Moment,
    /// The last event's sequence number.
    pub last_event: u64,
    /// All containers not deleted yet.
    pub containers: Vec<ContainerState>,
}

/// Something happened in the Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 in each shim.
    pub sequence: u64,
    /// When.
    pub at: Moment,
    /// The container.
    pub id: String,
    /// What.
    pub what: Happening,
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Happening {
    /// It was made.
    Created,
    /// Its program runs.
    Started,
    /// It ended.
    Exited(Exit),
    /// It was deleted.
    Deleted,
}
