//! Running one probe of one run of a container until it is aborted.
use super::{
    super::{
        event::{Event, ProbeKind},
        worker::Message,
    },
    Step, container,
};
use crate::probe::{
    machine::{ProbeMachine, Timing},
    run as try_once,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Probe};

/// The run of a container that is probed.
#[derive(Clone, Debug)]
pub struct Run {
    /// The runtime's id.
    pub id: String,
    /// Which start of the container.
    pub attempt: u32,
    /// When it was let go: the initial delay counts from there, also by an agent that came later.
    pub since: Option<Timestamp>,
    /// It was found ready before: by the agent that this one has succeeded.
    pub ready: bool,
}

/// Tries, counts, and tells the worker of every verdict.
pub async fn run(step: Step, c: Container, run: Run, kind: ProbeKind) {
    let Run { id, attempt, since, ready } = run;
    let Some(probe) = of(&c, kind) else { return };
    let now = step.ctx.now();
    // A wall clock that was put back makes it newborn, at most.
    let age = since.map_or(SignedDuration::ZERO, |since| now.wall.duration_since(since).max(SignedDuration::ZERO));
    let mut machine = ProbeMachine::new(Timing::from_probe(probe), now.mono, age.unsigned_abs());
    if kind == ProbeKind::Readiness && !ready {
        machine = machine.eager();
    }
    let timeout = machine.timing().timeout;
    loop {
        tokio::time::sleep_until(step.ctx.instant(machine.next_deadline()).into()).await;
        let began = step.ctx.now().mono;
        let tried = match try_once::action(probe, &c) {
            Ok(action) => container::try_action(&step.shim, &id, &action, &step.pod_ips(), timeout).await,
            Err(why) => Err(why),
        };
        match &tried {
            Err(why) if !machine.is_eager() => {
                step.note(true, "Unhealthy", format!("{} probe failed: {why}", kind.word()), Some(&c.name));
            }
            Ok(Some(warning)) => {
                step.note(true, "ProbeWarning", format!("{} probe warning: {warning}", kind.word()), Some(&c.name));
            }
            _ => {}
        }
        let Some(healthy) = machine.on_result(tried.is_ok(), began) else { continue };
        let message = tried.err().unwrap_or_default();
        let event = Event::Probe { container: c.name.clone(), attempt, kind, healthy, message };
        if step.tx.send(Message::Event(event)).await.is_err() {
            return;
        }
        if kind == ProbeKind::Startup {
            return;
        }
    }
}

fn of(c: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => c.startup_probe.as_ref(),
        ProbeKind::Readiness => c.readiness_probe.as_ref(),
        ProbeKind::Liveness => c.liveness_probe.as_ref(),
    }
}
