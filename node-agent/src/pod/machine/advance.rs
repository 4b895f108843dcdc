//! What is due: derived from the recorded state after every event.
use super::{
    super::{
        event::{Effect, Event, Now, StopKind},
        plan::{RestartPolicy, Role},
    },
    DownStep, Ended, Ending, Machine, Record, State, Step, StepAt, Then, note, stop, waiting, warn,
};
use jiff::Timestamp;
use std::time::Duration;

/// Would this container be started again after that end?
pub(super) fn restarts(c: &Record, ended: &Ended, policy: RestartPolicy) -> bool {
    let failed = ended.exit.code != 0 || c.unhealthy;
    match (c.plan.role, policy) {
        _ if c.replaced => true,
        (Role::Sidecar, _) => true,
        (Role::Init, policy) => failed && policy != RestartPolicy::Never,
        (Role::Main, RestartPolicy::Always) => true,
        (Role::Main, RestartPolicy::OnFailure) => failed,
        (Role::Main, RestartPolicy::Never) => false,
    }
}

impl Machine {
    /// The next monotonic time at which [`Event::Tick`] may change something.
    pub fn next_deadline(&self) -> Option<Duration> {
        let mut all: Vec<Duration> = Vec::new();
        if let Some(e) = &self.ending {
            all.extend(e.step.deadline());
            if e.down == DownStep::Stop {
                all.extend(self.containers.iter().filter_map(kill_deadline));
            }
        } else {
            all.extend([&self.volumes, &self.sandbox, &self.network].iter().filter_map(|s| s.deadline()));
            all.extend(self.active_deadline());
            for c in &self.containers {
                all.extend(kill_deadline(c));
                if let State::Waiting { until: Some(t), .. } = c.state {
                    all.push(t);
                }
                all.extend(pull_backoff_shown_at(c));
            }
        }
        // What was due when the last event was looked at and is still here waits for something
        // else (an init container, say): it is no reason to look again.
        all.into_iter().filter(|t| *t > self.seen).min()
    }

    fn active_deadline(&self) -> Option<Duration> {
        let limit = self.plan.active_deadline.filter(|_| !self.deadline_exceeded)?;
        Some(self.started_mono + limit.saturating_sub(self.active_before))
    }

    /// Emits everything that is due now.
    pub(super) fn advance(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.kill_overdue(now, out);
        if self.ending.is_none() {
            if self.active_deadline().is_some_and(|t| t <= now.mono) {
                self.deadline_exceeded = true;
                let text = "Pod was active on the node longer than the specified deadline".to_owned();
                out.push(warn("DeadlineExceeded", text, None));
                self.end(Then::Keep, self.plan.grace, now);
            } else if self.is_finished() {
                self.end(Then::Keep, self.plan.grace, now);
            }
        }
        if self.ending.is_some() {
            self.advance_ending(now, out);
        }
        if self.ending.is_none() {
            self.advance_running(now, out);
        }
    }

    fn advance_running(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.volumes.begin(now) {
            out.push(Effect::PrepareVolumes);
        }
        if self.volumes.is_done() && self.sandbox.begin(now) {
            out.push(Effect::CreateSandbox);
        }
        if self.sandbox.is_done() && !self.plan.host_network && self.network.begin(now) {
            self.network_touched = true;
            out.push(Effect::AttachNetwork);
        }
        let network = self.plan.host_network || self.network.is_done();
        if !(self.volumes.is_done() && self.sandbox.is_done() && network) {
            return;
        }
        self.advance_containers(now, out);
    }

    /// Init containers one after the other, then all the rest.
    fn advance_containers(&mut self, now: Now, out: &mut Vec<Effect>) {
        let policy = self.plan.restart;
        let initialized = self.initialized;
        for c in self.containers.iter_mut().filter(|c| c.plan.role != Role::Main) {
            match c.plan.role {
                Role::Init if initialized => continue,
                Role::Init if matches!(&c.state, State::Ended(e) if e.exit.code == 0) => continue,
                Role::Init => {
                    due(c, policy, now, out);
                    return;
                }
                _ => {
                    due(c, policy, now, out);
                    if !initialized && !c.started {
                        return;
                    }
                }
            }
        }
        if !self.initialized {
            self.initialized = true;
            for c in self.containers.iter_mut().filter(|c| c.plan.role == Role::Main) {
                if matches!(&c.state, State::Waiting { reason, .. } if reason == "PodInitializing") {
                    c.state = waiting("ContainerCreating");
                }
            }
        }
        for c in self.containers.iter_mut().filter(|c| c.plan.role == Role::Main) {
            due(c, policy, now, out);
        }
    }

    /// Begins to end the Pod, or hastens and widens an ending under way.
    pub(super) fn end(&mut self, then: Then, grace: Duration, now: Now) {
        let kill_at = now.mono + grace;
        match &mut self.ending {
            None => {
                self.ending = Some(Ending { then, kill_at, down: DownStep::Stop, kept_logs: false, step: Step::new() });
            }
            Some(e) => {
                e.then = e.then.max(then);
                e.kill_at = e.kill_at.min(kill_at);
                if e.down == DownStep::Kept && e.then == Then::Remove {
                    // What ran is gone long since; the logs and the object remain.
                    e.down = DownStep::Cleanup;
                    e.step = Step::new();
                }
                for s in self.containers.iter_mut().filter_map(|c| c.stopping.as_mut()) {
                    s.hasten(kill_at, grace.is_zero());
                }
            }
        }
    }

    pub(super) fn sandbox_lost(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.sandbox.is_done() {
            return;
        }
        self.sandbox.at = StepAt::Idle;
        self.attached = false;
        if !self.network.is_busy() {
            // One under way is awaited before the teardown: netd must not attach after detaching.
            self.network.at = StepAt::Idle;
        }
        let text = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        out.push(note("SandboxChanged", text, None));
        // Everything in it died with it, unseen. What is still being started is awaited: its start
        // must not come to pass in the next sandbox.
        for c in &mut self.containers {
            let State::Running { since } = c.state else { continue };
            let id = std::mem::take(&mut c.id);
            out.push(Effect::StopProbes { container: c.plan.name.clone(), readiness: true });
            c.state = State::Ended(unknown_end(id, Some(since), now.wall));
            c.stopping = None;
            c.started = false;
            c.probe_ready = false;
        }
        self.end(Then::Recreate, Duration::ZERO, now);
    }

    fn advance_ending(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(mut e) = self.ending.take() else { return };
        if e.down == DownStep::Stop {
            self.stop_all(e.kill_at, now, out);
            let busy = self.volumes.is_busy() || self.sandbox.is_busy() || self.network.is_busy();
            if busy || self.containers.iter().any(Record::alive) {
                self.ending = Some(e);
                return;
            }
            if e.then == Then::Recreate && self.stays_down() {
                e.then = Then::Keep;
            }
            e.step = Step::new();
            e.down = if self.network_touched { DownStep::Detach } else { DownStep::Cleanup };
        }
        match e.down {
            DownStep::Detach if e.step.begin(now) => out.push(Effect::DetachNetwork),
            DownStep::Cleanup if e.step.begin(now) => {
                e.kept_logs = e.then != Then::Remove;
                out.push(Effect::Cleanup { keep_logs: e.kept_logs });
            }
            DownStep::Delete if e.step.begin(now) => out.push(Effect::DeleteFromApi),
            DownStep::Over => out.push(Effect::Finished),
            _ => {}
        }
        self.ending = Some(e);
    }

    /// One step of the teardown succeeded.
    pub(super) fn step_down(&mut self, event: &Event) {
        let gone = self.gone;
        let Some(e) = &mut self.ending else { return };
        let next = match (event, e.down) {
            (Event::NetworkDetached, DownStep::Detach) => {
                self.network_touched = false;
                self.attached = false;
                self.network = Step::new();
                let had = std::mem::take(&mut self.addresses);
                if e.then == Then::Keep {
                    // Only of a Pod whose phase says that it has ended: nobody takes the address for
                    // its own then, and netd may give it to another.
                    self.released = had;
                }
                DownStep::Cleanup
            }
            (Event::CleanedUp, DownStep::Cleanup) => match e.then {
                Then::Recreate => {
                    self.reset_for_new_sandbox();
                    return;
                }
                Then::Keep => DownStep::Kept,
                // Deleted while it was cleaned up to be kept: the rest goes, too.
                Then::Remove if e.kept_logs => DownStep::Cleanup,
                Then::Remove if gone => DownStep::Over,
                Then::Remove => DownStep::Delete,
            },
            (Event::ApiDeleted, DownStep::Delete) => DownStep::Over,
            _ => return,
        };
        e.down = next;
        e.step = Step::new();
        if next == DownStep::Kept {
            e.step.done();
        }
    }

    /// With `Never` no sandbox follows one that something ran in, as in Kubernetes: an init container
    /// would run a second time, in a Pod that has failed.
    fn stays_down(&self) -> bool {
        self.plan.restart == RestartPolicy::Never && self.containers.iter().any(|c| c.next > 0)
    }

    fn reset_for_new_sandbox(&mut self) {
        self.ending = None;
        self.volumes = Step::new();
        self.sandbox = Step::new();
        self.network = Step::new();
        self.attached = false;
        self.initialized = false;
        for c in self.containers.iter_mut().filter(|c| c.plan.role == Role::Init) {
            // A new sandbox is initialised anew, as Kubernetes does it.
            if !c.image.is_busy() {
                c.image.at = StepAt::Idle;
            }
            if let State::Ended(e) = std::mem::replace(&mut c.state, waiting("PodInitializing")) {
                c.last = Some(e);
            }
        }
    }

    /// Asks what runs to stop: sidecars only once the others have ended.
    fn stop_all(&mut self, kill_at: Duration, now: Now, out: &mut Vec<Effect>) {
        let others = self.containers.iter().any(|c| c.plan.role != Role::Sidecar && c.alive());
        for c in &mut self.containers {
            if c.plan.role == Role::Sidecar && others && now.mono < kill_at {
                continue;
            }
            // One that is still being started is stopped when the runtime has answered.
            if !matches!(c.state, State::Running { .. }) {
                continue;
            }
            match &mut c.stopping {
                Some(s) => s.hasten(kill_at, false),
                None => {
                    let name = c.plan.name.clone();
                    stop(c, kill_at, now, out);
                    out.push(note("Killing", format!("Stopping container {name}"), Some(name)));
                }
            }
        }
        self.kill_overdue(now, out);
    }

    fn kill_overdue(&mut self, now: Now, out: &mut Vec<Effect>) {
        for c in &mut self.containers {
            let due = c.stopping.and_then(|s| s.kill_due()).is_some_and(|t| t <= now.mono);
            if !due || !matches!(c.state, State::Running { .. }) {
                continue;
            }
            let attempt = c.attempt();
            if let Some(s) = &mut c.stopping {
                s.killed = true;
            }
            out.push(Effect::Stop { container: c.plan.name.clone(), attempt, kind: StopKind::Kill });
        }
    }
}

/// The end of a run that nobody saw.
pub(super) fn unknown_end(id: String, since: Option<Timestamp>, now: Timestamp) -> Ended {
    use super::super::event::Exit;
    Ended {
        exit: Exit {
            code: 137,
            signal: Some(9),
            oom_killed: false,
            started: since,
            finished: now,
            message: "The container could not be located when the pod was terminated".into(),
        },
        reason: "ContainerStatusUnknown".into(),
        id,
    }
}

fn kill_deadline(c: &Record) -> Option<Duration> {
    c.stopping.filter(|_| c.alive()).and_then(|s| s.kill_due())
}

/// How long the error itself is shown before the status says that its repetition is awaited.
const ERROR_SHOWN: Duration = Duration::from_secs(1);

fn pull_backoff_shown_at(c: &Record) -> Option<Duration> {
    match &c.state {
        State::Waiting { reason, until: Some(t), .. } if reason == "ErrImagePull" => {
            Some((*t + ERROR_SHOWN).saturating_sub(c.image.backoff.current()))
        }
        _ => None,
    }
}

fn show_pull_backoff(c: &mut Record, until: Duration, why: &str, out: &mut Vec<Effect>) {
    let text = format!("Back-off pulling image \"{}\"", c.plan.image);
    out.push(note("BackOff", text.clone(), Some(c.plan.name.clone())));
    let message = format!("{text}: {why}");
    c.state = State::Waiting { reason: "ImagePullBackOff".into(), message, until: Some(until) };
}

/// Starts the container if its time has come: first its image, then itself.
fn due(c: &mut Record, policy: RestartPolicy, now: Now, out: &mut Vec<Effect>) {
    match &c.state {
        State::Starting | State::Running { .. } => return,
        State::Waiting { until: Some(t), message, .. } if *t > now.mono => {
            let (until, message) = (*t, message.clone());
            if pull_backoff_shown_at(c).is_some_and(|at| at <= now.mono) {
                show_pull_backoff(c, until, &message, out);
            }
            return;
        }
        State::Ended(e) if !restarts(c, e, policy) => return,
        State::Waiting { .. } | State::Ended(_) => {}
    }
    let container = c.plan.name.clone();
    if c.image.begin(now) {
        out.push(Effect::EnsureImage { container });
        return;
    }
    if !c.image.is_done() {
        return;
    }
    // The next start looks at the image again: its policy may be Always.
    c.image.at = StepAt::Idle;
    let attempt = c.next;
    c.next += 1;
    c.replaced = false;
    c.unhealthy = false;
    if let State::Ended(e) = std::mem::replace(&mut c.state, State::Starting) {
        c.last = Some(e);
    }
    out.push(Effect::Start { container, attempt });
}
