//! The Pod lifecycle, decided without I/O or clock: [`Machine::on_event`] is told what happened
//! and answers what to do; the worker beside it does it and tells the outcome.
//!
//! ```text
//!            volumes -> sandbox -> network -> init containers in order -> containers
//!               |  each step: Idle -> Busy -> Done, or Waiting(until) -> Busy  |
//!               v                                                              v
//!   (deleted, deadline, all ended, sandbox lost)  ->  ending: stop what runs, await its exit
//!               -> detach network -> clean up -> Keep    finished Pod: stays in the API
//!                                             -> Remove  delete from API -> over
//!                                             -> Recreate  back to volumes
//!
//!   a container:  Waiting -> (image) -> Starting -> Running -> Ended -> Waiting (back-off) …
//! ```
//!
//! Invariants, each a property test: nothing starts before volumes, sandbox and network are done
//! ("policy before process"); an exit is never lost; one start of a container at a time; nothing
//! starts once the Pod is ending; the API object goes last, after cleanup.
//!
//! The machine is level-based: every event is recorded, then [`Machine::advance`] derives from
//! the recorded state which effects are due.
mod advance;
mod phase;
#[cfg(test)]
mod properties;
mod recover;
#[cfg(test)]
mod tests;

pub use phase::{Condition, Phase};
pub use recover::{Persisted, ShimContainer, ShimReport};

use super::{
    backoff::{Backoff, RESET_AFTER},
    event::{Effect, Event, Exit, Note, Now, ProbeKind},
    plan::{ContainerPlan, PodPlan, Role},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What a Pod gets at least between SIGTERM and SIGKILL when its object is gone already
/// (Kubernetes: `minimumGracePeriodInSeconds`, 2 s).
pub const GONE_GRACE: Duration = Duration::from_secs(2);
/// The runtime's code for "could not be started" (Kubernetes, as shells: 128).
const START_FAILED_CODE: i32 = 128;

/// A step that is done once, and again after a wait when it failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) at: StepAt,
    backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StepAt {
    Idle,
    Busy,
    Done,
    Until(Duration),
}

impl Step {
    fn new() -> Self {
        Self { at: StepAt::Idle, backoff: Backoff::step() }
    }

    fn done(&mut self) {
        self.at = StepAt::Done;
        self.backoff.reset();
    }

    fn failed(&mut self, now: Now) {
        self.at = StepAt::Until(now.mono + self.backoff.advance());
    }

    /// True when the step must be begun now; it is Busy from then on.
    fn begin(&mut self, now: Now) -> bool {
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

    fn is_done(&self) -> bool {
        self.at == StepAt::Done
    }

    fn is_busy(&self) -> bool {
        self.at == StepAt::Busy
    }

    fn deadline(&self) -> Option<Duration> {
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

/// SIGTERM was sent; SIGKILL follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stopping {
    kill_at: Duration,
    killed: bool,
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
    /// The runtime's id of the present run.
    pub id: String,
    /// Passed its startup probe, or has none.
    pub started: bool,
    /// Its readiness probe's verdict; true without one.
    pub probe_ready: bool,
    /// The number the next start gets.
    pub(crate) next: u32,
    image: Step,
    /// The first crash restarts at once, later ones wait.
    crashed: bool,
    crash_backoff: Backoff,
    stopping: Option<Stopping>,
    /// Its image was changed in the spec: start again whatever the policy says.
    replaced: bool,
}

impl Record {
    fn new(plan: ContainerPlan) -> Self {
        Self {
            plan,
            state: waiting("ContainerCreating"),
            last: None,
            image_id: String::new(),
            id: String::new(),
            started: false,
            probe_ready: false,
            next: 0,
            image: Step { at: StepAt::Idle, backoff: Backoff::standard() },
            crashed: false,
            crash_backoff: Backoff::standard(),
            stopping: None,
            replaced: false,
        }
    }

    /// `restartCount`: starts beyond the first.
    pub fn restart_count(&self) -> u32 {
        self.next.saturating_sub(1)
    }

    /// Ready to serve, as far as this container goes.
    pub fn ready(&self) -> bool {
        matches!(self.state, State::Running { .. }) && self.started && (!self.plan.readiness_probe || self.probe_ready)
    }

    pub(crate) fn alive(&self) -> bool {
        matches!(self.state, State::Starting | State::Running { .. })
    }

    fn attempt(&self) -> u32 {
        self.next.saturating_sub(1)
    }

    fn is_current(&self, attempt: u32) -> bool {
        self.next > 0 && self.attempt() == attempt
    }
}

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
    then: Then,
    /// When SIGKILL is due for whatever still runs.
    kill_at: Duration,
    down: DownStep,
    step: Step,
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

/// The lifecycle of one Pod.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) plan: PodPlan,
    pub(crate) containers: Vec<Record>,
    pub(crate) addresses: Vec<String>,
    pub(crate) start_time: Timestamp,
    pub(crate) deadline_exceeded: bool,
    pub(crate) conditions: BTreeMap<&'static str, Condition>,
    started_mono: Duration,
    volumes: Step,
    sandbox: Step,
    network: Step,
    /// Attach was tried: netd must be told at the end.
    network_touched: bool,
    initialized: bool,
    ending: Option<Ending>,
    /// The object is out of the API already.
    gone: bool,
    last_persisted: Option<recover::Persisted>,
}

impl Machine {
    /// A Pod that this node sees for the first time.
    pub fn new(plan: PodPlan, now: Now) -> Self {
        let mut containers: Vec<Record> = plan.containers.iter().cloned().map(Record::new).collect();
        if containers.iter().any(|c| c.plan.role != Role::Main) {
            for c in containers.iter_mut() {
                c.state = waiting("PodInitializing");
            }
        }
        Self {
            plan,
            containers,
            addresses: Vec::new(),
            start_time: now.wall,
            deadline_exceeded: false,
            conditions: BTreeMap::new(),
            started_mono: now.mono,
            volumes: Step::new(),
            sandbox: Step::new(),
            network: Step::new(),
            network_touched: false,
            initialized: false,
            ending: None,
            gone: false,
            last_persisted: None,
        }
    }

    /// Records `event` and answers everything that is due at `now`, in order.
    pub fn on_event(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let tick = matches!(event, Event::Tick);
        self.record(event, now, &mut out);
        self.advance(now, &mut out);
        self.update_conditions(now.wall);
        let snapshot = self.persisted();
        if self.last_persisted.as_ref() != Some(&snapshot) && !out.contains(&Effect::Finished) {
            // Before the effects: a start must be on disk before it happens, or its exit code
            // would belong to nobody after a crash of the agent.
            out.insert(0, Effect::Persist);
            self.last_persisted = Some(snapshot);
        }
        if !tick || !out.is_empty() {
            out.push(Effect::ReportStatus);
        }
        out
    }

    fn record(&mut self, event: Event, now: Now, out: &mut Vec<Effect>) {
        match event {
            Event::Updated(plan) => self.updated(plan, now, out),
            Event::Delete { grace } => self.end(Then::Remove, grace, now),
            Event::Gone => {
                self.gone = true;
                self.end(Then::Remove, GONE_GRACE.min(self.plan.grace), now);
            }
            Event::VolumesReady => self.volumes.done(),
            Event::VolumesFailed { message } => {
                self.volumes.failed(now);
                out.push(warn("FailedMount", message, None));
            }
            Event::SandboxCreated => self.sandbox.done(),
            Event::SandboxFailed { message } => {
                self.sandbox.failed(now);
                out.push(warn("FailedCreatePodSandBox", message, None));
            }
            Event::SandboxLost => self.sandbox_lost(now, out),
            Event::NetworkAttached { addresses } => {
                self.network.done();
                self.addresses = addresses;
            }
            Event::NetworkFailed { message } => {
                self.network.failed(now);
                let message = format!("cannot attach the Pod to the network: {message}");
                out.push(warn("FailedCreatePodSandBox", message, None));
            }
            Event::NetworkDetached | Event::CleanedUp | Event::ApiDeleted => self.step_down(&event),
            Event::TeardownFailed { message } => {
                if let Some(ending) = &mut self.ending {
                    ending.step.failed(now);
                    out.push(warn("FailedKillPod", message, None));
                }
            }
            Event::Tick => {}
            event => self.record_container(event, now, out),
        }
    }

    fn record_container(&mut self, event: Event, now: Now, out: &mut Vec<Effect>) {
        match event {
            Event::ImageReady { container, image_id } => {
                if let Some(c) = self.find(&container) {
                    c.image.done();
                    c.image_id = image_id;
                }
            }
            Event::ImageFailed { container, reason, message } => {
                self.image_failed(&container, &reason, message, now, out);
            }
            Event::Started { container, attempt, id, at } => {
                self.container_started(&container, attempt, id, at, out);
            }
            Event::ConfigFailed { container, attempt, message } => {
                if let Some(c) = self.find(&container).filter(|c| c.is_current(attempt)) {
                    // It never reached the runtime: its number is used again.
                    c.next -= 1;
                    let until = Some(now.mono + CONFIG_RETRY);
                    let reason = "CreateContainerConfigError".to_owned();
                    c.state = State::Waiting { reason, message: message.clone(), until };
                    out.push(warn("Failed", format!("Error: {message}"), Some(container)));
                }
            }
            Event::StartFailed { container, attempt, message } => {
                out.push(warn("Failed", format!("Error: {message}"), Some(container.clone())));
                let exit = Exit {
                    code: START_FAILED_CODE,
                    signal: None,
                    oom_killed: false,
                    started: None,
                    finished: now.wall,
                    message,
                };
                self.exited(&container, attempt, exit, Some("StartError"), now, out);
            }
            Event::Exited { container, attempt, exit } => {
                self.exited(&container, attempt, exit, None, now, out);
            }
            Event::Probe { container, attempt, kind, healthy, message } => {
                self.probed(&container, attempt, kind, healthy, &message, now, out);
            }
            _ => {}
        }
    }

    fn updated(&mut self, plan: PodPlan, now: Now, out: &mut Vec<Effect>) {
        let grace = plan.grace;
        for new in &plan.containers {
            let Some(c) = self.find(&new.name) else { continue };
            let image_changed = c.plan.image != new.image && c.plan.role != Role::Init;
            c.plan = new.clone();
            if !image_changed {
                continue;
            }
            c.image = Step { at: StepAt::Idle, backoff: Backoff::standard() };
            if c.alive() {
                c.replaced = true;
                let text = format!("Container {} definition changed, will be restarted", new.name);
                stop(c, now.mono + grace, now, out);
                out.push(note("Killing", text, Some(new.name.clone())));
            }
        }
        self.plan = plan;
    }

    fn image_failed(&mut self, container: &str, reason: &str, message: String, now: Now, out: &mut Vec<Effect>) {
        let Some(c) = self.find(container) else { return };
        c.image.failed(now);
        let until = c.image.deadline();
        out.push(warn("Failed", message.clone(), Some(container.to_owned())));
        out.push(warn("Failed", format!("Error: {reason}"), Some(container.to_owned())));
        let state = State::Waiting { reason: reason.to_owned(), message, until };
        // A run that ended stays readable as the last one while its successor waits.
        if let State::Ended(e) = std::mem::replace(&mut c.state, state) {
            c.last = Some(e);
        }
    }

    fn container_started(&mut self, container: &str, attempt: u32, id: String, at: Timestamp, out: &mut Vec<Effect>) {
        let Some(c) = self.find(container).filter(|c| c.is_current(attempt)) else { return };
        match &mut c.state {
            State::Starting => {}
            // Its exit was told before its start.
            State::Ended(e) if e.id.is_empty() => {
                e.id = id;
                return;
            }
            _ => return,
        }
        c.state = State::Running { since: at };
        c.id = id;
        c.started = !c.plan.startup_probe;
        c.probe_ready = false;
        let name = container.to_owned();
        out.push(note("Created", format!("Created container: {name}"), Some(name.clone())));
        out.push(note("Started", format!("Started container {name}"), Some(name)));
        if c.plan.startup_probe {
            let kind = ProbeKind::Startup;
            out.push(Effect::StartProbe { container: container.to_owned(), attempt, kind });
        } else {
            start_probes(c, out);
        }
    }

    fn exited(
        &mut self,
        container: &str,
        attempt: u32,
        exit: Exit,
        reason: Option<&str>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let label = format!("{}_{}({})", self.plan.name, self.plan.namespace, self.plan.uid);
        let ending = self.ending.is_some();
        let policy = self.plan.restart;
        let Some(c) = self.find(container).filter(|c| c.is_current(attempt) && c.alive()) else {
            return;
        };
        out.push(Effect::StopProbes { container: container.to_owned() });
        let reason = match reason {
            Some(r) => r,
            None if exit.oom_killed => "OOMKilled",
            None if exit.code == 0 => "Completed",
            None => "Error",
        };
        let ran = match (&c.state, exit.started) {
            (State::Running { since }, _) => exit.finished.duration_since(*since),
            (_, Some(started)) => exit.finished.duration_since(started),
            _ => jiff::SignedDuration::ZERO,
        };
        if ran.as_secs() >= RESET_AFTER.as_secs() as i64 {
            c.crashed = false;
            c.crash_backoff.reset();
        }
        let ended = Ended { exit, reason: reason.to_owned(), id: std::mem::take(&mut c.id) };
        c.stopping = None;
        c.started = false;
        c.probe_ready = false;
        let again = !ending && advance::restarts(c, &ended, policy);
        c.state = State::Ended(ended.clone());
        if !again || c.replaced {
            return;
        }
        if !c.crashed {
            c.crashed = true;
            return;
        }
        let wait = c.crash_backoff.advance();
        c.last = Some(ended);
        let secs = wait.as_secs();
        c.state = State::Waiting {
            reason: "CrashLoopBackOff".into(),
            message: format!("back-off {secs}s restarting failed container={container} pod={label}"),
            until: Some(now.mono + wait),
        };
        let text = format!("Back-off restarting failed container {container} in pod {label}");
        out.push(warn("BackOff", text, Some(container.to_owned())));
    }

    #[allow(clippy::too_many_arguments)]
    fn probed(
        &mut self,
        container: &str,
        attempt: u32,
        kind: ProbeKind,
        healthy: bool,
        message: &str,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let grace = self.plan.grace;
        let ending = self.ending.is_some();
        let Some(c) = self.find(container).filter(|c| c.is_current(attempt)) else { return };
        if !matches!(c.state, State::Running { .. }) {
            return;
        }
        match (kind, healthy) {
            (ProbeKind::Readiness, healthy) => c.probe_ready = healthy,
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup, true) if !c.started => {
                c.started = true;
                start_probes(c, out);
            }
            (ProbeKind::Startup, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                if ending || c.stopping.is_some() {
                    return;
                }
                let word = kind.word().to_lowercase();
                let text = format!("Container {container} failed {word} probe, will be restarted");
                tracing::debug!(container, message, "probe failed for good");
                stop(c, now.mono + grace, now, out);
                out.push(note("Killing", text, Some(container.to_owned())));
            }
        }
    }

    fn find(&mut self, name: &str) -> Option<&mut Record> {
        self.containers.iter_mut().find(|c| c.plan.name == name)
    }
}

/// How long a container waits whose configuration is incomplete: the missing ConfigMap or Secret
/// is usually being applied in the same breath.
const CONFIG_RETRY: Duration = Duration::from_secs(2);

fn start_probes(c: &Record, out: &mut Vec<Effect>) {
    let wanted = [(c.plan.readiness_probe, ProbeKind::Readiness), (c.plan.liveness_probe, ProbeKind::Liveness)];
    for (_, kind) in wanted.into_iter().filter(|(want, _)| *want) {
        let container = c.plan.name.clone();
        out.push(Effect::StartProbe { container, attempt: c.attempt(), kind });
    }
}

/// Asks a running container to stop, with SIGKILL due at `kill_at`.
pub(crate) fn stop(c: &mut Record, kill_at: Duration, now: Now, out: &mut Vec<Effect>) {
    use super::event::StopKind;
    c.stopping = Some(Stopping { kill_at, killed: false });
    out.push(Effect::Stop {
        container: c.plan.name.clone(),
        attempt: c.attempt(),
        kind: StopKind::Ask { grace: kill_at.saturating_sub(now.mono) },
    });
}

pub(crate) fn note(reason: &'static str, message: String, container: Option<String>) -> Effect {
    Effect::Note(Note { warning: false, reason, message, container })
}

pub(crate) fn warn(reason: &'static str, message: String, container: Option<String>) -> Effect {
    Effect::Note(Note { warning: true, reason, message, container })
}
