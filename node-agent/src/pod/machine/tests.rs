//! The transition table: what a Pod is told, what it answers, what its status shows.
#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use crate::pod::{
    event::{Exit, ProbeKind, StopKind},
    plan::{ContainerPlan, RestartPolicy},
    status,
};
use k8s_openapi::api::core::v1::Pod;

pub(super) fn plan(restart: RestartPolicy, containers: &[(&str, Role)]) -> PodPlan {
    PodPlan {
        uid: "u1".into(),
        namespace: "default".into(),
        name: "web".into(),
        restart,
        host_network: false,
        grace: Duration::from_secs(30),
        active_deadline: None,
        containers: containers
            .iter()
            .map(|(name, role)| ContainerPlan {
                name: (*name).into(),
                role: *role,
                image: "img".into(),
                startup_probe: false,
                readiness_probe: false,
                liveness_probe: false,
                pre_stop: false,
            })
            .collect(),
    }
}

pub(super) fn at(secs: f64) -> Now {
    let wall = Timestamp::from_millisecond(1_700_000_000_000 + (secs * 1000.0) as i64).unwrap();
    Now { mono: Duration::from_secs_f64(secs), wall }
}

pub(super) fn exit(code: i32, secs: f64) -> Exit {
    Exit { code, signal: None, oom_killed: false, started: None, finished: at(secs).wall, message: String::new() }
}

/// Without the noise of notes and reports.
fn acts(effects: Vec<Effect>) -> Vec<Effect> {
    effects
        .into_iter()
        .filter(|e| !matches!(e, Effect::Note(_) | Effect::ReportStatus | Effect::Persist | Effect::StopProbes { .. }))
        .collect()
}

fn start(c: &str, attempt: u32) -> Effect {
    Effect::Start { container: c.into(), attempt }
}

fn image(c: &str) -> Effect {
    Effect::EnsureImage { container: c.into() }
}

fn ready(c: &str) -> Event {
    Event::ImageReady { container: c.into(), image_id: "sha256:1".into(), stop_signal: Some("SIGQUIT".into()) }
}

fn started(c: &str, attempt: u32, secs: f64) -> Event {
    Event::Started { container: c.into(), attempt, id: format!("{c}-{attempt}"), at: at(secs).wall }
}

pub(super) fn exited(c: &str, attempt: u32, code: i32, secs: f64) -> Event {
    Event::Exited { container: c.into(), attempt, id: format!("{c}-{attempt}"), exit: exit(code, secs) }
}

fn ask(c: &str, attempt: u32, grace: u64) -> Effect {
    Effect::Stop { container: c.into(), attempt, kind: StopKind::Ask { grace: Duration::from_secs(grace) } }
}

fn attached() -> Event {
    Event::NetworkAttached { addresses: vec!["10.244.1.7".into()] }
}

/// A machine whose network stands, at time 0.
fn up(plan: PodPlan) -> (Machine, Vec<Effect>) {
    let mut m = Machine::new(plan, at(0.0));
    assert_eq!(acts(m.on_event(Event::Tick, at(0.0))), [Effect::PrepareVolumes]);
    assert_eq!(acts(m.on_event(Event::VolumesReady, at(0.0))), [Effect::CreateSandbox]);
    assert_eq!(acts(m.on_event(Event::SandboxCreated, at(0.0))), [Effect::AttachNetwork]);
    let first = acts(m.on_event(attached(), at(0.0)));
    (m, first)
}

/// A machine with one running main container "a".
fn running(restart: RestartPolicy) -> Machine {
    let (mut m, first) = up(plan(restart, &[("a", Role::Main)]));
    assert_eq!(first, [image("a")]);
    assert_eq!(acts(m.on_event(ready("a"), at(0.0))), [start("a", 0)]);
    assert_eq!(acts(m.on_event(started("a", 0, 0.0), at(0.0))), []);
    assert_eq!(m.phase(), Phase::Running);
    m
}

fn reason(m: &Machine, c: &str) -> String {
    match &m.containers.iter().find(|r| r.plan.name == c).unwrap().state {
        State::Waiting { reason, .. } => reason.clone(),
        State::Starting => "starting".into(),
        State::Running { .. } => "running".into(),
        State::Ended(e) => e.reason.clone(),
    }
}

#[test]
fn nothing_runs_before_the_network_and_then_in_order() {
    let roles = [("i1", Role::Init), ("i2", Role::Init), ("a", Role::Main), ("b", Role::Main)];
    let (mut m, first) = up(plan(RestartPolicy::Always, &roles));
    assert_eq!(first, [image("i1")]);
    assert_eq!(m.phase(), Phase::Pending);
    assert_eq!(acts(m.on_event(ready("i1"), at(1.0))), [start("i1", 0)]);
    assert_eq!(acts(m.on_event(started("i1", 0, 1.0), at(1.0))), []);
    assert!(!m.conditions["Initialized"].status);
    assert_eq!(m.conditions["Initialized"].message, "containers with incomplete status: [i1 i2]");
    assert_eq!(acts(m.on_event(exited("i1", 0, 0, 2.0), at(2.0))), [image("i2")]);
    m.on_event(ready("i2"), at(2.0));
    m.on_event(started("i2", 0, 2.0), at(2.0));
    assert_eq!(acts(m.on_event(exited("i2", 0, 0, 3.0), at(3.0))), [image("a"), image("b")]);
    assert!(m.conditions["Initialized"].status);
    assert_eq!(m.phase(), Phase::Pending);
    m.on_event(ready("a"), at(3.0));
    m.on_event(ready("b"), at(3.0));
    m.on_event(started("a", 0, 3.0), at(3.0));
    assert!(!m.conditions["Ready"].status);
    m.on_event(started("b", 0, 3.5), at(3.5));
    assert!(m.conditions["Ready"].status && m.phase() == Phase::Running);
}

#[test]
fn a_failed_step_is_tried_again_after_a_growing_wait() {
    let mut m = Machine::new(plan(RestartPolicy::Always, &[("a", Role::Main)]), at(0.0));
    m.on_event(Event::Tick, at(0.0));
    m.on_event(Event::VolumesReady, at(0.0));
    assert_eq!(acts(m.on_event(Event::SandboxFailed { message: "x".into() }, at(0.0))), []);
    assert_eq!(m.next_deadline(), Some(Duration::from_millis(250)));
    assert_eq!(acts(m.on_event(Event::Tick, at(0.25))), [Effect::CreateSandbox]);
    m.on_event(Event::SandboxFailed { message: "x".into() }, at(0.3));
    assert_eq!(m.next_deadline(), Some(Duration::from_millis(800)));
    m.on_event(Event::Tick, at(0.8));
    m.on_event(Event::SandboxCreated, at(1.0));
    m.on_event(Event::NetworkFailed { message: "netd away".into() }, at(1.0));
    assert_eq!(acts(m.on_event(Event::Tick, at(1.25))), [Effect::AttachNetwork]);
    assert_eq!(acts(m.on_event(attached(), at(1.3))), [image("a")]);
}

#[test]
fn host_network_pods_are_not_attached() {
    let mut p = plan(RestartPolicy::Always, &[("a", Role::Main)]);
    p.host_network = true;
    let mut m = Machine::new(p, at(0.0));
    m.on_event(Event::Tick, at(0.0));
    m.on_event(Event::VolumesReady, at(0.0));
    assert_eq!(acts(m.on_event(Event::SandboxCreated, at(0.0))), [image("a")]);
    m.on_event(Event::Delete { grace: Duration::ZERO }, at(1.0));
    assert!(acts(m.on_event(Event::Tick, at(1.0))).is_empty());
    assert!(m.is_removing());
}

#[test]
fn crashes_restart_at_once_then_back_off_and_reset_after_ten_minutes() {
    let mut m = running(RestartPolicy::Always);
    let effects = acts(m.on_event(exited("a", 0, 1, 1.0), at(1.0)));
    assert_eq!(effects, [image("a")]);
    assert_eq!(acts(m.on_event(ready("a"), at(1.0))), [start("a", 1)]);
    m.on_event(started("a", 1, 1.0), at(1.0));
    let mut now = 2.0;
    for (attempt, wait) in [(1, 10.0), (2, 20.0), (3, 40.0), (4, 80.0), (5, 160.0), (6, 300.0), (7, 300.0)] {
        assert_eq!(acts(m.on_event(exited("a", attempt, 1, now), at(now))), []);
        assert_eq!(reason(&m, "a"), "CrashLoopBackOff");
        assert_eq!(m.phase(), Phase::Running);
        assert_eq!(m.next_deadline(), Some(Duration::from_secs_f64(now + wait)));
        assert_eq!(acts(m.on_event(Event::Tick, at(now + wait - 0.1))), []);
        now += wait;
        assert_eq!(acts(m.on_event(Event::Tick, at(now))), [image("a")]);
        assert_eq!(acts(m.on_event(ready("a"), at(now))), [start("a", attempt + 1)]);
        m.on_event(started("a", attempt + 1, now), at(now));
    }
    now += 601.0;
    assert_eq!(acts(m.on_event(exited("a", 8, 1, now), at(now))), [image("a")]);
    assert_eq!(m.containers[0].restart_count(), 8);
}

#[test]
fn restart_policies_decide_who_comes_back() {
    for (policy, code, phase, again) in [
        (RestartPolicy::Always, 0, Phase::Running, true),
        (RestartPolicy::OnFailure, 0, Phase::Succeeded, false),
        (RestartPolicy::OnFailure, 1, Phase::Running, true),
        (RestartPolicy::Never, 0, Phase::Succeeded, false),
        (RestartPolicy::Never, 3, Phase::Failed, false),
    ] {
        let mut m = running(policy);
        let effects = acts(m.on_event(exited("a", 0, code, 5.0), at(5.0)));
        assert_eq!(m.phase(), phase, "{policy:?} {code}");
        let expect = if again { vec![image("a")] } else { vec![Effect::DetachNetwork] };
        assert_eq!(effects, expect, "{policy:?} {code}");
    }
}

#[test]
fn a_finished_pod_is_taken_down_and_kept_until_deleted() {
    let mut m = running(RestartPolicy::Never);
    assert_eq!(acts(m.on_event(exited("a", 0, 0, 5.0), at(5.0))), [Effect::DetachNetwork]);
    assert_eq!(acts(m.on_event(Event::NetworkDetached, at(5.0))), [Effect::Cleanup { keep_logs: true }]);
    assert_eq!(acts(m.on_event(Event::CleanedUp, at(5.0))), []);
    assert!(m.is_kept());
    assert_eq!(m.next_deadline(), None);
    assert_eq!(m.conditions["Ready"].reason, "PodCompleted");
    let effects = acts(m.on_event(Event::Delete { grace: Duration::from_secs(30) }, at(9.0)));
    assert_eq!(effects, [Effect::Cleanup { keep_logs: false }]);
    assert_eq!(acts(m.on_event(Event::CleanedUp, at(9.0))), [Effect::DeleteFromApi]);
    assert_eq!(acts(m.on_event(Event::ApiDeleted, at(9.0))), [Effect::Finished]);
}

#[test]
fn deletion_asks_waits_kills_and_removes() {
    let mut m = running(RestartPolicy::Always);
    let grace = Duration::from_secs(10);
    assert_eq!(acts(m.on_event(Event::Delete { grace }, at(5.0))), [ask("a", 0, 10)]);
    assert_eq!(m.next_deadline(), Some(Duration::from_secs(15)));
    assert_eq!(acts(m.on_event(Event::Tick, at(14.9))), []);
    let kill = Effect::Stop { container: "a".into(), attempt: 0, kind: StopKind::Kill };
    assert_eq!(acts(m.on_event(Event::Tick, at(15.0))), [kill]);
    assert_eq!(acts(m.on_event(exited("a", 0, 137, 15.1), at(15.1))), [Effect::DetachNetwork]);
    assert_eq!(acts(m.on_event(Event::NetworkDetached, at(15.2))), [Effect::Cleanup { keep_logs: false }]);
    assert_eq!(acts(m.on_event(Event::TeardownFailed { message: "busy".into() }, at(15.3))), []);
    assert_eq!(acts(m.on_event(Event::Tick, at(15.55))), [Effect::Cleanup { keep_logs: false }]);
    assert_eq!(acts(m.on_event(Event::CleanedUp, at(15.6))), [Effect::DeleteFromApi]);
    assert_eq!(acts(m.on_event(Event::ApiDeleted, at(15.7))), [Effect::Finished]);
}

#[test]
fn a_second_shorter_deletion_hastens_the_first() {
    let mut m = running(RestartPolicy::Always);
    m.on_event(Event::Delete { grace: Duration::from_secs(100) }, at(0.0));
    m.on_event(Event::Delete { grace: Duration::from_secs(1) }, at(5.0));
    assert_eq!(m.next_deadline(), Some(Duration::from_secs(6)));
    m.on_event(Event::Delete { grace: Duration::from_secs(100) }, at(5.5));
    assert_eq!(m.next_deadline(), Some(Duration::from_secs(6)));
}

#[test]
fn an_object_that_is_gone_is_not_deleted_again() {
    let mut m = running(RestartPolicy::Always);
    assert_eq!(acts(m.on_event(Event::Gone, at(1.0))), [ask("a", 0, 2)]);
    m.on_event(exited("a", 0, 0, 1.1), at(1.1));
    m.on_event(Event::NetworkDetached, at(1.2));
    assert_eq!(acts(m.on_event(Event::CleanedUp, at(1.3))), [Effect::Finished]);
}

#[test]
fn deletion_during_a_start_waits_for_the_runtime() {
    let (mut m, _) = up(plan(RestartPolicy::Always, &[("a", Role::Main)]));
    assert_eq!(acts(m.on_event(ready("a"), at(0.0))), [start("a", 0)]);
    assert_eq!(acts(m.on_event(Event::Delete { grace: Duration::from_secs(5) }, at(0.1))), []);
    assert_eq!(
        acts(m.on_event(started("a", 0, 0.2), at(0.2))).last(),
        Some(&{
            let grace = Duration::from_secs_f64(5.1) - Duration::from_secs_f64(0.2);
            Effect::Stop { container: "a".into(), attempt: 0, kind: StopKind::Ask { grace } }
        })
    );
}

#[test]
fn a_pod_deleted_before_it_began_starts_nothing() {
    let mut m = Machine::new(plan(RestartPolicy::Always, &[("a", Role::Main)]), at(0.0));
    let effects = acts(m.on_event(Event::Delete { grace: Duration::from_secs(30) }, at(0.0)));
    assert_eq!(effects, [Effect::Cleanup { keep_logs: false }]);
}

#[test]
fn images_that_cannot_be_pulled_back_off_in_kubernetes_words() {
    let (mut m, _) = up(plan(RestartPolicy::Always, &[("a", Role::Main)]));
    let fail = |m: &mut Machine, secs: f64| {
        let (container, reason) = ("a".to_owned(), "ErrImagePull".to_owned());
        m.on_event(Event::ImageFailed { container, reason, message: "no such image".into() }, at(secs))
    };
    fail(&mut m, 0.0);
    assert_eq!(reason(&m, "a"), "ErrImagePull");
    assert_eq!(m.next_deadline(), Some(Duration::from_secs(1)));
    assert_eq!(acts(m.on_event(Event::Tick, at(1.0))), []);
    assert_eq!(reason(&m, "a"), "ImagePullBackOff");
    assert_eq!(acts(m.on_event(Event::Tick, at(9.9))), []);
    assert_eq!(acts(m.on_event(Event::Tick, at(10.0))), [image("a")]);
    fail(&mut m, 11.0);
    assert_eq!(acts(m.on_event(Event::Tick, at(30.9))), []);
    assert_eq!(acts(m.on_event(Event::Tick, at(31.0))), [image("a")]);
    assert_eq!(acts(m.on_event(ready("a"), at(32.0))), [start("a", 0)]);
}

#[test]
fn missing_configuration_waits_without_counting_a_restart() {
    let (mut m, _) = up(plan(RestartPolicy::Always, &[("a", Role::Main)]));
    m.on_event(ready("a"), at(0.0));
    let fail = Event::ConfigFailed { container: "a".into(), attempt: 0, message: "configmap \"c\" not found".into() };
    assert_eq!(acts(m.on_event(fail, at(0.0))), []);
    assert_eq!(reason(&m, "a"), "CreateContainerConfigError");
    assert_eq!(acts(m.on_event(Event::Tick, at(2.0))), [image("a")]);
    assert_eq!(acts(m.on_event(ready("a"), at(2.0))), [start("a", 0)]);
    assert_eq!(m.containers[0].restart_count(), 0);
    // While it is tried again, status goes on saying what is missing.
    let shown = |m: &Machine| {
        let status = status::build(m, &Pod::default(), "172.30.0.1").container_statuses.unwrap().remove(0);
        status.state.unwrap().waiting.map(|w| (w.reason.unwrap(), w.message.unwrap_or_default()))
    };
    let missing = ("CreateContainerConfigError".to_owned(), "configmap \"c\" not found".to_owned());
    assert_eq!(shown(&m), Some(missing));
    m.on_event(started("a", 0, 3.0), at(3.0));
    m.on_event(exited("a", 0, 1, 4.0), at(4.0));
    assert_eq!(acts(m.on_event(ready("a"), at(4.0))), [start("a", 1)]);
    assert_eq!(shown(&m).unwrap().0, "ContainerCreating", "it got further");
}

#[test]
fn a_finished_pod_goes_on_showing_its_address() {
    let mut m = running(RestartPolicy::Never);
    m.on_event(exited("a", 0, 0, 1.0), at(1.0));
    let shown = |m: &Machine| status::build(m, &Pod::default(), "172.30.0.1").pod_ip;
    assert_eq!(acts(m.on_event(Event::NetworkDetached, at(1.0))), [Effect::Cleanup { keep_logs: true }]);
    assert_eq!(shown(&m).as_deref(), Some("10.244.1.7"), "netd has taken it back already");
    m.on_event(Event::CleanedUp, at(1.0));
    assert_eq!((m.phase(), shown(&m).as_deref()), (Phase::Succeeded, Some("10.244.1.7")));
    let saved = m.snapshot().unwrap().clone();
    let again = Machine::recover(m.plan.clone(), &saved, None, at(2.0));
    assert_eq!(shown(&again).as_deref(), Some("10.244.1.7"), "also after the agent's restart");
}

#[test]
fn a_container_that_cannot_be_started_counts_as_exit_128() {
    let (mut m, _) = up(plan(RestartPolicy::Never, &[("a", Role::Main)]));
    m.on_event(ready("a"), at(0.0));
    m.on_event(Event::StartFailed { container: "a".into(), attempt: 0, message: "no such file".into() }, at(0.0));
    assert_eq!((reason(&m, "a").as_str(), m.phase()), ("StartError", Phase::Failed));
}

#[test]
fn ends_are_named_as_kubernetes_names_them() {
    for (code, oom, want) in [(0, false, "Completed"), (2, false, "Error"), (137, true, "OOMKilled")] {
        let mut m = running(RestartPolicy::Never);
        let exit = Exit { oom_killed: oom, ..exit(code, 1.0) };
        m.on_event(Event::Exited { container: "a".into(), attempt: 0, id: "a-0".into(), exit }, at(1.0));
        assert_eq!(reason(&m, "a"), want);
    }
}

#[test]
fn an_exit_told_before_its_start_is_not_lost() {
    let (mut m, _) = up(plan(RestartPolicy::Never, &[("a", Role::Main)]));
    m.on_event(ready("a"), at(0.0));
    m.on_event(exited("a", 0, 7, 0.1), at(0.1));
    let ended = |m: &Machine| match &m.containers[0].state {
        State::Ended(e) => e.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((ended(&m).exit.code, ended(&m).id.as_str()), (7, "a-0"));
    let told = |effects: Vec<Effect>| {
        let notes = effects.into_iter().filter_map(|e| match e {
            Effect::Note(n) => Some(n.reason),
            _ => None,
        });
        notes.collect::<Vec<_>>()
    };
    assert_eq!(told(m.on_event(started("a", 0, 0.05), at(0.2))), ["Created", "Started"]);
    assert_eq!((ended(&m).exit.code, ended(&m).exit.started), (7, Some(at(0.05).wall)));

    // Also where it waits for its next run by then; a start that is told late was before the end.
    let mut m = running(RestartPolicy::Always);
    m.on_event(exited("a", 0, 1, 1.0), at(1.0));
    m.on_event(ready("a"), at(1.0));
    m.on_event(exited("a", 1, 1, 1.1), at(1.1));
    assert_eq!(reason(&m, "a"), "CrashLoopBackOff");
    assert_eq!(told(m.on_event(started("a", 1, 1.2), at(1.2))), ["Created", "Started"]);
    let last = m.containers[0].last.clone().unwrap();
    assert_eq!((last.exit.started, last.id.as_str()), (Some(at(1.1).wall), "a-1"));
    assert_eq!(reason(&m, "a"), "CrashLoopBackOff");
}

#[test]
fn probes_gate_readiness_and_kill() {
    let mut p = plan(RestartPolicy::Always, &[("a", Role::Main)]);
    p.containers[0].startup_probe = true;
    p.containers[0].readiness_probe = true;
    p.containers[0].liveness_probe = true;
    let (mut m, _) = up(p);
    m.on_event(ready("a"), at(0.0));
    let probe = |kind| Effect::StartProbe { container: "a".into(), attempt: 0, kind };
    assert_eq!(acts(m.on_event(started("a", 0, 0.0), at(0.0))), [probe(ProbeKind::Startup)]);
    let verdict =
        |kind, healthy| Event::Probe { container: "a".into(), attempt: 0, kind, healthy, message: "m".into() };
    let effects = acts(m.on_event(verdict(ProbeKind::Startup, true), at(1.0)));
    assert_eq!(effects, [probe(ProbeKind::Readiness), probe(ProbeKind::Liveness)]);
    assert!(!m.conditions["Ready"].status);
    m.on_event(verdict(ProbeKind::Readiness, true), at(2.0));
    assert!(m.conditions["Ready"].status);
    m.on_event(verdict(ProbeKind::Readiness, false), at(3.0));
    assert!(!m.conditions["Ready"].status);
    assert_eq!(acts(m.on_event(verdict(ProbeKind::Liveness, false), at(4.0))), [ask("a", 0, 30)]);
    // A second verdict while it is stopping changes nothing.
    assert_eq!(acts(m.on_event(verdict(ProbeKind::Liveness, false), at(5.0))), []);
    assert_eq!(acts(m.on_event(exited("a", 0, 143, 6.0), at(6.0))), [image("a")]);
}

#[test]
fn readiness_is_asked_for_until_the_container_has_ended() {
    let mut p = plan(RestartPolicy::Always, &[("a", Role::Main)]);
    p.containers[0].readiness_probe = true;
    p.containers[0].liveness_probe = true;
    let (mut m, _) = up(p);
    m.on_event(ready("a"), at(0.0));
    m.on_event(started("a", 0, 0.0), at(0.0));
    let verdict = |healthy| Event::Probe {
        container: "a".into(),
        attempt: 0,
        kind: ProbeKind::Readiness,
        healthy,
        message: "m".into(),
    };
    m.on_event(verdict(true), at(1.0));
    let stops = |readiness| Effect::StopProbes { container: "a".into(), readiness };
    let effects = m.on_event(Event::Delete { grace: Duration::from_secs(30) }, at(2.0));
    assert!(effects.contains(&stops(false)) && !effects.contains(&stops(true)), "{effects:?}");
    assert!(m.conditions["Ready"].status);
    m.on_event(verdict(false), at(3.0));
    assert!(!m.conditions["Ready"].status, "it says so while it goes");
    assert!(m.on_event(exited("a", 0, 0, 4.0), at(4.0)).contains(&stops(true)));
}

#[test]
fn what_a_probe_ends_is_a_failure_whatever_its_code() {
    let sick = |policy| {
        let mut p = plan(policy, &[("a", Role::Main)]);
        p.containers[0].liveness_probe = true;
        let (mut m, _) = up(p);
        m.on_event(ready("a"), at(0.0));
        m.on_event(started("a", 0, 0.0), at(0.0));
        m
    };
    let failed = |attempt| Event::Probe {
        container: "a".into(),
        attempt,
        kind: ProbeKind::Liveness,
        healthy: false,
        message: "m".into(),
    };
    let told = |effects: &[Effect]| {
        let notes = effects.iter().filter_map(|e| match e {
            Effect::Note(n) if n.reason == "Killing" => Some(n.message.clone()),
            _ => None,
        });
        notes.collect::<Vec<_>>()
    };
    for away in [false, true] {
        let mut m = sick(RestartPolicy::OnFailure);
        let effects = m.on_event(failed(0), at(1.0));
        assert_eq!(told(&effects), ["Container a failed liveness probe, will be restarted"]);
        if away {
            // The agent is killed before it ends, and finds it ended.
            let saved = m.snapshot().unwrap().clone();
            let ended = ShimContainer {
                name: "a".into(),
                attempt: 0,
                id: "a-0".into(),
                started: Some(at(0.0).wall),
                exit: Some(exit(0, 2.0)),
            };
            m = Machine::recover(
                m.plan.clone(),
                &saved,
                Some(&ShimReport { containers: vec![ended], ..ShimReport::default() }),
                at(2.0),
            );
            m.on_event(Event::Tick, at(2.0));
            m.on_event(Event::VolumesReady, at(2.0));
            assert_eq!((acts(m.on_event(attached(), at(2.0))), m.phase()), (vec![image("a")], Phase::Running));
            continue;
        }
        let effects = acts(m.on_event(exited("a", 0, 0, 2.0), at(2.0)));
        assert_eq!((effects, m.phase()), (vec![image("a")], Phase::Running));
        m.on_event(ready("a"), at(2.0));
        m.on_event(started("a", 1, 2.0), at(2.0));
        m.on_event(failed(1), at(3.0));
        m.on_event(exited("a", 1, 0, 4.0), at(4.0));
        assert_eq!((reason(&m, "a").as_str(), m.phase()), ("CrashLoopBackOff", Phase::Running));
        // One that ends well by itself is done.
        assert_eq!(acts(m.on_event(Event::Tick, at(14.0))), [image("a")]);
        m.on_event(ready("a"), at(14.0));
        m.on_event(started("a", 2, 14.0), at(14.0));
        m.on_event(exited("a", 2, 0, 15.0), at(15.0));
        assert_eq!(m.phase(), Phase::Succeeded);
    }
    let mut m = sick(RestartPolicy::Never);
    assert_eq!(told(&m.on_event(failed(0), at(1.0))), ["Container a failed liveness probe"]);
    m.on_event(exited("a", 0, 143, 2.0), at(2.0));
    assert_eq!(m.phase(), Phase::Failed);
}

#[test]
fn sidecars_start_in_order_and_end_last() {
    let roles = [("s", Role::Sidecar), ("a", Role::Main)];
    let (mut m, first) = up(plan(RestartPolicy::Never, &roles));
    assert_eq!(first, [image("s")]);
    m.on_event(ready("s"), at(0.0));
    assert_eq!(acts(m.on_event(started("s", 0, 0.0), at(0.0))), [image("a")]);
    m.on_event(ready("a"), at(0.0));
    m.on_event(started("a", 0, 0.0), at(0.0));
    let effects = acts(m.on_event(exited("a", 0, 0, 5.0), at(5.0)));
    assert_eq!(effects, [ask("s", 0, 30)]);
    assert_eq!(acts(m.on_event(exited("s", 0, 143, 6.0), at(6.0))), [Effect::DetachNetwork]);
    assert_eq!(m.phase(), Phase::Succeeded);
}

#[test]
fn a_failing_init_container_fails_a_pod_that_never_restarts() {
    let roles = [("i", Role::Init), ("a", Role::Main)];
    let (mut m, _) = up(plan(RestartPolicy::Never, &roles));
    m.on_event(ready("i"), at(0.0));
    m.on_event(started("i", 0, 0.0), at(0.0));
    assert_eq!(acts(m.on_event(exited("i", 0, 1, 1.0), at(1.0))), [Effect::DetachNetwork]);
    assert_eq!(m.phase(), Phase::Failed);
    let (mut m, _) = up(plan(RestartPolicy::Always, &roles));
    m.on_event(ready("i"), at(0.0));
    m.on_event(started("i", 0, 0.0), at(0.0));
    assert_eq!(acts(m.on_event(exited("i", 0, 1, 1.0), at(1.0))), [image("i")]);
    assert_eq!(m.phase(), Phase::Pending);
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut p = plan(RestartPolicy::Always, &[("a", Role::Main)]);
    p.active_deadline = Some(Duration::from_secs(60));
    let (mut m, _) = up(p);
    m.on_event(ready("a"), at(0.0));
    m.on_event(started("a", 0, 0.0), at(0.0));
    assert_eq!(m.next_deadline(), Some(Duration::from_secs(60)));
    assert_eq!(acts(m.on_event(Event::Tick, at(60.0))), [ask("a", 0, 30)]);
    assert_eq!(m.phase(), Phase::Failed);
}

#[test]
fn the_active_deadline_counts_from_the_start_whatever_agents_came_and_went() {
    let mut p = plan(RestartPolicy::Always, &[("a", Role::Main)]);
    p.active_deadline = Some(Duration::from_secs(60));
    let (mut m, _) = up(p);
    m.on_event(ready("a"), at(0.0));
    m.on_event(started("a", 0, 0.0), at(0.0));
    let shim = ShimReport {
        containers: vec![ShimContainer {
            name: "a".into(),
            attempt: 0,
            id: "a-0".into(),
            started: Some(at(0.0).wall),
            exit: None,
        }],
        ..ShimReport::default()
    };
    // A new agent's monotonic clock begins with it.
    let fresh = |mono: u64, wall: f64| Now { mono: Duration::from_secs(mono), wall: at(wall).wall };
    let saved = m.snapshot().unwrap().clone();
    let mut again = Machine::recover(m.plan.clone(), &saved, Some(&shim), fresh(0, 40.0));
    again.on_event(Event::Tick, fresh(0, 40.0));
    assert_eq!(again.next_deadline(), Some(Duration::from_secs(20)));
    let mut late = Machine::recover(m.plan.clone(), &saved, Some(&shim), fresh(0, 4000.0));
    assert_eq!(acts(late.on_event(Event::Tick, fresh(0, 4000.0))), [ask("a", 0, 30)]);
    assert_eq!(late.phase(), Phase::Failed);
    let mut blind = Machine::adopt_blind(m.plan.clone(), &shim, fresh(0, 4000.0));
    assert_eq!(acts(blind.on_event(Event::Tick, fresh(0, 4000.0))), [ask("a", 0, 30)]);
    // One that was over its deadline stays so.
    let saved = late.snapshot().unwrap().clone();
    let mut over = Machine::recover(m.plan.clone(), &saved, Some(&shim), fresh(0, 4001.0));
    assert_eq!(acts(over.on_event(Event::Tick, fresh(0, 4001.0))), [ask("a", 0, 30)]);
    let mut ended = shim.clone();
    ended.containers[0].exit = Some(exit(0, 4001.0));
    let mut over = Machine::recover(m.plan.clone(), &saved, Some(&ended), fresh(0, 4001.0));
    assert_eq!(acts(over.on_event(Event::Tick, fresh(0, 4001.0))), [Effect::DetachNetwork]);
    assert_eq!(over.phase(), Phase::Failed);
}

#[test]
fn a_lost_sandbox_is_cleaned_up_and_made_anew() {
    let mut m = running(RestartPolicy::Always);
    assert_eq!(acts(m.on_event(Event::SandboxLost, at(5.0))), [Effect::DetachNetwork]);
    assert_eq!(reason(&m, "a"), "ContainerStatusUnknown");
    assert_eq!(acts(m.on_event(Event::NetworkDetached, at(5.0))), [Effect::Cleanup { keep_logs: true }]);
    assert_eq!(acts(m.on_event(Event::CleanedUp, at(5.0))), [Effect::PrepareVolumes]);
    m.on_event(Event::VolumesReady, at(5.0));
    m.on_event(Event::SandboxCreated, at(5.0));
    assert_eq!(acts(m.on_event(attached(), at(5.0))), [image("a")]);
    assert_eq!(acts(m.on_event(ready("a"), at(5.0))), [start("a", 1)]);
}

#[test]
fn an_init_container_whose_sandbox_died_runs_again_unless_never() {
    let roles = [("i", Role::Init), ("a", Role::Main)];
    let shim_died = |policy: RestartPolicy, away: bool| {
        let (mut m, _) = up(plan(policy, &roles));
        m.on_event(ready("i"), at(0.0));
        m.on_event(started("i", 0, 0.0), at(0.0));
        if away {
            let saved = m.snapshot().unwrap().clone();
            m = Machine::recover(m.plan.clone(), &saved, None, at(1.0));
            m.on_event(Event::Tick, at(1.0));
        } else {
            m.on_event(Event::SandboxLost, at(1.0));
        }
        let phases = vec![m.phase()];
        [Event::NetworkDetached, Event::CleanedUp, Event::VolumesReady, Event::SandboxCreated, attached(), Event::Tick]
            .into_iter()
            .fold((m, phases), |(mut m, mut phases), event| {
                m.on_event(event, at(1.0));
                phases.push(m.phase());
                (m, phases)
            })
    };
    for away in [false, true] {
        let (m, phases) = shim_died(RestartPolicy::Never, away);
        assert_eq!(phases, [Phase::Failed; 7], "away: {away}");
        assert_eq!((m.is_kept(), reason(&m, "i").as_str()), (true, "ContainerStatusUnknown"));
        for policy in [RestartPolicy::OnFailure, RestartPolicy::Always] {
            let (mut m, phases) = shim_died(policy, away);
            assert_eq!(phases, [Phase::Pending; 7], "{policy:?}, away: {away}");
            assert_eq!(acts(m.on_event(ready("i"), at(1.0))), [start("i", 1)]);
        }
    }
    // Nothing has run yet: there is nothing that a new sandbox would repeat.
    let (mut m, _) = up(plan(RestartPolicy::Never, &roles));
    m.on_event(Event::SandboxLost, at(1.0));
    m.on_event(Event::NetworkDetached, at(1.0));
    assert_eq!(acts(m.on_event(Event::CleanedUp, at(1.0))), [Effect::PrepareVolumes]);
}

#[test]
fn an_end_that_was_told_stays_while_the_rest_is_stopped() {
    let roles = [("s", Role::Sidecar), ("a", Role::Main)];
    let (mut m, _) = up(plan(RestartPolicy::Always, &roles));
    for c in ["s", "a"] {
        m.on_event(ready(c), at(0.0));
        m.on_event(started(c, 0, 0.0), at(0.0));
    }
    assert_eq!(acts(m.on_event(exited("a", 0, 0, 1.0), at(1.0))), [image("a")]);
    m.on_event(Event::Delete { grace: Duration::from_secs(30) }, at(1.0));
    assert_eq!(m.phase(), Phase::Succeeded);
    let failed = Event::ImageFailed { container: "a".into(), reason: "ErrImagePull".into(), message: "no".into() };
    m.on_event(failed, at(2.0));
    assert_eq!((m.phase(), reason(&m, "a").as_str()), (Phase::Succeeded, "Completed"));
}

#[test]
fn the_machine_survives_the_agent() {
    let m = running(RestartPolicy::Always);
    let text = serde_json::to_string(m.snapshot().unwrap()).unwrap();
    let saved: Persisted = serde_json::from_str(&text).unwrap();
    let shim = |exit: Option<Exit>| ShimReport {
        containers: vec![ShimContainer {
            name: "a".into(),
            attempt: 0,
            id: "a-0".into(),
            started: Some(at(0.0).wall),
            exit,
        }],
        ..ShimReport::default()
    };
    // It runs on.
    let mut again = Machine::recover(m.plan.clone(), &saved, Some(&shim(None)), at(3.0));
    assert_eq!(reason(&again, "a"), "running");
    assert_eq!(again.containers[0].stop_signal.as_deref(), Some("SIGQUIT"));
    // An agent from before wrote less of it.
    let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
    let record = old["containers"][0].as_object_mut().unwrap();
    for newer in ["stop_signal", "replaced", "unhealthy"] {
        assert!(record.remove(newer).is_some());
    }
    let old: Persisted = serde_json::from_value(old).unwrap();
    let adopted = Machine::recover(m.plan.clone(), &old, Some(&shim(None)), at(3.0));
    assert_eq!((reason(&adopted, "a").as_str(), &adopted.containers[0].stop_signal), ("running", &None));
    let effects = acts(again.on_event(Event::Tick, at(3.0)));
    assert_eq!(effects, [Effect::PrepareVolumes, Effect::AttachNetwork]);
    again.on_event(attached(), at(3.1));
    assert_eq!(again.phase(), Phase::Running);
    // It ended meanwhile.
    let mut again = Machine::recover(m.plan.clone(), &saved, Some(&shim(Some(exit(9, 2.0)))), at(3.0));
    let State::Ended(e) = &again.containers[0].state else { panic!() };
    assert_eq!(e.exit.code, 9);
    again.on_event(Event::Tick, at(3.0));
    again.on_event(Event::VolumesReady, at(3.0));
    assert_eq!(acts(again.on_event(attached(), at(3.0))), [image("a")]);
    // The machine was rebooted.
    let mut again = Machine::recover(m.plan.clone(), &saved, None, at(3.0));
    assert_eq!(reason(&again, "a"), "ContainerStatusUnknown");
    assert_eq!(acts(again.on_event(Event::Tick, at(3.0))), [Effect::DetachNetwork]);
}

#[test]
fn an_exit_that_is_written_down_counts_once() {
    let mut m = running(RestartPolicy::Always);
    m.on_event(exited("a", 0, 1, 1.0), at(1.0));
    m.on_event(ready("a"), at(1.0));
    m.on_event(started("a", 1, 1.0), at(1.0));
    m.on_event(exited("a", 1, 1, 2.0), at(2.0));
    assert_eq!((reason(&m, "a").as_str(), m.containers[0].crash_backoff.current().as_secs()), ("CrashLoopBackOff", 10));
    // The agent is killed before the shim has forgotten that run.
    let shim = ShimReport {
        containers: vec![ShimContainer {
            name: "a".into(),
            attempt: 1,
            id: "a-1".into(),
            started: Some(at(1.0).wall),
            exit: Some(exit(1, 2.0)),
        }],
        ..ShimReport::default()
    };
    let saved = m.snapshot().unwrap().clone();
    let again = Machine::recover(m.plan.clone(), &saved, Some(&shim), at(3.0));
    let c = &again.containers[0];
    assert_eq!((reason(&again, "a").as_str(), c.crash_backoff.current().as_secs()), ("CrashLoopBackOff", 10));
    assert_eq!((c.restart_count(), c.last.as_ref().map(|e| e.id.as_str())), (1, Some("a-1")));
}

#[test]
fn exits_that_a_dead_shim_had_seen_are_not_lost() {
    let last_words = |attempt, code| ShimReport {
        containers: vec![ShimContainer {
            name: "a".into(),
            attempt,
            id: format!("a-{attempt}"),
            started: Some(at(0.0).wall),
            exit: Some(exit(code, 2.0)),
        }],
        dead: true,
    };
    for (policy, phase) in [(RestartPolicy::Never, Phase::Failed), (RestartPolicy::Always, Phase::Running)] {
        let m = running(policy);
        let saved = m.snapshot().unwrap().clone();
        let mut again = Machine::recover(m.plan.clone(), &saved, Some(&last_words(0, 42)), at(3.0));
        assert_eq!(acts(again.on_event(Event::Tick, at(3.0))), [Effect::DetachNetwork]);
        let State::Ended(e) = &again.containers[0].state else { panic!("{:?}", again.containers[0].state) };
        assert_eq!((e.exit.code, e.id.as_str(), again.phase()), (42, "a-0", phase));
        // What it says of a run before is known already.
        let again = Machine::recover(m.plan.clone(), &saved, Some(&last_words(7, 42)), at(3.0));
        assert_eq!(reason(&again, "a"), "ContainerStatusUnknown");
    }
}

#[test]
fn readiness_survives_the_agent_while_the_network_is_handed_over_again() {
    let mut p = plan(RestartPolicy::Always, &[("a", Role::Main)]);
    p.containers[0].startup_probe = true;
    p.containers[0].readiness_probe = true;
    let (mut m, _) = up(p);
    m.on_event(ready("a"), at(0.0));
    m.on_event(started("a", 0, 0.0), at(0.0));
    let verdict =
        |kind, healthy| Event::Probe { container: "a".into(), attempt: 0, kind, healthy, message: "m".into() };
    m.on_event(verdict(ProbeKind::Startup, true), at(1.0));
    m.on_event(verdict(ProbeKind::Readiness, true), at(2.0));
    assert!(m.conditions["Ready"].status);
    let saved: Persisted = serde_json::from_str(&serde_json::to_string(m.snapshot().unwrap()).unwrap()).unwrap();
    let shim = |id: &str| ShimReport {
        containers: vec![ShimContainer {
            name: "a".into(),
            attempt: 0,
            id: id.into(),
            started: Some(at(0.0).wall),
            exit: None,
        }],
        ..ShimReport::default()
    };
    let mut again = Machine::recover(m.plan.clone(), &saved, Some(&shim("a-0")), at(3.0));
    assert!(again.containers[0].started && again.containers[0].probe_ready);
    let late = || Event::NetworkFailed { message: "netd is away".into() };
    for event in [Event::Tick, Event::VolumesReady, late(), Event::Tick, attached()] {
        again.on_event(event.clone(), at(9.0));
        for kind in ["Ready", "ContainersReady", "PodReadyToStartContainers"] {
            assert!(again.conditions[kind].status, "{kind} after {event:?}");
        }
    }
    again.on_event(verdict(ProbeKind::Readiness, false), at(10.0));
    assert!(!again.conditions["Ready"].status);
    // Of a run that was not written down nothing is known.
    let mut other = Machine::recover(m.plan.clone(), &saved, Some(&shim("a-0-x")), at(3.0));
    other.on_event(Event::Tick, at(3.0));
    assert!(!other.containers[0].started && !other.conditions["Ready"].status);
    // And nothing starts on the strength of an old acknowledgement.
    let ended = ShimReport {
        containers: vec![ShimContainer { exit: Some(exit(1, 2.5)), ..shim("a-0").containers.remove(0) }],
        ..ShimReport::default()
    };
    let mut again = Machine::recover(m.plan.clone(), &saved, Some(&ended), at(3.0));
    let begun = [Effect::PrepareVolumes, Effect::AttachNetwork];
    assert_eq!(acts(again.on_event(Event::Tick, at(3.0))), begun);
    assert_eq!(acts(again.on_event(Event::VolumesReady, at(3.0))), []);
    assert_eq!(acts(again.on_event(attached(), at(3.0))), [image("a")]);
}

#[test]
fn a_kill_that_could_not_be_sent_is_sent_again_after_a_growing_wait() {
    let mut m = running(RestartPolicy::Always);
    let kill = || [Effect::Stop { container: "a".into(), attempt: 0, kind: StopKind::Kill }];
    let failed = || Event::KillFailed { container: "a".into(), attempt: 0, message: "no answer".into() };
    m.on_event(Event::Delete { grace: Duration::from_secs(5) }, at(0.0));
    assert_eq!(acts(m.on_event(Event::Tick, at(5.0))), kill());
    assert_eq!(m.next_deadline(), None);
    assert_eq!(acts(m.on_event(failed(), at(6.0))), [], "not at once: it would go round in circles");
    assert_eq!(m.next_deadline(), Some(Duration::from_millis(6250)));
    assert_eq!(acts(m.on_event(Event::Tick, at(6.25))), kill());
    m.on_event(failed(), at(7.0));
    assert_eq!(m.next_deadline(), Some(Duration::from_millis(7500)));
    assert_eq!(acts(m.on_event(exited("a", 0, 137, 7.2), at(7.2))), [Effect::DetachNetwork]);
    // A word about a run that is over changes nothing.
    assert_eq!(acts(m.on_event(failed(), at(7.3))), []);
}

#[test]
fn a_hook_that_takes_all_the_time_leaves_two_seconds_for_the_signal() {
    let kill = || [Effect::Stop { container: "a".into(), attempt: 0, kind: StopKind::Kill }];
    let asked = || Event::Asked { container: "a".into(), attempt: 0 };
    let delete = |grace| Event::Delete { grace: Duration::from_secs(grace) };
    let hooked = || {
        let mut m = running(RestartPolicy::Always);
        m.containers[0].plan.pre_stop = true;
        assert_eq!(acts(m.on_event(delete(30), at(1.0))), [ask("a", 0, 30)]);
        m
    };
    let mut m = hooked();
    assert_eq!(acts(m.on_event(Event::Tick, at(31.0))), [], "the signal is only now being sent");
    assert_eq!(acts(m.on_event(asked(), at(31.5))), []);
    assert_eq!(m.next_deadline(), Some(Duration::from_millis(33_500)));
    assert_eq!(acts(m.on_event(Event::Tick, at(33.5))), kill());
    // A hook that is over early changes nothing; one that is never heard of delays by as much.
    let mut m = hooked();
    m.on_event(asked(), at(5.0));
    assert_eq!(acts(m.on_event(Event::Tick, at(31.0))), kill());
    assert_eq!(acts(hooked().on_event(Event::Tick, at(33.0))), kill());
    // Hastened, it has as much less; at once is at once.
    let mut m = hooked();
    m.on_event(delete(5), at(2.0));
    assert_eq!(m.next_deadline(), Some(Duration::from_secs(9)));
    assert_eq!(acts(m.on_event(delete(0), at(3.0))), kill());
}

#[test]
fn a_start_that_the_shim_never_saw_did_not_happen() {
    let (mut m, _) = up(plan(RestartPolicy::Always, &[("a", Role::Main)]));
    m.on_event(ready("a"), at(0.0));
    let saved = m.snapshot().unwrap().clone();
    let mut again = Machine::recover(m.plan.clone(), &saved, Some(&ShimReport::default()), at(1.0));
    again.on_event(Event::Tick, at(1.0));
    again.on_event(Event::VolumesReady, at(1.0));
    assert_eq!(acts(again.on_event(attached(), at(1.0))), [image("a")]);
    assert_eq!(acts(again.on_event(ready("a"), at(1.0))), [start("a", 0)]);
}

#[test]
fn a_changed_image_restarts_its_container_only() {
    let (mut m, _) = up(plan(RestartPolicy::Always, &[("a", Role::Main), ("b", Role::Main)]));
    for c in ["a", "b"] {
        m.on_event(ready(c), at(0.0));
        m.on_event(started(c, 0, 0.0), at(0.0));
    }
    let mut p = m.plan.clone();
    p.containers[1].image = "new".into();
    assert_eq!(acts(m.on_event(Event::Updated(p), at(1.0))), [ask("b", 0, 30)]);
    assert_eq!(acts(m.on_event(exited("b", 0, 0, 2.0), at(2.0))), [image("b")]);
}

#[test]
fn status_speaks_kubernetes_words() {
    let mut m = running(RestartPolicy::Always);
    m.on_event(exited("a", 0, 1, 1.0), at(1.0));
    m.on_event(ready("a"), at(1.0));
    m.on_event(started("a", 1, 1.0), at(1.0));
    m.on_event(exited("a", 1, 1, 2.0), at(2.0));
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "a", "image": "img"}]},
        "status": {"qosClass": "BestEffort", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    }))
    .unwrap();
    let json = serde_json::to_value(status::build(&m, &pod, "172.30.0.11")).unwrap();
    assert_eq!(json["phase"], "Running");
    assert_eq!(json["hostIP"], "172.30.0.11");
    assert_eq!(json["podIPs"][0]["ip"], "10.244.1.7");
    assert_eq!(json["startTime"], "2023-11-14T22:13:20Z");
    let c = &json["containerStatuses"][0];
    assert_eq!(c["restartCount"], 1);
    assert_eq!(c["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(c["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(c["ready"], false);
    let types: Vec<&str> = json["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]);
}
