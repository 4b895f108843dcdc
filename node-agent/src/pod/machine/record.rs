//! What the machine remembers: steps, containers, the way down.
use super::super::{
    backoff::Backoff,
    event::{Exit, Now},
    plan::ContainerPlan,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A step that is done once, and again after a wait when it failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) at: StepAt,
    pub(super) backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StepAt {
    Idle,
    Busy,
    Done,
    Until(Duration),
}

impl Step {
    pub(super) fn new() -> Self {
        Self { at: StepAt::Idle, backoff: Backoff::step() }
    }

    pub(super) fn done(&mut self) {
        self.at = StepAt::Done;
        self.backoff.reset();
    }

    pub(super) fn failed(&mut self, now: Now) {
        self.at = StepAt::Until(now.mono + self.backoff.advance());
    }

    /// True when the step must be begun now; it is Busy from then on.
    pub(super) fn begin(&mut self, now: Now) -> bool {
        let due = match self.at {
            StepAt::Idle => true,
            StepAt::Until(t) => t <= now.mono,
            StepAt::Busy | StepAt::Done => false,
        };
        if due {
            self.at = StepAt::Busy;
        }
        due
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == StepAt::Done
    }

    pub(super) fn is_busy(&self) -> bool {
        self.at == StepAt::Busy
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match self.at {
            StepAt::Until(t) => Some(t),
            _ => None,
        }
    }
}

/// One ended run of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub exit: Exit,
    /// Completed, Error, OOMKilled, StartError, ContainerStatusUnknown.
    pub reason: String,
    /// The runtime's id of that run.
    pub id: String,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Not running, for the reason that status shows.
    Waiting {
        /// ContainerCreating, PodInitializing, CrashLoopBackOff, ErrImagePull …
        reason: String,
        /// For people.
        message: String,
        /// Not before this monotonic time.
        until: Option<Duration>,
    },
    /// Handed to the runtime, which has not answered yet.
    Starting,
    /// Its process runs.
    Running {
        /// Wall time of the start.
        since: Timestamp,
    },
    /// Its process ended, for good or to be started again at once.
    Ended(Ended),
}

/// From the signal to SIGKILL at least, after a preStop hook (Kubernetes:
/// `minimumGracePeriodInSeconds`, 2 s).
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// SIGTERM was sent, or is when the preStop hook is over; SIGKILL follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stopping {
    kill_at: Duration,
    /// SIGKILL is not sent before: a program whose preStop hook took all the time gets its signal,
    /// and a moment to act on it.
    not_before: Duration,
    pub(super) killed: bool,
    /// A SIGKILL that could not be sent is tried again then; hastening the ending does not move it.
    retry_at: Duration,
    backoff: Backoff,
}

impl Stopping {
    /// With a hook, which is cut off at `kill_at`, before the signal.
    pub(super) fn until(kill_at: Duration, hook: bool) -> Self {
        let not_before = if hook { kill_at + AFTER_HOOK } else { Duration::ZERO };
        Self { kill_at, not_before, killed: false, retry_at: Duration::ZERO, backoff: Backoff::step() }
    }

    /// When SIGKILL is to be sent; `None` when it is on its way.
    pub(super) fn kill_due(&self) -> Option<Duration> {
        (!self.killed).then(|| self.kill_at.max(self.not_before).max(self.retry_at))
    }

    /// The hook is over, the signal sent.
    pub(super) fn asked(&mut self, now: Now) {
        if !self.not_before.is_zero() {
            self.not_before = now.mono + AFTER_HOOK;
        }
    }

    /// Less time than before, never more; `at_once` leaves none.
    pub(super) fn hasten(&mut self, kill_at: Duration, at_once: bool) {
        if kill_at < self.kill_at {
            self.kill_at = kill_at;
            self.not_before = self.not_before.min(kill_at + AFTER_HOOK);
        }
        if at_once {
            self.not_before = Duration::ZERO;
        }
    }

    pub(super) fn kill_failed(&mut self, now: Now) {
        self.killed = false;
        self.retry_at = now.mono + self.backoff.advance();
    }
}

/// All the machine knows of one container.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its plan.
    pub plan: ContainerPlan,
    /// Where it is.
    pub state: State,
    /// The run before the present one.
    pub last: Option<Ended>,
    /// `imageID`.
    pub image_id: String,
    /// Its image's STOPSIGNAL.
    pub stop_signal: Option<String>,
    /// The runtime's id of the present run.
    pub id: String,
    /// Passed its startup probe, or has none.
    pub started: bool,
    /// Its readiness probe's verdict; true without one.
    pub probe_ready: bool,
    /// The number the next start gets.
    pub(crate) next: u32,
    pub(super) image: Step,
    /// The first crash restarts at once, later ones wait.
    pub(super) crashed: bool,
    pub(super) crash_backoff: Backoff,
    pub(super) stopping: Option<Stopping>,
    /// Its image was changed in the spec: start again whatever the policy says.
    pub(super) replaced: bool,
    /// It was stopped because a probe found it so: a failure, whatever code it ends with.
    pub(super) unhealthy: bool,
    /// What the last try found missing: shown until a try gets further.
    pub(crate) config_error: Option<String>,
}

impl Record {
    pub(super) fn new(plan: ContainerPlan) -> Self {
        Self {
            plan,
            state: waiting("ContainerCreating"),
            last: None,
            image_id: String::new(),
            stop_signal: None,
            id: String::new(),
            started: false,
            probe_ready: false,
            next: 0,
            image: Step { at: StepAt::Idle, backoff: Backoff::standard() },
            crashed: false,
            crash_backoff: Backoff::standard(),
            stopping: None,
            replaced: false,
            unhealthy: false,
            config_error: None,
        }
    }

    /// `restartCount`: starts beyond the first.
    pub fn restart_count(&self) -> u32 {
        self.next.saturating_sub(1)
    }

    /// Where it is, for messages: "running", "waiting (CrashLoopBackOff)", "terminated (Error, exit code 3)".
    pub fn describe(&self) -> String {
        match &self.state {
            State::Waiting { reason, .. } => format!("waiting ({reason})"),
            State::Starting => "being started".to_owned(),
            State::Running { .. } => "running".to_owned(),
            State::Ended(e) => format!("terminated ({}, exit code {})", e.reason, e.exit.code),
        }
    }

    /// Ready to serve, as far as this container goes.
    pub fn ready(&self) -> bool {
        matches!(self.state, State::Running { .. }) && self.started && (!self.plan.readiness_probe || self.probe_ready)
    }

    /// The run with that id, if it has ended and is still remembered.
    pub(super) fn ended_run(&mut self, id: &str) -> Option<&mut Ended> {
        let present = match &mut self.state {
            State::Ended(e) => Some(e),
            _ => None,
        };
        present.into_iter().chain(&mut self.last).find(|e| e.id == id)
    }

    pub(crate) fn alive(&self) -> bool {
        matches!(self.state, State::Starting | State::Running { .. })
    }

    pub(super) fn attempt(&self) -> u32 {
        self.next.saturating_sub(1)
    }

    pub(super) fn is_current(&self, attempt: u32) -> bool {
        self.next > 0 && self.attempt() == attempt
    }
}

/// Why a container waits whose ConfigMap, Secret or user is missing.
pub(crate) const CONFIG_ERROR: &str = "CreateContainerConfigError";

pub(crate) fn waiting(reason: &str) -> State {
    State::Waiting { reason: reason.into(), message: String::new(), until: None }
}

/// What follows when everything has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Then {
    /// Make the sandbox anew and go on.
    Recreate,
    /// The Pod is finished: its object and logs stay.
    Keep,
    /// The Pod is deleted.
    Remove,
}

#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(super) then: Then,
    /// When SIGKILL is due for whatever still runs.
    pub(super) kill_at: Duration,
    pub(super) down: DownStep,
    /// The cleanup under way, or the last one, leaves logs and state in place.
    pub(super) kept_logs: bool,
    pub(super) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum DownStep {
    Stop,
    Detach,
    Cleanup,
    Delete,
    /// Only with `Then::Keep`: waiting to be deleted.
    Kept,
    Over,
}
