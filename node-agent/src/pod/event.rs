//! What a Pod's machine is told, and what it answers.
use super::plan::PodPlan;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The two clocks, as the driver read them: `mono` measures waits, `wall` is written into status.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Now {
    /// Monotonic time since an arbitrary start.
    pub mono: Duration,
    /// Wall time.
    pub wall: Timestamp,
}

/// How a container's process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// The kernel's OOM killer struck in its cgroup.
    pub oom_killed: bool,
    /// When it had started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Its last words (`terminationMessagePath` or log, as the spec says).
    pub message: String,
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Decides when the other two begin.
    Startup,
    /// Decides whether traffic may come.
    Readiness,
    /// Decides whether the container is restarted.
    Liveness,
}

impl ProbeKind {
    /// As Kubernetes' events name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The object changed (or is seen for the first time).
    Updated(PodPlan),
    /// metadata.deletionTimestamp is set; `grace` runs from now.
    Delete {
        /// metadata.deletionGracePeriodSeconds.
        grace: Duration,
    },
    /// The object is not in the API any more.
    Gone,
    /// Everything the volumes need is in place.
    VolumesReady,
    /// A volume could not be made ready; it is tried again.
    VolumesFailed {
        /// What is wrong, for people.
        message: String,
    },
    /// The shim holds the Pod's namespaces.
    SandboxCreated,
    /// The sandbox could not be made; it is tried again.
    SandboxFailed {
        /// What is wrong, for people.
        message: String,
    },
    /// The shim died, with everything it held.
    SandboxLost,
    /// netd acknowledged addresses, routes and policy.
    NetworkAttached {
        /// The Pod's addresses.
        addresses: Vec<String>,
    },
    /// netd refused or cannot be reached; it is tried again.
    NetworkFailed {
        /// What is wrong, for people.
        message: String,
    },
    /// The image is on this node.
    ImageReady {
        /// Container.
        container: String,
        /// `status.containerStatuses[].imageID`.
        image_id: String,
        /// Its STOPSIGNAL, where it has one.
        stop_signal: Option<String>,
    },
    /// The image is not there and could not be fetched.
    ImageFailed {
        /// Container.
        container: String,
        /// ErrImagePull, ErrImageNeverPull, InvalidImageName.
        reason: String,
        /// What is wrong, for people.
        message: String,
    },
    /// The container's process runs.
    Started {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// Runtime's id.
        id: String,
        /// When.
        at: Timestamp,
    },
    /// What the spec refers to is missing or wrong; it is tried again.
    ConfigFailed {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// What is wrong, for people.
        message: String,
    },
    /// The preStop hook is over, and the stop signal sent.
    Asked {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
    },
    /// SIGKILL could not be sent; it is tried again.
    KillFailed {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// What is wrong, for people.
        message: String,
    },
    /// The runtime could not start it: counts as an exit with code 128.
    StartFailed {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// What is wrong, for people.
        message: String,
    },
    /// The container's process ended.
    Exited {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// Runtime's id: the exit may be told before the start.
        id: String,
        /// How.
        exit: Exit,
    },
    /// A probe crossed its threshold.
    Probe {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
        /// Which way.
        healthy: bool,
        /// What the last try said.
        message: String,
    },
    /// netd let go of the Pod.
    NetworkDetached,
    /// Processes, mounts, cgroups and files are gone.
    CleanedUp,
    /// The object is out of the API (or another one bears its name).
    ApiDeleted,
    /// The teardown's present step failed; it is tried again.
    TeardownFailed {
        /// What is wrong, for people.
        message: String,
    },
    /// A deadline may have come.
    Tick,
}

/// SIGTERM (or the image's stop signal) or SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// preStop hook first, then the image's stop signal.
    Ask {
        /// What is left until SIGKILL.
        grace: Duration,
    },
    /// SIGKILL.
    Kill,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make all volumes ready.
    PrepareVolumes,
    /// Start the shim.
    CreateSandbox,
    /// Hand the netns to netd and await its acknowledgement.
    AttachNetwork,
    /// See that the image is here.
    EnsureImage {
        /// Container.
        container: String,
    },
    /// Create and start a container.
    Start {
        /// Container.
        container: String,
        /// Which start of it: 0 is the first.
        attempt: u32,
    },
    /// Signal a running container.
    Stop {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// How.
        kind: StopKind,
    },
    /// Begin probing a container with this probe.
    StartProbe {
        /// Container.
        container: String,
        /// Which start of it.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
    },
    /// End the probes of a container.
    StopProbes {
        /// Container.
        container: String,
        /// Readiness too. While a container is only asked to stop it goes on: traffic is to leave it
        /// when it says so.
        readiness: bool,
    },
    /// Tell netd that the Pod goes.
    DetachNetwork,
    /// Remove processes, mounts, cgroups, files.
    Cleanup {
        /// A finished Pod's logs stay until it is deleted.
        keep_logs: bool,
    },
    /// Take the object out of the API with grace 0.
    DeleteFromApi,
    /// Write what must survive the agent's death, before the effects that follow.
    Persist,
    /// The status may have changed.
    ReportStatus,
    /// Tell people.
    Note(Note),
    /// This Pod is over; its worker ends.
    Finished,
}

/// A Kubernetes Event in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Warning rather than Normal.
    pub warning: bool,
    /// "BackOff", "Killing" …
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The container it is about.
    pub container: Option<String>,
}
