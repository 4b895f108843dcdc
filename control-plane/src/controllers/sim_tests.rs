//! The whole leader on a simulated clock: store, writer and engine are the real ones.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{EnvVar, Pod, PodSchedulingGate, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use trellis_model::{Kind, Object};
use trellis_proto::identity::Identity;

use super::deployment::{max_surge, max_unavailable, revision};
use super::engine::Engine;
use super::node::cidr::NEXT;
use super::node::ready_status;
use super::object::{ObjKey, Write, controller_ref};
use super::pods;
use super::testing::{Sim, deployment, node, object, pod};
use super::writer::{Written, count_of};
use crate::api::ops::{Backend as _, Ops, Part, Sealer, Target, WriteOptions};
use crate::auth::Caller;
use crate::nodes::GossipView;
use crate::nodes::leases::LEASE_TTL;
use crate::nodes::verdict::Signals;
use crate::store::WatchFilter;

fn dkey(name: &str) -> ObjKey {
    ObjKey::new(Kind::Deployment, "default", name)
}

fn edit_deployment(sim: &mut Sim, name: &str, f: impl FnOnce(&mut Deployment)) {
    sim.edit(&dkey(name), |o| {
        if let Object::Deployment(d) = o {
            f(d);
        }
    });
}

fn set_image(sim: &mut Sim, name: &str, image: &str) {
    edit_deployment(sim, name, |d| {
        let spec = d.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        spec.containers[0].image = Some(image.into());
    });
}

fn cluster(nodes: usize) -> Sim {
    let mut sim = Sim::new();
    for i in 0..nodes {
        sim.create(node(&format!("n{i}"), "4", "8Gi"));
    }
    sim
}

fn condition(d: &Deployment, type_: &str) -> (String, String) {
    let list = d.status.as_ref().unwrap().conditions.clone().unwrap();
    let c = list.iter().find(|c| c.type_ == type_).unwrap();
    (c.status.clone(), c.reason.clone().unwrap())
}

fn images(sim: &Sim) -> Vec<String> {
    let mut all: Vec<String> =
        sim.pods().iter().map(|p| p.spec.as_ref().unwrap().containers[0].image.clone().unwrap()).collect();
    all.dedup();
    all
}

fn events(sim: &Sim, reason: &str) -> Vec<String> {
    let all = sim.all(Kind::Event).into_iter();
    all.filter_map(|o| match o {
        Object::Event(e) if e.reason.as_deref() == Some(reason) => e.message,
        _ => None,
    })
    .collect()
}

#[test]
fn a_deployment_comes_up_rolls_over_and_back() {
    let mut sim = cluster(3);
    sim.create(deployment("web", 3, "100m"));
    sim.run();
    assert_eq!(sim.per_node().values().copied().collect::<Vec<_>>(), [1, 1, 1]);
    let d = sim.get_deployment("web");
    let status = d.status.clone().unwrap();
    assert_eq!((status.replicas, status.updated_replicas, status.available_replicas), (Some(3), Some(3), Some(3)));
    assert_eq!(status.observed_generation, d.metadata.generation);
    assert_eq!(condition(&d, "Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert_eq!(condition(&d, "Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(d.metadata.annotations.as_ref().unwrap()[revision::REVISION], "1");
    assert!(events(&sim, "Scheduled").len() == 3 && events(&sim, "ScalingReplicaSet").len() == 1);

    set_image(&mut sim, "web", "v2");
    sim.run();
    assert_eq!(images(&sim), ["v2"]);
    assert_eq!(sim.pods().len(), 3);
    assert_eq!(sim.get_deployment("web").metadata.annotations.unwrap()[revision::REVISION], "2");

    set_image(&mut sim, "web", "web");
    sim.run();
    assert_eq!(sim.all(Kind::ReplicaSet).len(), 2, "the first one is taken again");
    assert_eq!(sim.get_deployment("web").metadata.annotations.unwrap()[revision::REVISION], "3");
    let commits = sim.commits;
    sim.settle();
    assert_eq!(sim.commits, commits, "planning again yields none");
}

#[test]
fn history_is_limited_and_a_restart_rolls_over() {
    let mut sim = cluster(2);
    let mut d = deployment("web", 2, "1m");
    d.spec.as_mut().unwrap().revision_history_limit = Some(1);
    sim.create(d);
    sim.run();
    let before: Vec<_> = sim.pods().iter().map(|p| p.metadata.uid.clone()).collect();
    for i in 0..3 {
        edit_deployment(&mut sim, "web", |d| {
            let meta = d.spec.as_mut().unwrap().template.metadata.get_or_insert_default();
            let key = "kubectl.kubernetes.io/restartedAt".to_owned();
            meta.annotations.get_or_insert_default().insert(key, i.to_string());
        });
        sim.run();
    }
    assert_eq!(sim.all(Kind::ReplicaSet).len(), 2, "the new one and one old one");
    assert!(sim.pods().iter().all(|p| !before.contains(&p.metadata.uid)));
}

#[test]
fn recreate_never_mixes_versions() {
    let mut sim = cluster(2);
    let mut d = deployment("web", 4, "1m");
    let strategy = d.spec.as_mut().unwrap().strategy.get_or_insert_default();
    strategy.type_ = Some("Recreate".into());
    sim.create(d);
    sim.run();
    set_image(&mut sim, "web", "v2");
    let mut done = false;
    for _ in 0..500 {
        sim.settle();
        assert!(images(&sim).len() <= 1, "{:?}", images(&sim));
        let Some(key) = sim.agent_work().first().cloned() else {
            done = true;
            break;
        };
        sim.agent(&key);
    }
    assert!(done);
    assert_eq!((images(&sim), sim.pods().len()), (vec!["v2".to_owned()], 4));
    edit_deployment(&mut sim, "web", |d| d.spec.as_mut().unwrap().replicas = Some(1));
    sim.run();
    assert_eq!(sim.pods().len(), 1);
}

#[test]
fn paused_deployments_scale_but_do_not_roll() {
    let mut sim = cluster(2);
    sim.create(deployment("web", 2, "1m"));
    sim.run();
    edit_deployment(&mut sim, "web", |d| d.spec.as_mut().unwrap().paused = Some(true));
    set_image(&mut sim, "web", "v2");
    edit_deployment(&mut sim, "web", |d| d.spec.as_mut().unwrap().replicas = Some(4));
    sim.run();
    assert_eq!((images(&sim), sim.pods().len()), (vec!["web".to_owned()], 4));
    assert_eq!(condition(&sim.get_deployment("web"), "Progressing").1, "DeploymentPaused");
    edit_deployment(&mut sim, "web", |d| d.spec.as_mut().unwrap().paused = Some(false));
    sim.run();
    assert_eq!(images(&sim), ["v2"]);
}

#[test]
fn a_rollout_that_does_not_move_is_told_after_its_deadline() {
    let mut sim = cluster(1);
    let mut d = deployment("web", 1, "99");
    d.spec.as_mut().unwrap().progress_deadline_seconds = Some(30);
    sim.create(d);
    sim.run();
    let pending = &sim.pods()[0];
    let told = pods::condition(pending, "PodScheduled").unwrap();
    assert_eq!(told.reason.as_deref(), Some("Unschedulable"));
    assert_eq!(told.message.as_deref(), Some("0/1 nodes are available: 1 Insufficient cpu."));
    assert_eq!(events(&sim, "FailedScheduling"), ["0/1 nodes are available: 1 Insufficient cpu."]);
    assert_eq!(condition(&sim.get_deployment("web"), "Progressing").0, "True");
    sim.pass(Duration::from_secs(31));
    sim.run();
    assert_eq!(
        condition(&sim.get_deployment("web"), "Progressing"),
        ("False".into(), "ProgressDeadlineExceeded".into())
    );
    sim.create(node("big", "128", "64Gi"));
    sim.run();
    assert_eq!(sim.per_node().get("big"), Some(&1));
    assert_eq!(condition(&sim.get_deployment("web"), "Progressing").1, "NewReplicaSetAvailable");
}

#[test]
fn deletion_goes_along_owner_references() {
    let mut sim = cluster(2);
    sim.create(deployment("web", 3, "1m"));
    sim.run();
    sim.delete(&dkey("web"));
    sim.run();
    assert!(sim.all(Kind::ReplicaSet).is_empty() && sim.pods().is_empty());
}

#[test]
fn orphans_stay_and_are_adopted_again() {
    let mut sim = cluster(2);
    sim.create(deployment("web", 3, "1m"));
    sim.run();
    let uids: Vec<_> = sim.pods().iter().map(|p| p.metadata.uid.clone()).collect();
    let now = sim.now;
    sim.edit(&dkey("web"), |o| o.meta_mut().finalizers = Some(vec![super::gc::ORPHAN.into()]));
    sim.edit(&dkey("web"), |o| o.meta_mut().deletion_timestamp = Some(now.time()));
    sim.run();
    assert!(sim.all(Kind::Deployment).is_empty());
    let sets = sim.all(Kind::ReplicaSet);
    assert_eq!((sets.len(), sets[0].meta().owner_references.clone()), (1, None));
    sim.create(deployment("web", 3, "1m"));
    sim.run();
    assert_eq!(sim.all(Kind::ReplicaSet).len(), 1);
    assert_eq!(sim.pods().iter().map(|p| p.metadata.uid.clone()).collect::<Vec<_>>(), uids);
}

#[test]
fn other_kinds_are_collected_too() {
    let mut sim = cluster(1);
    sim.create(deployment("web", 0, "1m"));
    sim.settle();
    let owner = sim.get_deployment("web");
    let mut map = object(
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "default", "name": "c"}}),
    );
    map.meta_mut().owner_references = Some(vec![controller_ref(Kind::Deployment, &owner.metadata)]);
    let mut secret = object(
        serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "default", "name": "s"}}),
    );
    secret.meta_mut().owner_references = map.meta().owner_references.clone();
    sim.create(map);
    sim.create(secret);
    sim.settle();
    sim.delete(&dkey("web"));
    sim.settle();
    assert!(sim.all(Kind::ConfigMap).is_empty());
    let (lists, _) = crate::api::ops::Backend::store(&*sim.backend).list_kinds(&["Secret"]);
    assert!(lists[0].is_empty(), "its content is encrypted, its owners are not");
}

#[test]
fn a_terminating_namespace_is_emptied_and_goes() {
    let mut sim = cluster(1);
    sim.create(object(serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})));
    let mut d = deployment("web", 3, "1m");
    d.metadata.namespace = Some("x".into());
    sim.create(d);
    sim.run();
    assert_eq!(sim.pods().len(), 3);
    let key = ObjKey::new(Kind::Namespace, "", "x");
    let revision = sim.get(&key).unwrap().1;
    sim.commit(vec![Write::Terminate { key: key.clone(), revision }]);
    sim.run();
    assert!(sim.get(&key).is_none());
    assert!(sim.pods().is_empty() && sim.all(Kind::ReplicaSet).is_empty());
    assert!(sim.all(Kind::Event).iter().all(|e| e.namespace() != "x"));
}

fn signals(sim: &mut Sim, alive: &[&str], dead: &[&str]) {
    let renewed = alive.iter().map(|n| (Arc::from(*n), sim.now.mono)).collect();
    let all = alive.iter().map(|n| (Arc::from(*n), false)).chain(dead.iter().map(|n| (Arc::from(*n), true)));
    let view = GossipView { dead: all.collect(), healthy: true };
    sim.engine.on_signals(Signals { renewed, gossip: Some(Arc::new(view)) });
}

#[test]
fn a_dead_nodes_pods_run_elsewhere_as_soon_as_both_observers_agree() {
    let mut sim = cluster(3);
    sim.create(deployment("web", 6, "1m"));
    sim.run();
    assert_eq!(sim.per_node().len(), 3);
    signals(&mut sim, &["n0", "n1", "n2"], &[]);
    sim.settle();
    sim.pass(LEASE_TTL - Duration::from_millis(1));
    signals(&mut sim, &["n0", "n1"], &["n2"]);
    sim.settle();
    assert_eq!(sim.per_node()["n2"], 2, "gossip alone evicts nobody");
    sim.pass(Duration::from_millis(1));
    signals(&mut sim, &["n0", "n1"], &["n2"]);
    sim.settle();
    let after = sim.per_node();
    assert_eq!(after, BTreeMap::from([("n0".into(), 3), ("n1".into(), 3)]), "bound without any time passing");
    assert_eq!(ready_status(&sim.get_node("n2")), Some("Unknown"));
    // It comes back.
    signals(&mut sim, &["n0", "n1", "n2"], &[]);
    sim.settle();
    let n2 = sim.get_node("n2");
    assert_eq!((ready_status(&n2), n2.spec.as_ref().unwrap().taints.clone()), (Some("True"), None));
}

#[test]
fn a_silent_node_keeps_its_pods_for_forty_seconds() {
    let mut sim = cluster(3);
    sim.create(deployment("web", 3, "1m"));
    sim.run();
    let tick = |sim: &mut Sim| {
        sim.pass(Duration::from_millis(500));
        let renewed = ["n0", "n1"].iter().map(|n| (Arc::from(*n), sim.now.mono)).collect();
        let alive = ["n0", "n1", "n2"].iter().map(|n| (Arc::from(*n), false)).collect();
        let view = GossipView { dead: alive, healthy: true };
        sim.engine.on_signals(Signals { renewed, gossip: Some(Arc::new(view)) });
        sim.settle();
    };
    for _ in 0..78 {
        tick(&mut sim);
    }
    assert_eq!(ready_status(&sim.get_node("n2")), Some("False"));
    assert_eq!(sim.per_node()["n2"], 1);
    for _ in 0..12 {
        tick(&mut sim);
    }
    assert_eq!(sim.per_node().get("n2"), None, "marked deleted, replaced elsewhere");
    assert_eq!(sim.pods().len(), 4, "the marked one waits for its agent");
}

#[test]
fn nothing_is_evicted_while_more_than_half_is_lost() {
    let mut sim = cluster(3);
    sim.create(deployment("web", 3, "1m"));
    sim.run();
    sim.pass(LEASE_TTL);
    signals(&mut sim, &["n0"], &["n1", "n2"]);
    sim.settle();
    assert_eq!(sim.per_node().len(), 3);
    sim.pass(Duration::from_secs(60));
    signals(&mut sim, &["n0", "n1"], &["n2"]);
    sim.settle();
    assert_eq!(sim.per_node().get("n2"), None, "one of three is lost now: that one counts");
    assert_eq!(sim.per_node().values().sum::<usize>(), 3);
}

#[test]
fn nodes_get_pod_cidrs_of_their_own() {
    let mut sim = cluster(5);
    sim.settle();
    let mut all: Vec<String> = (0..5).map(|i| sim.get_node(&format!("n{i}")).spec.unwrap().pod_cidr.unwrap()).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 5);
    assert!(all.iter().all(|c| c.ends_with(".0/24")));
}

#[test]
fn a_deleted_nodes_pod_cidr_is_not_given_again_by_the_next_leader() {
    let given = |sim: &Sim| sim.backend.store().sys_get(NEXT).map_or(0, |v| count_of(&v.value));
    let next_leader = |sim: &mut Sim, resumes: bool| {
        sim.engine = Engine::new(sim.engine.config.clone(), 1, 8, &sim.now);
        let kinds: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
        let (lists, revision) = sim.backend.store().list_kinds(&kinds);
        for object in lists.iter().flatten() {
            sim.engine.load(&object.key, object.revision, &object.object, &sim.now).unwrap();
        }
        if resumes {
            sim.engine.resume_cidrs(given(sim), &sim.now);
        }
        sim.engine.on_revision(revision);
        sim.watcher = sim.backend.store().watch(WatchFilter::kinds(kinds), revision).unwrap();
    };
    let newcomers = |resumes: bool| {
        let mut sim = cluster(3);
        sim.settle();
        assert!(given(&sim) >= 3, "{}", given(&sim));
        let cidr = |n: &str| sim.get_node(n).spec.unwrap().pod_cidr.unwrap();
        let (gone, last) = ["n0", "n1", "n2"].map(|n| (cidr(n), n)).into_iter().max().unwrap();
        sim.delete(&ObjKey::new(Kind::Node, "", last));
        next_leader(&mut sim, resumes);
        for name in ["n3", "n4", "n5"] {
            sim.create(node(name, "4", "8Gi"));
        }
        sim.settle();
        let all: Vec<_> = ["n3", "n4", "n5"].map(|n| sim.get_node(n).spec.unwrap().pod_cidr.unwrap()).into();
        assert!(given(&sim) >= 6, "{}", given(&sim));
        (gone, all)
    };
    let (gone, all) = newcomers(false);
    assert!(all.contains(&gone), "the control: {gone} is given again: {all:?}");
    let (gone, all) = newcomers(true);
    assert!(!all.contains(&gone), "{gone} is given again: {all:?}");
}

#[test]
fn a_pod_with_a_node_name_is_left_alone_and_counted() {
    let mut sim = cluster(1);
    let mut p = pod("default", "static");
    p.spec.get_or_insert_default().node_name = Some("n0".into());
    sim.create(p);
    sim.settle();
    assert_eq!(sim.engine.scheduler().node("n0").unwrap().pods, 1);
}

/// Makes a Pod's spec larger by so many bytes.
#[test]
fn a_gated_pod_says_so_and_is_bound_once_its_last_gate_is_gone() {
    let mut sim = cluster(1);
    let ops = Ops::new(sim.backend.clone(), Sealer::new(trellis_proto::pki::Key::generate()));
    let admin = Caller::Peer(Identity::admin());
    let target = Target::new(Kind::Pod, "default", "p");
    let mut gated = pod("default", "p");
    let gate = |name: &str| PodSchedulingGate { name: name.into() };
    gated.spec.as_mut().unwrap().scheduling_gates = Some(vec![gate("a.b/one"), gate("a.b/two")]);
    sim.create(gated);
    sim.create(pod("default", "control"));
    let patch = |gates: serde_json::Value| {
        let patch = serde_json::json!({"spec": {"schedulingGates": gates}}).to_string();
        let options = WriteOptions::default();
        let patched = ops.patch(&admin, &target, Part::Main, patch.as_bytes(), &options).now_or_never();
        patched.expect("memory answers at once").map(|_| ())
    };
    let seen = |sim: &Sim| {
        let pod = sim.pods().into_iter().find(|p| p.metadata.name.as_deref() == Some("p")).unwrap();
        let status = pod.status.unwrap();
        let c = trellis_model::conditions::find(status.conditions.as_ref(), "PodScheduled").unwrap().clone();
        (pod.spec.unwrap().node_name, c.status, c.reason.unwrap_or_default(), c.message.unwrap_or_default())
    };
    let waits = (
        None,
        "False".to_owned(),
        "SchedulingGated".to_owned(),
        "Scheduling is blocked due to non-empty scheduling gates".to_owned(),
    );
    sim.settle();
    assert_eq!(seen(&sim), waits);
    assert_eq!(sim.per_node().values().sum::<usize>(), 1, "the control is bound");
    patch(serde_json::json!([{"name": "a.b/two"}])).unwrap();
    sim.settle();
    assert_eq!(seen(&sim), waits, "one gate is left");
    let refused = patch(serde_json::json!([{"name": "a.b/two"}, {"name": "a.b/three"}])).unwrap_err();
    assert!(refused.to_string().contains("found new scheduling gate 'a.b/three'"), "{refused}");
    patch(serde_json::json!(null)).unwrap();
    sim.settle();
    let (node, status, reason, _) = seen(&sim);
    assert_eq!((node.as_deref(), status.as_str(), reason.as_str()), (Some("n0"), "True", ""));
}

fn load(spec: &mut PodSpec, bytes: usize) {
    let ballast = EnvVar { name: "BALLAST".into(), value: Some("x".repeat(bytes)), ..EnvVar::default() };
    spec.containers[0].env = Some(vec![ballast]);
}

/// A Pod of about so many bytes.
fn big(name: &str, bytes: usize) -> Pod {
    let mut p = pod("default", name);
    load(p.spec.as_mut().unwrap(), bytes);
    p
}

/// Seven of them are more than one transaction may hold.
const BALLAST: usize = 1_300_000;

#[test]
fn big_pods_are_bound_in_as_many_transactions_as_it_takes() {
    let mut sim = cluster(1);
    for i in 0..8 {
        sim.create(big(&format!("p{i}"), BALLAST));
    }
    // One that is as large as an object may be has no room for the name of a node.
    let (mut least, mut most) = (BALLAST, 2 * BALLAST);
    while least + 1 < most {
        let size = (least + most) / 2;
        let object = Object::Pod(Box::new(big("full", size)));
        let fits = matches!(sim.commit(vec![Write::Create(object)]), Written::Done(_));
        *(if fits { &mut least } else { &mut most }) = size;
        if fits {
            sim.delete(&ObjKey::new(Kind::Pod, "default", "full"));
        }
    }
    sim.create(big("full", least));
    for _ in 0..1_000 {
        sim.deliver();
        sim.plan();
        let Some(job) = (!sim.jobs.is_empty()).then(|| sim.jobs.remove(0)) else { break };
        let written = sim.commit(job.writes);
        sim.engine.on_done(job.id, written, &sim.now);
    }
    assert!(sim.jobs.is_empty(), "what cannot be bound is not tried for ever");
    let (bound, not): (Vec<_>, Vec<_>) =
        sim.pods().into_iter().partition(|p| p.spec.as_ref().unwrap().node_name.is_some());
    assert_eq!(bound.len(), 8);
    assert!(not.iter().all(|p| p.metadata.name.as_deref() == Some("full")), "{}", not.len());
}

#[test]
fn a_replica_set_makes_and_deletes_big_pods_in_pieces() {
    let mut sim = cluster(1);
    let mut d = deployment("web", 7, "1m");
    load(d.spec.as_mut().unwrap().template.spec.as_mut().unwrap(), BALLAST);
    sim.create(d);
    sim.run();
    assert_eq!(sim.pods().len(), 7);
    let told = events(&sim, "SuccessfulCreate");
    assert_eq!(told.len(), 7, "each is told of once: {told:?}");
    edit_deployment(&mut sim, "web", |d| d.spec.as_mut().unwrap().replicas = Some(0));
    sim.run();
    assert!(sim.pods().is_empty());
}

#[test]
fn edits_of_objects_that_are_not_decoded_are_halved_until_they_fit() {
    let mut sim = cluster(0);
    let owner = |finalizers: Vec<&str>| {
        object(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "owner", "namespace": "default", "finalizers": finalizers}}))
    };
    sim.create(owner(vec!["orphan"]));
    let key = ObjKey::new(Kind::ConfigMap, "default", "owner");
    let uid = sim.get(&key).unwrap().0.uid().to_owned();
    // A ConfigMap holds a megabyte at most.
    for i in 0..9 {
        sim.create(object(serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("c{i}"), "namespace": "default", "ownerReferences":
                [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]},
            "data": {"ballast": "x".repeat(1_000_000)}})));
    }
    let revision = sim.get(&key).unwrap().1;
    let done = sim.commit(vec![Write::Terminate { key: key.clone(), revision }]);
    assert!(matches!(done, Written::Done(_)), "{done:?}");
    for _ in 0..100 {
        sim.deliver();
        sim.plan();
        while !sim.jobs.is_empty() {
            let job = sim.jobs.remove(0);
            let written = sim.commit(job.writes);
            sim.engine.on_done(job.id, written, &sim.now);
        }
        sim.pass(Duration::from_millis(50));
    }
    assert!(sim.get(&key).is_none());
    let orphans = sim.all(Kind::ConfigMap);
    assert_eq!(orphans.len(), 9);
    assert!(orphans.iter().all(|o| o.meta().owner_references.as_ref().is_none_or(Vec::is_empty)));
}

#[test]
fn a_namespace_that_others_hold_is_left_to_them() {
    let mut sim = Sim::new();
    sim.create(object(serde_json::json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "dev", "finalizers": ["example.com/stay"]}})));
    let key = ObjKey::new(Kind::Namespace, "", "dev");
    let revision = sim.get(&key).unwrap().1;
    let done = sim.commit(vec![Write::Terminate { key: key.clone(), revision }]);
    assert!(matches!(done, Written::Done(_)), "{done:?}");
    sim.settle();
    let Some((Object::Namespace(held), _)) = sim.get(&key) else { panic!("it is held") };
    assert!(held.spec.unwrap().finalizers.is_none_or(|f| f.is_empty()), "its controller is through with it");
    let commits = sim.commits;
    sim.pass(Duration::from_secs(60));
    sim.settle();
    assert_eq!(sim.commits, commits, "planning again yields none");
    sim.edit(&key, |o| o.meta_mut().finalizers = None);
    assert!(sim.get(&key).is_none());
}

#[test]
fn a_turn_plans_no_more_than_its_share() {
    let mut sim = cluster(0);
    // Fewer than the pod range has CIDRs for.
    for i in 0..200 {
        sim.create(node(&format!("n{i}"), "4", "8Gi"));
    }
    sim.settle();
    // The next leader has all of them to look at, and nothing to write.
    let mut engine = Engine::new(sim.engine.config.clone(), 1, 8, &sim.now);
    let kinds: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
    let (lists, revision) = sim.backend.store().list_kinds(&kinds);
    for o in lists.iter().flatten() {
        engine.load(&o.key, o.revision, &o.object, &sim.now).unwrap();
    }
    engine.on_revision(revision);
    let mut turns = 1;
    let all = engine.queue.len();
    assert!(engine.poll(&sim.now).is_empty());
    assert!(all > engine.queue.len() && all - engine.queue.len() <= 256, "{all} -> {}", engine.queue.len());
    assert_eq!(engine.next_deadline(&sim.now), Some(sim.now.mono), "the rest is due now");
    while engine.is_behind() {
        engine.poll(&sim.now);
        turns += 1;
    }
    assert!(engine.queue.is_empty() && turns >= 2, "{turns}");
}

#[test]
fn a_node_that_goes_and_is_held_still_tells_that_it_is_dead() {
    let mut sim = cluster(3);
    let held = ObjKey::new(Kind::Node, "", "n2");
    sim.edit(&held, |o| o.meta_mut().finalizers = Some(vec!["example.com/stay".into()]));
    signals(&mut sim, &["n0", "n1", "n2"], &[]);
    let revision = sim.get(&held).unwrap().1;
    let done = sim.commit(vec![Write::Terminate { key: held, revision }]);
    assert!(matches!(done, Written::Done(_)), "{done:?}");
    sim.settle();
    sim.pass(LEASE_TTL);
    signals(&mut sim, &["n0", "n1"], &["n2"]);
    sim.settle();
    let node = sim.get_node("n2");
    assert_eq!(ready_status(&node), Some("Unknown"));
    assert!(node.spec.unwrap().taints.is_some_and(|t| !t.is_empty()));
}

fn active(sim: &Sim) -> Vec<Pod> {
    sim.pods().into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Watch delivery, planning, commits (in any order) and agents interleave at random: a
    /// rolling update is never below minAvailable, never above maxSurge, and ends.
    #[test]
    fn rolling_updates_keep_their_bounds_in_any_interleaving(
        replicas in 1i32..8,
        surge in 0i32..4,
        unavailable in 0i32..4,
        second in any::<bool>(),
        choices in proptest::collection::vec((0u8..5, any::<u8>()), 50..400),
    ) {
        let mut sim = cluster(3);
        let mut d = deployment("web", replicas, "1m");
        // Both zero is refused by validation.
        let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
        let strategy = super::deployment::tests::strategy(IntOrString::Int(surge), IntOrString::Int(unavailable));
        d.spec.as_mut().unwrap().strategy = Some(strategy);
        sim.create(d);
        sim.run();
        let spec = sim.get_deployment("web").spec.unwrap();
        let floor = usize::try_from(replicas - max_unavailable(&spec)).unwrap();
        let ceiling = usize::try_from(replicas + max_surge(&spec)).unwrap();
        set_image(&mut sim, "web", "v2");
        let half = choices.len() / 2;
        for (i, (what, pick)) in choices.into_iter().enumerate() {
            if second && i == half { set_image(&mut sim, "web", "v3"); }
            let pick = usize::from(pick);
            match what {
                0 => { sim.deliver(); }
                1 => { sim.plan(); }
                2 | 3 => if !sim.jobs.is_empty() { let n = sim.jobs.len(); sim.commit_job(pick % n); },
                _ => {
                    let work = sim.agent_work();
                    if !work.is_empty() { let k = work[pick % work.len()].clone(); sim.agent(&k); }
                }
            }
            sim.pass(Duration::from_millis(2));
            let now = active(&sim);
            let available = now.iter().filter(|p| pods::ready(p)).count();
            prop_assert!(available >= floor, "{available} available, {floor} needed");
            prop_assert!(now.len() <= ceiling, "{} Pods, {ceiling} allowed", now.len());
        }
        sim.run();
        let end = active(&sim);
        prop_assert_eq!(end.len(), usize::try_from(replicas).unwrap());
        let image = if second { "v3" } else { "v2" };
        prop_assert!(end.iter().all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image)));
        let commits = sim.commits;
        sim.settle();
        prop_assert_eq!(sim.commits, commits, "planning again yields none");
    }

    /// Scaling to any sizes, in the middle of rollouts too, ends with exactly what was asked.
    #[test]
    fn scaling_converges(sizes in proptest::collection::vec((0i32..9, any::<bool>(), 0usize..6), 1..6)) {
        let mut sim = cluster(3);
        sim.create(deployment("web", 2, "1m"));
        sim.run();
        for (i, (size, roll, partial)) in sizes.iter().enumerate() {
            edit_deployment(&mut sim, "web", |d| d.spec.as_mut().unwrap().replicas = Some(*size));
            if *roll { set_image(&mut sim, "web", &format!("v{i}")); }
            for _ in 0..*partial {
                sim.settle();
                if let Some(k) = sim.agent_work().first().cloned() { sim.agent(&k); }
            }
        }
        sim.run();
        let last = usize::try_from(sizes.last().unwrap().0).unwrap();
        prop_assert_eq!(active(&sim).len(), last);
        prop_assert_eq!(images(&sim).len(), usize::from(last > 0));
    }
}

/// Prints numbers; asserts none of them.
#[test]
fn throughput_of_a_hundred_nodes_and_a_thousand_pods() {
    let mut sim = cluster(100);
    sim.settle();
    sim.create(deployment("web", 1_000, "10m"));
    let start = Instant::now();
    sim.settle();
    let bound = start.elapsed();
    let pods = sim.pods();
    assert!(pods.iter().all(|p| p.spec.as_ref().unwrap().node_name.is_some()));
    assert!(sim.per_node().values().all(|n| *n == 10));
    println!(
        "100 nodes, Deployment 0 -> 1000 bound in {bound:?} ({:.0} Pods/s), {} transactions, {} writes",
        1_000.0 / bound.as_secs_f64(),
        sim.commits,
        sim.writes
    );
    sim.pass(LEASE_TTL);
    let alive: Vec<String> = (1..100).map(|i| format!("n{i}")).collect();
    let alive: Vec<&str> = alive.iter().map(String::as_str).collect();
    signals(&mut sim, &alive, &["n0"]);
    let start = Instant::now();
    sim.settle();
    println!("node with 10 Pods dead -> all bound elsewhere in {:?} of work", start.elapsed());
    assert_eq!(sim.per_node().values().sum::<usize>(), 1_000);
}
