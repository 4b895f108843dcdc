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
    run,
};
use k8s_openapi::api::core::v1::{Container, Probe};

/// Tries, counts, and tells the worker of every verdict.
pub async fn run(step: Step, c: Container, id: String, attempt: u32, kind: ProbeKind) {
    let Some(probe) = of(&c, kind) else { return };
    let mut machine = ProbeMachine::new(Timing::from_probe(probe), step.ctx.now().mono);
    if kind == ProbeKind::Readiness {
        machine = machine.eager();
    }
    let timeout = machine.timing().timeout;
    loop {
        tokio::time::sleep_until(step.ctx.instant(machine.next_deadline()).into()).await;
        let began = step.ctx.now().mono;
        let tried = match run::action(probe, &c) {
            Ok(action) => container::try_action(&step.shim, &id, &action, &step.pod_ips(), timeout).await,
            Err(why) => Err(why),
        };
        if let Err(why) = &tried
            && !machine.is_eager()
        {
            step.note(true, "Unhealthy", format!("{} probe failed: {why}", kind.word()), Some(&c.name));
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
