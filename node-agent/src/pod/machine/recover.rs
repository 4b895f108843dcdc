//! What survives the agent: the part of the machine's state that is kept on disk, and the
//! machine's rebirth from it and from what the Pod's shim reports.
use super::{
    super::{
        event::{Exit, Now},
        plan::{PodPlan, Role},
    },
    Condition, DownStep, Ended, Ending, Machine, State, Step, Then,
    advance::unknown_end,
    waiting,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The format this build writes.
const VERSION: u32 = 1;

/// The machine's state on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Persisted {
    version: u32,
    uid: String,
    start_time: Timestamp,
    deadline_exceeded: bool,
    initialized: bool,
    /// The Pod ran to its end; nothing of it is to be started again.
    finished: bool,
    /// A sandbox was made, or about to be.
    sandbox: bool,
    /// netd had acknowledged the sandbox's network.
    #[serde(default)]
    attached: bool,
    /// What netd gave: probes go on by them before netd has answered again.
    #[serde(default)]
    addresses: Vec<String>,
    /// What it had when it finished.
    #[serde(default)]
    released: Vec<String>,
    containers: Vec<PersistedContainer>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PersistedContainer {
    name: String,
    next: u32,
    alive: bool,
    since: Option<Timestamp>,
    ended: Option<Ended>,
    last: Option<Ended>,
    crashed: bool,
    backoff_secs: u64,
    image_id: String,
    /// Of the image: the agent that stops it may not be the one that started it.
    #[serde(default)]
    stop_signal: Option<String>,
    id: String,
    /// Had passed its startup probe, or has none.
    #[serde(default)]
    started: bool,
    /// Its readiness probe's last verdict.
    #[serde(default)]
    probe_ready: bool,
    /// Stopped because its image was changed.
    #[serde(default)]
    replaced: bool,
    /// Stopped because a probe failed.
    #[serde(default)]
    unhealthy: bool,
}

/// One container as a shim reports it after the agent's restart.
#[derive(Clone, Debug)]
pub struct ShimContainer {
    /// Its name in the Pod.
    pub name: String,
    /// Which start of it.
    pub attempt: u32,
    /// The runtime's id.
    pub id: String,
    /// When its program was let go.
    pub started: Option<Timestamp>,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

/// What a shim holds, or had written down. Containers that were made but never started are not in
/// it: the driver deletes those first.
#[derive(Clone, Debug, Default)]
pub struct ShimReport {
    /// Containers, running and ended; of a dead shim only those whose end it had seen.
    pub containers: Vec<ShimContainer>,
    /// The shim is dead, and everything that ran in the sandbox with it.
    pub dead: bool,
}

impl Persisted {
    /// True for a text this build can read and that belongs to `uid`.
    pub fn fits(&self, uid: &str) -> bool {
        self.version == VERSION && self.uid == uid
    }

    /// `imageID` of every container that has had an image.
    pub fn image_ids(&self) -> impl Iterator<Item = &str> {
        self.containers.iter().map(|c| c.image_id.as_str()).filter(|id| !id.is_empty())
    }
}

impl Machine {
    pub(super) fn persisted(&self) -> Persisted {
        let finished = self.ending.as_ref().is_some_and(|e| e.then == Then::Keep && e.down != DownStep::Stop);
        let containers = self.containers.iter().map(|c| PersistedContainer {
            name: c.plan.name.clone(),
            next: c.next,
            alive: c.alive(),
            since: match c.state {
                State::Running { since } => Some(since),
                _ => None,
            },
            ended: match &c.state {
                State::Ended(e) => Some(e.clone()),
                _ => None,
            },
            last: c.last.clone(),
            crashed: c.crashed,
            backoff_secs: c.crash_backoff.current().as_secs(),
            image_id: c.image_id.clone(),
            stop_signal: c.stop_signal.clone(),
            id: c.id.clone(),
            started: c.started,
            probe_ready: c.probe_ready,
            replaced: c.replaced,
            unhealthy: c.unhealthy,
        });
        Persisted {
            version: VERSION,
            uid: self.plan.uid.clone(),
            start_time: self.start_time,
            deadline_exceeded: self.deadline_exceeded,
            initialized: self.initialized,
            finished,
            sandbox: self.sandbox.is_done() || self.sandbox.is_busy(),
            attached: self.attached,
            addresses: self.addresses.clone(),
            released: self.released.clone(),
            containers: containers.collect(),
        }
    }

    /// The snapshot that `Effect::Persist` asks to be written.
    pub fn snapshot(&self) -> Option<&Persisted> {
        self.last_persisted.as_ref()
    }

    /// Transition times of conditions that the API object already carries.
    pub fn seed_condition(&mut self, kind: &'static str, condition: Condition) {
        self.conditions.insert(kind, condition);
    }

    /// A Pod whose object says that it has ended, of which this node knows nothing more: there is
    /// nothing to run, and its status stays as it is.
    pub fn finished_elsewhere(plan: PodPlan, now: Now) -> Self {
        let mut machine = Self::new(plan, now);
        machine.keep();
        machine
    }

    fn keep(&mut self) {
        let mut step = Step::new();
        step.done();
        self.ending =
            Some(Ending { then: Then::Keep, kill_at: Duration::ZERO, down: DownStep::Kept, kept_logs: true, step });
    }

    /// The machine as it was before the agent ended. `shim` is what the Pod's shim says, or left
    /// behind when it was killed; `None` when there is nothing of it (the machine rebooted).
    pub fn recover(plan: PodPlan, saved: &Persisted, shim: Option<&ShimReport>, now: Now) -> Self {
        let mut m = Self::new(plan, now);
        let (shim, last_words) = match shim {
            Some(report) if report.dead => (None, report.containers.as_slice()),
            living => (living, &[][..]),
        };
        m.active_since(saved.start_time, now);
        m.deadline_exceeded = saved.deadline_exceeded;
        m.initialized = saved.initialized;
        m.released.clone_from(&saved.released);
        if shim.is_some() {
            m.addresses.clone_from(&saved.addresses);
            m.attached = saved.attached;
        }
        for p in &saved.containers {
            m.recover_container(p, now);
        }
        if saved.finished && shim.is_none() {
            m.keep();
            return m;
        }
        match shim {
            Some(report) => m.adopt(report, now),
            None if saved.sandbox || m.containers.iter().any(super::Record::alive) => {
                m.lost_while_away(last_words, now)
            }
            None => {}
        }
        m
    }

    /// activeDeadlineSeconds counts from startTime, on the wall clock by definition. A clock that was
    /// put back makes the Pod newborn, at most.
    fn active_since(&mut self, start: Timestamp, now: Now) {
        self.start_time = start;
        let active = now.wall.duration_since(start).max(jiff::SignedDuration::ZERO);
        (self.active_before, self.started_mono) = (active.unsigned_abs(), now.mono);
    }

    fn recover_container(&mut self, p: &PersistedContainer, now: Now) {
        let initialized = self.initialized;
        let Some(c) = self.find(&p.name) else { return };
        c.next = p.next;
        c.last = p.last.clone();
        c.crashed = p.crashed;
        c.crash_backoff.resume(Duration::from_secs(p.backoff_secs));
        c.image_id = p.image_id.clone();
        c.stop_signal = p.stop_signal.clone();
        c.id = p.id.clone();
        c.started = p.alive && (p.started || !c.plan.startup_probe);
        // Until its probe says otherwise: that the agent was away changed nothing about it.
        c.probe_ready = p.alive && p.probe_ready;
        c.replaced = p.replaced;
        c.unhealthy = p.unhealthy;
        c.state = if p.alive {
            p.since.map_or(State::Starting, |since| State::Running { since })
        } else if let Some(e) = &p.ended {
            State::Ended(e.clone())
        } else if c.next > 0 && p.backoff_secs > 0 {
            // How long it waited already is not known after a reboot; wait the whole time.
            State::Waiting {
                reason: "CrashLoopBackOff".into(),
                message: format!("back-off {}s restarting failed container={}", p.backoff_secs, p.name),
                until: Some(now.mono + c.crash_backoff.current()),
            }
        } else if initialized || c.plan.role != Role::Main {
            waiting("ContainerCreating")
        } else {
            c.state.clone()
        };
    }

    fn adopt(&mut self, report: &ShimReport, now: Now) {
        self.sandbox.done();
        self.network_touched = !self.plan.host_network;
        let mut replay = Vec::new();
        for c in &mut self.containers {
            let name = &c.plan.name;
            let newest = report.containers.iter().filter(|s| s.name == *name).max_by_key(|s| s.attempt);
            match newest {
                // Its end is written down already; only the shim has not been told to forget it.
                Some(s) if c.last.as_ref().is_some_and(|e| e.id == s.id) && !c.alive() => {}
                Some(s) if s.attempt + 1 >= c.next && !matches!(c.state, State::Ended(_)) => {
                    // Of a run that nothing was written down of, nothing is known either.
                    let known = s.attempt + 1 == c.next && s.id == c.id;
                    c.next = s.attempt + 1;
                    c.id = s.id.clone();
                    c.started = known && c.started || !c.plan.startup_probe;
                    c.probe_ready &= known;
                    c.state = State::Running { since: s.started.unwrap_or(now.wall) };
                    if let Some(exit) = &s.exit {
                        replay.push((name.clone(), s.attempt, s.id.clone(), exit.clone()));
                    }
                }
                // Written down, but the shim never heard of it: that start did not happen.
                _ if c.state == State::Starting => {
                    c.next = c.next.saturating_sub(1);
                    c.state = waiting("ContainerCreating");
                }
                _ => {
                    if let State::Running { since } = c.state {
                        let id = std::mem::take(&mut c.id);
                        c.state = State::Ended(unknown_end(id, Some(since), now.wall));
                        c.started = false;
                        c.probe_ready = false;
                    }
                }
            }
        }
        for (name, attempt, id, exit) in replay {
            self.exited(&name, attempt, &id, exit, None, now, &mut Vec::new());
        }
    }

    /// The sandbox is gone with everything in it; what it left behind is cleaned up first. An end
    /// that its shim had seen is as good as told.
    fn lost_while_away(&mut self, last_words: &[ShimContainer], now: Now) {
        self.network_touched = !self.plan.host_network;
        for s in last_words {
            let Some(exit) = &s.exit else { continue };
            let Some(c) = self.find(&s.name).filter(|c| c.is_current(s.attempt) && c.alive()) else { continue };
            c.state = State::Running { since: s.started.unwrap_or(exit.finished) };
            self.exited(&s.name, s.attempt, &s.id, exit.clone(), None, now, &mut Vec::new());
        }
        for c in self.containers.iter_mut().filter(|c| c.alive()) {
            let id = std::mem::take(&mut c.id);
            let since = match c.state {
                State::Running { since } => Some(since),
                _ => None,
            };
            c.state = State::Ended(unknown_end(id, since, now.wall));
            c.started = false;
            c.probe_ready = false;
        }
        self.end(Then::Recreate, Duration::ZERO, now);
    }

    /// Containers that run, for whoever starts their probes anew after an adoption.
    pub fn running(&self) -> impl Iterator<Item = (&super::Record, u32)> {
        self.containers.iter().filter(|c| matches!(c.state, State::Running { .. })).map(|c| (c, c.attempt()))
    }
}

impl Machine {
    /// A Pod of which only the shim is left: what it says is all there is.
    pub fn adopt_blind(plan: PodPlan, report: &ShimReport, now: Now) -> Self {
        let mut m = Self::new(plan, now);
        let earliest = report.containers.iter().filter_map(|c| c.started).min();
        m.active_since(earliest.unwrap_or(now.wall), now);
        m.initialized = report
            .containers
            .iter()
            .any(|s| m.containers.iter().any(|c| c.plan.name == s.name && c.plan.role == Role::Main));
        m.adopt(report, now);
        m
    }
}
