//! Properties over random histories: a simulated node answers every effect, late and out of
//! order, with success or failure; whatever happens, the invariants of the module hold.
#![allow(clippy::unwrap_used, missing_docs)]
use super::{tests, *};
use crate::pod::{event::StopKind, plan::RestartPolicy};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What the outside world does next, chosen by proptest.
#[derive(Clone, Debug)]
enum Move {
    /// The oldest outstanding request (of those, the n-th) succeeds.
    Succeed(usize),
    /// It fails.
    Fail(usize),
    /// A running container ends with this code.
    Exit(usize, i32),
    /// Time passes to the next deadline.
    Tick,
    Delete(u64),
    Gone,
    SandboxLost,
    /// The agent is killed and comes back.
    Restart,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        8 => (0usize..4).prop_map(Move::Succeed),
        2 => (0usize..4).prop_map(Move::Fail),
        3 => ((0usize..4), 0i32..3).prop_map(|(n, c)| Move::Exit(n, c)),
        4 => Just(Move::Tick),
        1 => (0u64..40).prop_map(Move::Delete),
        1 => Just(Move::SandboxLost),
        1 => Just(Move::Restart),
        1 => Just(Move::Gone),
    ];
    prop::collection::vec(one, 0..120)
}

struct World {
    machine: Machine,
    secs: f64,
    outstanding: Vec<Effect>,
    /// container → attempt
    running: BTreeMap<String, u32>,
    ended: BTreeMap<(String, u32), i32>,
    sandbox: bool,
    attached: bool,
    volumes: bool,
    deleted: bool,
    cleaned: bool,
    logs: bool,
    finished: bool,
    started: BTreeSet<(String, u32)>,
    policy: RestartPolicy,
    phase: Phase,
}

impl World {
    fn new(policy: RestartPolicy) -> Self {
        let plan =
            tests::plan(policy, &[("i", Role::Init), ("s", Role::Sidecar), ("a", Role::Main), ("b", Role::Main)]);
        let machine = Machine::new(plan, tests::at(0.0));
        let mut w = Self {
            machine,
            secs: 0.0,
            outstanding: Vec::new(),
            running: BTreeMap::new(),
            ended: BTreeMap::new(),
            sandbox: false,
            attached: false,
            volumes: false,
            deleted: false,
            cleaned: false,
            logs: true,
            finished: false,
            started: BTreeSet::new(),
            policy,
            phase: Phase::Pending,
        };
        w.tell(Event::Tick);
        w
    }

    fn tell(&mut self, event: Event) {
        if self.finished {
            return;
        }
        self.secs += 0.01;
        let told = format!("{event:?}");
        let effects = self.machine.on_event(event, tests::at(self.secs));
        let phase = self.machine.phase();
        if matches!(self.phase, Phase::Succeeded | Phase::Failed) {
            assert_eq!(phase, self.phase, "an end that was told does not change, by {told}: {:?}", self.machine);
        }
        self.phase = phase;
        for effect in effects {
            self.check(&effect);
            match effect {
                Effect::Finished => self.finished = true,
                Effect::Stop { ref container, kind: StopKind::Kill, .. } => {
                    if let Some(attempt) = self.running.remove(container) {
                        self.ended.insert((container.clone(), attempt), 137);
                        self.outstanding.push(effect);
                    }
                }
                Effect::Note(_)
                | Effect::ReportStatus
                | Effect::Persist
                | Effect::StopProbes { .. }
                | Effect::StartProbe { .. } => {}
                Effect::Stop { .. } => {}
                other => {
                    assert!(!self.outstanding.contains(&other), "asked twice at once: {other:?}");
                    self.outstanding.push(other);
                }
            }
        }
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::Start { container, attempt } => {
                assert!(self.volumes && self.sandbox && self.attached, "{container} starts without its network");
                assert!(!self.deleted, "{container} starts in a deleted Pod");
                assert!(!self.running.contains_key(container), "{container} runs twice");
                assert!(!self.ended.contains_key(&(container.clone(), *attempt)), "{container}.{attempt} again");
                if container != "i" && container != "s" {
                    let done = self.ended.iter().any(|((c, _), code)| c == "i" && *code == 0);
                    assert!(done, "{container} before its init container");
                }
            }
            Effect::AttachNetwork => assert!(self.sandbox, "attached without a sandbox"),
            Effect::DetachNetwork | Effect::Cleanup { .. } => {
                assert!(self.running.is_empty(), "taken down under {:?}", self.running);
            }
            Effect::DeleteFromApi | Effect::Finished => {
                assert!(self.cleaned && !self.logs, "over before cleanup");
            }
            _ => {}
        }
    }

    fn answer(&mut self, n: usize, good: bool) {
        if self.outstanding.is_empty() {
            return;
        }
        let effect = self.outstanding.remove(n % self.outstanding.len());
        let message = || "no".to_owned();
        let event = match (effect, good) {
            (Effect::PrepareVolumes, true) => {
                self.volumes = true;
                Event::VolumesReady
            }
            (Effect::PrepareVolumes, false) => Event::VolumesFailed { message: message() },
            (Effect::CreateSandbox, true) => {
                self.sandbox = true;
                self.cleaned = false;
                Event::SandboxCreated
            }
            (Effect::CreateSandbox, false) => Event::SandboxFailed { message: message() },
            (Effect::AttachNetwork, true) => {
                self.attached = true;
                Event::NetworkAttached { addresses: vec!["10.0.0.1".into()] }
            }
            (Effect::AttachNetwork, false) => Event::NetworkFailed { message: message() },
            (Effect::EnsureImage { container }, true) => {
                Event::ImageReady { container, image_id: "x".into(), stop_signal: None }
            }
            (Effect::EnsureImage { container }, false) => {
                Event::ImageFailed { container, reason: "ErrImagePull".into(), message: message() }
            }
            (Effect::Start { container, attempt }, true) => {
                // The sandbox may have died under it.
                if !self.sandbox {
                    Event::StartFailed { container, attempt, message: message() }
                } else {
                    self.running.insert(container.clone(), attempt);
                    self.started.insert((container.clone(), attempt));
                    let at = tests::at(self.secs).wall;
                    Event::Started { id: format!("{container}-{attempt}"), container, attempt, at }
                }
            }
            (Effect::Start { container, attempt }, false) => {
                Event::ConfigFailed { container, attempt, message: message() }
            }
            (Effect::Stop { container, attempt, .. }, _) => tests::exited(&container, attempt, 137, self.secs),
            (Effect::DetachNetwork, true) => {
                self.attached = false;
                Event::NetworkDetached
            }
            (Effect::Cleanup { keep_logs }, true) => {
                self.logs = keep_logs;
                self.sandbox = false;
                self.volumes = false;
                self.cleaned = true;
                Event::CleanedUp
            }
            (Effect::DeleteFromApi, true) => Event::ApiDeleted,
            (Effect::DetachNetwork | Effect::Cleanup { .. } | Effect::DeleteFromApi, false) => {
                Event::TeardownFailed { message: message() }
            }
            (other, _) => panic!("nobody answers {other:?}"),
        };
        self.tell(event);
    }

    fn lose_sandbox(&mut self) {
        if !self.sandbox || self.finished {
            return;
        }
        self.sandbox = false;
        self.attached = false;
        self.volumes = false;
        self.running.clear();
        self.outstanding.retain(|e| !matches!(e, Effect::Stop { .. }));
        self.tell(Event::SandboxLost);
    }

    /// The agent forgets all but its file; the shim remembers.
    fn restart(&mut self) {
        if self.finished || self.machine.is_removing() {
            return;
        }
        let Some(saved) = self.machine.snapshot().cloned() else { return };
        self.outstanding.clear();
        let mut containers = Vec::new();
        for (name, attempt) in &self.running {
            containers.push((name.clone(), *attempt, None));
        }
        for ((name, attempt), code) in &self.ended {
            containers.push((name.clone(), *attempt, Some(tests::exit(*code, self.secs))));
        }
        let report = self.sandbox.then(|| ShimReport {
            containers: containers
                .into_iter()
                .map(|(name, attempt, exit)| ShimContainer {
                    id: format!("{name}-{attempt}"),
                    name,
                    attempt,
                    started: Some(tests::at(self.secs).wall),
                    exit,
                })
                .collect(),
            ..ShimReport::default()
        });
        self.attached = false;
        self.volumes = false;
        let plan = self.machine.plan.clone();
        self.machine = Machine::recover(plan, &saved, report.as_ref(), tests::at(self.secs));
        self.tell(Event::Tick);
    }

    fn go(&mut self, m: &Move) {
        match m {
            Move::Succeed(n) => self.answer(*n, true),
            Move::Fail(n) => self.answer(*n, false),
            Move::Exit(n, code) => {
                let Some((c, attempt)) = self.running.iter().nth(*n).map(|(c, a)| (c.clone(), *a)) else { return };
                self.running.remove(&c);
                self.ended.insert((c.clone(), attempt), *code);
                self.tell(tests::exited(&c, attempt, *code, self.secs));
            }
            Move::Tick => {
                if let Some(at) = self.machine.next_deadline() {
                    self.secs = self.secs.max(at.as_secs_f64());
                }
                self.tell(Event::Tick);
            }
            Move::Delete(grace) => {
                self.deleted = true;
                // Starts asked for before the deletion may still be under way.
                self.tell(Event::Delete { grace: Duration::from_secs(*grace) });
            }
            Move::Gone => {
                self.deleted = true;
                self.tell(Event::Gone);
            }
            Move::SandboxLost => self.lose_sandbox(),
            Move::Restart => self.restart(),
        }
    }

    /// Every exit that the machine was told is in its record.
    fn exits_are_known(&self) {
        for c in &self.machine.containers {
            let newest = self.ended.iter().filter(|((name, _), _)| *name == c.plan.name).max_by_key(|((_, a), _)| *a);
            let Some(((_, attempt), code)) = newest else { continue };
            if c.next != attempt + 1 || c.alive() {
                continue;
            }
            let known = match &c.state {
                State::Ended(e) => Some(e.exit.code),
                _ => c.last.as_ref().map(|e| e.exit.code),
            };
            // A sandbox that died takes its containers' codes with it.
            assert!(known == Some(*code) || known == Some(137), "{}: {known:?} instead of {code}", c.plan.name);
        }
    }
}

fn policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_whatever_happens(policy in policy(), moves in moves()) {
        let mut w = World::new(policy);
        for m in &moves {
            w.go(m);
            w.exits_are_known();
        }
    }

    /// After any history, a deletion and a world that works lead to the Pod's end, and nothing is
    /// left running.
    #[test]
    fn a_deleted_pod_always_comes_to_its_end(policy in policy(), moves in moves()) {
        let mut w = World::new(policy);
        for m in &moves {
            w.go(m);
        }
        w.go(&Move::Delete(1));
        for _ in 0..400 {
            if w.finished {
                break;
            }
            w.answer(0, true);
            w.go(&Move::Tick);
        }
        prop_assert!(w.finished, "never over: {:?}", w.machine);
        prop_assert!(w.running.is_empty() && !w.sandbox && !w.attached);
    }

    /// A world that works brings every Pod up, or to its end by its own policy.
    #[test]
    fn a_pod_always_comes_up_in_a_world_that_works(policy in policy(), moves in moves()) {
        let mut w = World::new(policy);
        for m in moves.iter().filter(|m| !matches!(m, Move::Delete(_) | Move::Gone)) {
            w.go(m);
        }
        let settled = |w: &World, c: &Record| match &c.state {
            State::Ended(e) => !advance::restarts(c, e, w.policy),
            _ => c.alive(),
        };
        let up = |w: &World| {
            w.machine.containers.iter().filter(|c| c.plan.role == Role::Main).all(|c| settled(w, c))
        };
        let over = |w: &World| w.machine.is_kept();
        for _ in 0..600 {
            if (up(&w) && w.outstanding.is_empty() && w.machine.phase() == Phase::Running) || over(&w) {
                break;
            }
            w.answer(0, true);
            w.go(&Move::Tick);
            if w.running.contains_key("i") {
                w.go(&Move::Exit(w.running.keys().position(|c| c == "i").unwrap(), 0));
            }
        }
        prop_assert!(up(&w) || over(&w), "{:?}", w.machine);
    }
}
