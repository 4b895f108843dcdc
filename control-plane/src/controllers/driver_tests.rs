//! The driver on real time: one member in memory, agents and netd played by the test.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use trellis_model::Object;

use super::*;
use crate::api::ops::{Backend, InMemory};
use crate::controllers::object::Write;
use crate::controllers::testing::{admission, deployment, node, object};
use crate::controllers::writer::AdmittedWriter;
use crate::nodes::GossipView;
use crate::nodes::leases::RENEW_EVERY;
use crate::raft::LeaderHooks as _;

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

struct Lab {
    backend: Arc<InMemory>,
    writer: AdmittedWriter,
    leadership: watch::Sender<Leadership>,
    registry: NodeRegistry,
    gossip: SharedGossip,
    stop: CancellationToken,
}

impl Lab {
    fn start() -> (Self, tokio::task::JoinHandle<()>) {
        let backend = Arc::new(InMemory::new());
        let writer = AdmittedWriter::new(backend.clone(), admission());
        let (leadership, follow) = watch::channel(Leadership::default());
        let (registry, gossip, stop) = (NodeRegistry::new(), SharedGossip::new(), CancellationToken::new());
        let controllers = Controllers {
            store: backend.store().clone(),
            writer: Arc::new(writer.clone()),
            leadership: follow,
            registry: registry.clone(),
            gossip: gossip.clone(),
        };
        let task = tokio::spawn(run(controllers, |_: &Store| Config::default(), stop.clone()));
        (Self { backend, writer, leadership, registry, gossip, stop }, task)
    }

    fn lead(&self, term: u64, is_leader: bool) {
        self.leadership.send_replace(Leadership { term, is_leader, ..Leadership::default() });
    }

    async fn create(&self, object: Object) {
        let done = self.writer.commit(vec![Write::Create(object)], 1).await;
        assert!(matches!(done, Written::Done(_)), "{done:?}");
    }

    /// Pods bound, by node.
    fn bound(&self) -> BTreeMap<String, usize> {
        let (lists, _) = self.backend.store().list_kinds(&["Pod"]);
        let mut out = BTreeMap::new();
        for pod in &lists[0] {
            if let Some(n) = pod.object.index.field("spec.nodeName") {
                *out.entry(n.to_owned()).or_default() += 1;
            }
        }
        out
    }

    async fn until(&self, what: &str, f: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !f(self) {
            assert!(Instant::now() < deadline, "{what} did not come true: {:?}", self.bound());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn seed(&self) {
        let ns = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        self.create(object(ns)).await;
        for n in ["n0", "n1", "n2"] {
            self.create(Object::Node(Box::new(node(n, "4", "8Gi")))).await;
        }
        self.create(Object::Deployment(Box::new(deployment("web", 6, "1m")))).await;
    }
}

fn agent(registry: NodeRegistry, name: &'static str) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            registry.renew_lease(name, "test");
            tokio::time::sleep(RENEW_EVERY).await;
        }
    })
}

fn view(dead: &[&str]) -> GossipView {
    let all = ["n0", "n1", "n2"].iter().map(|n| (Arc::from(*n), dead.contains(n)));
    GossipView { dead: all.collect(), healthy: true }
}

/// Beside a lab in which nothing is to happen: one in which the same does, so that waiting for it
/// is long enough, and not longer.
struct Control {
    lab: Lab,
    task: tokio::task::JoinHandle<()>,
    agents: Vec<tokio::task::JoinHandle<()>>,
}

impl Control {
    async fn leading() -> Self {
        let (lab, task) = Lab::start();
        lab.seed().await;
        let agents = agents(&lab);
        lab.gossip.publish(view(&[]));
        lab.lead(1, true);
        Self { lab, task, agents }
    }

    async fn until_bound(&self, count: usize) {
        self.lab.until("the control's Pods are bound", |l| l.bound().values().sum::<usize>() == count).await;
    }

    async fn end(self) {
        self.agents.iter().for_each(tokio::task::JoinHandle::abort);
        self.lab.stop.cancel();
        self.task.await.unwrap();
    }
}

fn agents(lab: &Lab) -> Vec<tokio::task::JoinHandle<()>> {
    ["n0", "n1", "n2"].map(|n| agent(lab.registry.clone(), n)).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_leader_acts_and_a_dead_nodes_pods_are_bound_elsewhere() {
    let (lab, task) = Lab::start();
    lab.seed().await;
    let agents = agents(&lab);
    lab.gossip.publish(view(&[]));
    // Begun later, the control is where this lab would be if it led.
    let control = Control::leading().await;
    control.until_bound(6).await;
    assert!(lab.bound().is_empty(), "a follower does nothing");
    lab.lead(1, true);
    lab.until("all are bound", |l| l.bound().values().sum::<usize>() == 6).await;
    assert_eq!(lab.bound().len(), 3);
    let killed = Instant::now();
    agents[2].abort();
    lab.gossip.publish(view(&["n2"]));
    lab.until("all are bound elsewhere", |l| !l.bound().contains_key("n2") && l.bound().values().sum::<usize>() == 6)
        .await;
    println!("killed -> bound elsewhere in {:?} (lease {:?})", killed.elapsed(), crate::nodes::leases::LEASE_TTL);
    // No longer leading: nothing moves.
    lab.lead(1, false);
    lab.until("the leases end", |l| l.registry.renewals().is_empty()).await;
    for l in [&lab, &control.lab] {
        l.create(Object::Pod(Box::new(crate::controllers::testing::pod("default", "late")))).await;
    }
    control.until_bound(7).await;
    assert_eq!(lab.bound().values().sum::<usize>(), 6);
    lab.lead(1, true);
    lab.until("the new leader finds it", |l| l.bound().values().sum::<usize>() == 7).await;
    assert!(!lab.bound().contains_key("n2"), "and does not revive the dead");
    lab.stop.cancel();
    task.await.unwrap();
    control.end().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_new_leader_lets_others_run_while_it_reads_the_state() {
    let (lab, task) = Lab::start();
    lab.seed().await;
    let objects = 8 * LOADS_A_TURN;
    for i in 0..objects {
        let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("c{i}"), "namespace": "default"}});
        lab.create(self::object(object)).await;
    }
    let turns = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    tokio::task::yield_now().await;
    let base = Controllers {
        store: lab.backend.store().clone(),
        writer: Arc::new(lab.writer.clone()),
        leadership: lab.leadership.subscribe(),
        registry: lab.registry.clone(),
        gossip: lab.gossip.clone(),
    };
    let engine = Engine::new(Config::default(), 1, 7, &Now::read());
    let config = |_: &Store| Config::default();
    let mut session = Session { base: &base, config: &config, term: 1, engine, jobs: JoinSet::new() };
    let before = turns.load(std::sync::atomic::Ordering::Relaxed);
    session.list().await.unwrap();
    let after = turns.load(std::sync::atomic::Ordering::Relaxed);
    assert!(after - before >= 8, "{} turns of others while {objects} objects were read", after - before);
    other.abort();
    lab.stop.cancel();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_term_is_over_writes_nothing() {
    let (lab, task) = Lab::start();
    lab.seed().await;
    let _agents = agents(&lab);
    lab.gossip.publish(view(&[]));
    let before = lab.backend.store().revision();
    // The store applies everything in term 1.
    lab.lead(7, true);
    let control = Control::leading().await;
    control.until_bound(6).await;
    assert_eq!(lab.backend.store().revision(), before);
    lab.stop.cancel();
    task.await.unwrap();
    control.end().await;
}
