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
//!                                             -> Recreate  back to volumes; with Never and
//!                                                          something that ran: Keep
//!
//!   a container:  Waiting -> (image) -> Starting -> Running -> Ended -> Waiting (back-off) …
//! ```
//!
//! Invariants, each a property test: nothing starts before volumes, sandbox and network are done
//! ("policy before process"); an exit is never lost; one start of a container at a time; nothing
//! starts once the Pod is ending; a phase that says the end stays; the API object goes last, after
//! cleanup.
//!
//! The machine is level-based: every event is recorded, then [`Machine::advance`] derives from
//! the recorded state which effects are due.
mod advance;
mod containers;
mod phase;
#[cfg(test)]
mod properties;
mod record;
mod recover;
#[cfg(test)]
mod tests;

pub use phase::{Condition, Phase};
pub(crate) use record::{CONFIG_ERROR, DownStep, Ending, Step, StepAt, Stopping, Then, waiting};
pub use record::{Ended, Record, State};
pub use recover::{Persisted, ShimContainer, ShimReport};

use super::{
    backoff::Backoff,
    event::{Effect, Event, Note, Now},
    plan::{PodPlan, Role},
};
use jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// What a Pod gets at least between SIGTERM and SIGKILL when its object is gone already
/// (Kubernetes: `minimumGracePeriodInSeconds`, 2 s).
pub const GONE_GRACE: Duration = Duration::from_secs(2);

/// The lifecycle of one Pod.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) plan: PodPlan,
    pub(crate) containers: Vec<Record>,
    pub(crate) addresses: Vec<String>,
    /// What a finished Pod had: status goes on showing it, as in Kubernetes.
    pub(crate) released: Vec<String>,
    pub(crate) start_time: Timestamp,
    pub(crate) deadline_exceeded: bool,
    pub(crate) conditions: BTreeMap<&'static str, Condition>,
    /// How long the Pod had been active when this agent took it, at `started_mono`: the monotonic
    /// clock may begin with the agent.
    active_before: Duration,
    started_mono: Duration,
    /// When the last event was looked at.
    seen: Duration,
    volumes: Step,
    sandbox: Step,
    network: Step,
    /// Attach was tried: netd must be told at the end.
    network_touched: bool,
    /// netd has acknowledged this sandbox's network once. It stands while it is handed over again, to
    /// an agent or a netd that was started anew: readiness goes by this, starts by `network`.
    attached: bool,
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
            released: Vec::new(),
            start_time: now.wall,
            deadline_exceeded: false,
            conditions: BTreeMap::new(),
            active_before: Duration::ZERO,
            started_mono: now.mono,
            seen: now.mono,
            volumes: Step::new(),
            sandbox: Step::new(),
            network: Step::new(),
            network_touched: false,
            attached: false,
            initialized: false,
            ending: None,
            gone: false,
            last_persisted: None,
        }
    }

    /// Records `event` and answers everything that is due at `now`, in order.
    pub fn on_event(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        self.seen = now.mono;
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
                self.attached = true;
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

    fn updated(&mut self, plan: PodPlan, now: Now, out: &mut Vec<Effect>) {
        let grace = plan.grace;
        for new in &plan.containers {
            let Some(c) = self.find(&new.name) else { continue };
            let image_changed = c.plan.image != new.image && c.plan.role != Role::Init;
            c.plan = new.clone();
            if !image_changed {
                continue;
            }
            if !c.image.is_busy() {
                // One under way is begun again by the driver, which knows what it asked for.
                c.image = Step { at: StepAt::Idle, backoff: Backoff::standard() };
            }
            if c.alive() {
                c.replaced = true;
                let text = format!("Container {} definition changed, will be restarted", new.name);
                stop(c, now.mono + grace, now, out);
                out.push(note("Killing", text, Some(new.name.clone())));
            }
        }
        self.plan = plan;
    }

    fn find(&mut self, name: &str) -> Option<&mut Record> {
        self.containers.iter_mut().find(|c| c.plan.name == name)
    }
}

/// Asks a running container to stop, with SIGKILL due at `kill_at`.
pub(crate) fn stop(c: &mut Record, kill_at: Duration, now: Now, out: &mut Vec<Effect>) {
    use super::event::StopKind;
    c.stopping = Some(Stopping::until(kill_at, c.plan.pre_stop && kill_at > now.mono));
    // It has its verdict; whether it is alive while it goes is of no interest.
    out.push(Effect::StopProbes { container: c.plan.name.clone(), readiness: false });
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
