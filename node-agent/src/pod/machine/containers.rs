//! What happens to containers: recorded, and answered where the answer depends on the event itself.
use super::{
    super::{
        backoff::RESET_AFTER,
        event::{Effect, Event, Exit, Now, ProbeKind},
        plan::{RestartPolicy, Role},
    },
    CONFIG_ERROR, Ended, Machine, Record, State, Then, advance, note, stop, warn,
};
use jiff::Timestamp;
use std::time::Duration;

/// The runtime's code for "could not be started" (Kubernetes, as shells: 128).
const START_FAILED_CODE: i32 = 128;
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

fn tell_start(name: &str, out: &mut Vec<Effect>) {
    out.push(note("Created", format!("Created container: {name}"), Some(name.to_owned())));
    out.push(note("Started", format!("Started container {name}"), Some(name.to_owned())));
}

impl Machine {
    pub(super) fn record_container(&mut self, event: Event, now: Now, out: &mut Vec<Effect>) {
        match event {
            Event::ImageReady { container, image_id, stop_signal } => {
                if let Some(c) = self.find(&container) {
                    c.image.done();
                    c.image_id = image_id;
                    c.stop_signal = stop_signal;
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
                    let reason = CONFIG_ERROR.to_owned();
                    c.config_error = Some(message.clone());
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
                self.exited(&container, attempt, "", exit, Some("StartError"), now, out);
            }
            Event::Exited { container, attempt, id, exit } => {
                self.exited(&container, attempt, &id, exit, None, now, out);
            }
            Event::Asked { container, attempt } => {
                if let Some(c) = self.find(&container).filter(|c| c.is_current(attempt))
                    && let Some(stopping) = &mut c.stopping
                {
                    stopping.asked(now);
                }
            }
            Event::KillFailed { container, attempt, message } => {
                if let Some(c) = self.find(&container).filter(|c| c.is_current(attempt) && c.alive())
                    && let Some(stopping) = &mut c.stopping
                {
                    stopping.kill_failed(now);
                    let text = format!("error killing container {container}, will be tried again: {message}");
                    out.push(warn("FailedKillPod", text, Some(container)));
                }
            }
            Event::Probe { container, attempt, kind, healthy, message } => {
                self.probed(&container, attempt, kind, healthy, &message, now, out);
            }
            _ => {}
        }
    }

    fn image_failed(&mut self, container: &str, reason: &str, message: String, now: Now, out: &mut Vec<Effect>) {
        let ending = self.ending.as_ref().is_some_and(|e| e.then >= Then::Keep);
        let Some(c) = self.find(container) else { return };
        c.image.failed(now);
        if ending {
            // It is not needed any more, and how the container ended stays as it was told.
            return;
        }
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
        let sandbox = self.sandbox.is_done();
        let Some(c) = self.find(container) else { return };
        if let Some(e) = c.ended_run(&id) {
            // Its exit was told before its start.
            if e.exit.started.is_none() {
                e.exit.started = Some(at.min(e.exit.finished));
                tell_start(container, out);
            }
            return;
        }
        if !c.is_current(attempt) || c.state != State::Starting {
            return;
        }
        if !sandbox {
            // Its sandbox died under it.
            c.state = State::Ended(advance::unknown_end(id, Some(at), at));
            return;
        }
        c.config_error = None;
        c.state = State::Running { since: at };
        c.id = id;
        c.started = !c.plan.startup_probe;
        c.probe_ready = false;
        tell_start(container, out);
        if c.plan.startup_probe {
            let kind = ProbeKind::Startup;
            out.push(Effect::StartProbe { container: container.to_owned(), attempt, kind });
        } else {
            start_probes(c, out);
        }
    }

    /// `id` is empty where the runtime never had the run.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn exited(
        &mut self,
        container: &str,
        attempt: u32,
        id: &str,
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
        out.push(Effect::StopProbes { container: container.to_owned(), readiness: true });
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
        c.id.clear();
        let ended = Ended { exit, reason: reason.to_owned(), id: id.to_owned() };
        c.config_error = None;
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
        let again = self.plan.restart != RestartPolicy::Never;
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
                let then = if again || c.plan.role == Role::Sidecar { ", will be restarted" } else { "" };
                let text = format!("Container {container} failed {word} probe{then}");
                tracing::debug!(container, message, "probe failed for good");
                c.unhealthy = true;
                stop(c, now.mono + grace, now, out);
                out.push(note("Killing", text, Some(container.to_owned())));
            }
        }
    }
}
