#![allow(clippy::unwrap_used, missing_docs)]
use super::filter::fits;
use super::pod::{PodInfo, PodKey};
use super::*;
use crate::controllers::object::Item;
use crate::controllers::testing::{node, pod};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn key(name: &str) -> PodKey {
    (Arc::from("default"), Arc::from(name))
}

fn wanting(name: &str, cpu: &str, memory: &str) -> Pod {
    let mut p = pod("default", name);
    p.metadata.uid = Some(name.into());
    let map = BTreeMap::from([("cpu".into(), Quantity(cpu.into())), ("memory".into(), Quantity(memory.into()))]);
    p.spec.as_mut().unwrap().containers[0].resources.get_or_insert_default().requests = Some(map);
    p
}

fn owned(mut p: Pod, owner: &str) -> Pod {
    let o =
        OwnerReference { uid: owner.into(), controller: Some(true), kind: "ReplicaSet".into(), ..Default::default() };
    p.metadata.owner_references = Some(vec![o]);
    p
}

fn item(p: Pod, revision: u64) -> Arc<Item<Pod>> {
    Arc::new(Item { revision, object: p })
}

fn add(s: &mut Scheduler, p: Pod) {
    let k = key(p.metadata.name.as_ref().unwrap());
    s.pod_changed(&k, Some(&item(p, 1)), Instant::now());
}

fn add_node(s: &mut Scheduler, n: Node) {
    let name: Arc<str> = Arc::from(n.metadata.name.as_deref().unwrap());
    s.node_changed(&name, Some(&n), Instant::now());
}

fn decide(s: &mut Scheduler) -> Vec<(String, String)> {
    let out = s.schedule(1_000, Instant::now());
    out.into_iter()
        .map(|d| match d {
            Decision::Bind { pod, node } => (pod.key.1.to_string(), node.to_string()),
            Decision::Unschedulable { pod, message } => (pod.key.1.to_string(), message),
        })
        .collect()
}

fn tainted(name: &str, key: &str, effect: &str) -> Node {
    let mut n = node(name, "4", "8Gi");
    let t = Taint { key: key.into(), value: Some("v".into()), effect: effect.into(), ..Taint::default() };
    n.spec.get_or_insert_default().taints = Some(vec![t]);
    n
}

#[test]
fn why_nothing_fits_is_told_in_kubernetes_words() {
    let mut s = Scheduler::new();
    add(&mut s, wanting("p", "2", "1Gi"));
    assert_eq!(decide(&mut s)[0].1, "no nodes available to schedule pods");
    add_node(&mut s, node("a", "1", "8Gi"));
    add_node(&mut s, node("b", "1", "512Mi"));
    add_node(&mut s, tainted("c", "k", "NoSchedule"));
    let mut cordoned = node("d", "4", "8Gi");
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    add_node(&mut s, cordoned);
    let mut unready = node("e", "4", "8Gi");
    unready.status.as_mut().unwrap().conditions = None;
    add_node(&mut s, unready);
    add(&mut s, wanting("q", "2", "1Gi"));
    let told = decide(&mut s);
    let (_, message) = told.iter().find(|(n, _)| n == "q").unwrap();
    assert_eq!(
        message,
        "0/5 nodes are available: 1 Insufficient memory, \
         1 node(s) were unschedulable, 2 Insufficient cpu, \
         2 node(s) had untolerated taint(s)."
    );
}

#[test]
fn a_workload_is_spread_then_the_emptiest_node_taken() {
    let mut s = Scheduler::new();
    for n in ["a", "b", "c"] {
        add_node(&mut s, node(n, "4", "8Gi"));
    }
    let mut big = wanting("big", "3", "4Gi");
    big.spec.as_mut().unwrap().node_name = Some("a".into());
    add(&mut s, big);
    for i in 0..3 {
        add(&mut s, owned(wanting(&format!("w{i}"), "100m", "64Mi"), "w"));
    }
    let mut nodes: Vec<String> = decide(&mut s).into_iter().map(|(_, n)| n).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b", "c"], "one each, though a is fuller");
    add(&mut s, wanting("alone", "100m", "64Mi"));
    assert_ne!(decide(&mut s)[0].1, "a");
}

#[test]
fn a_waiting_pod_is_bound_when_a_node_makes_room_and_not_before() {
    let mut s = Scheduler::new();
    let t = Instant::now();
    add_node(&mut s, node("a", "1", "8Gi"));
    add(&mut s, wanting("first", "1", "1Gi"));
    add(&mut s, wanting("second", "1", "1Gi"));
    let out = decide(&mut s);
    assert_eq!(out[0], ("first".into(), "a".into()));
    assert_eq!(out[1].1, "0/1 nodes are available: 1 Insufficient cpu.");
    assert!(!s.has_work(t) || decide(&mut s).is_empty());
    let mut label = node("a", "1", "8Gi");
    label.metadata.labels = Some(BTreeMap::from([("x".into(), "y".into())]));
    add_node(&mut s, label);
    assert!(decide(&mut s).is_empty(), "a change that does not help");
    s.pod_changed(&key("first"), None, t);
    assert!(s.has_work(t));
    assert_eq!(decide(&mut s), vec![("second".into(), "a".into())]);
}

#[test]
fn words_about_waiting_pods_follow_the_nodes() {
    let mut s = Scheduler::new();
    add_node(&mut s, node("a", "1", "8Gi"));
    add(&mut s, wanting("p", "2", "1Gi"));
    decide(&mut s);
    add_node(&mut s, node("b", "1", "8Gi"));
    assert!(decide(&mut s).is_empty());
    let later = s.next_deadline().unwrap() + Duration::from_millis(1);
    let told = s.schedule(10, later);
    assert!(
        matches!(&told[..], [Decision::Unschedulable { message, .. }] if message == "0/2 nodes are available: 2 Insufficient cpu.")
    );
}

#[test]
fn a_flood_of_pods_that_fit_nowhere_is_told_of_bit_by_bit() {
    let mut s = Scheduler::new();
    add_node(&mut s, node("a", "1", "8Gi"));
    for i in 0..300 {
        add(&mut s, wanting(&format!("p{i}"), "2", "1Gi"));
    }
    let begun = Instant::now();
    let mut told = std::collections::BTreeSet::new();
    assert_eq!(s.schedule(1_000, begun).len(), 200);
    assert!(!s.has_work(begun));
    assert_eq!(s.waiting(), 300);
    add(&mut s, wanting("small", "500m", "1Gi"));
    assert!(matches!(&s.schedule(1_000, begun)[..], [Decision::Bind { .. }]), "bindings are not held up");
    let mut now = begun;
    while told.len() < 100 {
        now = s.next_deadline().unwrap().max(now);
        for decision in s.schedule(1_000, now) {
            let Decision::Unschedulable { pod, .. } = decision else { panic!("{decision:?}") };
            assert!(told.insert(pod.key.1.to_string()), "told of once");
        }
    }
    let took = now - begun;
    assert!(took >= Duration::from_millis(900) && took <= Duration::from_millis(1_200), "{took:?}");
    assert!(s.next_deadline().is_none() && !s.has_work(now));
}

#[test]
fn a_refused_binding_gives_the_room_back() {
    let mut s = Scheduler::new();
    add_node(&mut s, node("a", "1", "8Gi"));
    add(&mut s, wanting("p", "1", "1Gi"));
    assert_eq!(decide(&mut s).len(), 1);
    s.bind_failed(&key("p"), None);
    assert_eq!(s.node("a").unwrap().pods, 0);
    assert_eq!(decide(&mut s), vec![("p".into(), "a".into())]);
    // A stale version: nothing is tried before the newer one is seen.
    s.bind_failed(&key("p"), Some(1));
    assert!(decide(&mut s).is_empty());
    s.pod_changed(&key("p"), Some(&item(wanting("p", "1", "1Gi"), 2)), Instant::now());
    assert_eq!(decide(&mut s), vec![("p".into(), "a".into())]);
}

#[derive(Debug, Clone)]
enum Step {
    Pod(u8, u8, u8, bool),
    Gone(u8),
    Finish(u8),
    Node(u8, u8, u8),
    NodeGone(u8),
    Refuse(u8),
    Seen(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..30, 0u8..6, 0u8..6, any::<bool>()).prop_map(|(p, c, m, t)| Step::Pod(p, c, m, t)),
        1 => (0u8..30).prop_map(Step::Gone),
        1 => (0u8..30).prop_map(Step::Finish),
        2 => (0u8..6, 0u8..9, 0u8..3).prop_map(|(n, c, t)| Step::Node(n, c, t)),
        1 => (0u8..6).prop_map(Step::NodeGone),
        1 => (0u8..30).prop_map(Step::Refuse),
        2 => (0u8..30).prop_map(Step::Seen),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// No decision exceeds a node or ignores a taint at the moment it is made; the incremental
    /// account equals one made from scratch; whoever waits fits nowhere.
    #[test]
    fn the_scheduler_keeps_its_promises(steps in steps()) {
        let mut s = Scheduler::new();
        let mut pods: BTreeMap<u8, Pod> = BTreeMap::new();
        let mut assumed: BTreeMap<u8, String> = BTreeMap::new();
        let mut nodes: BTreeMap<u8, Node> = BTreeMap::new();
        let mut revision = 1;
        let name = |p: u8| format!("p{p}");
        for step in steps {
            revision += 1;
            match step {
                Step::Pod(p, cpu, memory, tolerates) if !pods.contains_key(&p) => {
                    let mut pod = owned(wanting(&name(p), &format!("{cpu}00m"), &format!("{memory}00Mi")), &(p % 3).to_string());
                    pod.metadata.uid = Some(format!("{p}-{revision}"));
                    if tolerates {
                        let t = k8s_openapi::api::core::v1::Toleration { operator: Some("Exists".into()), ..Default::default() };
                        pod.spec.as_mut().unwrap().tolerations = Some(vec![t]);
                    }
                    s.pod_changed(&key(&name(p)), Some(&item(pod.clone(), revision)), Instant::now());
                    pods.insert(p, pod);
                }
                Step::Pod(..) => {}
                Step::Gone(p) => {
                    pods.remove(&p);
                    assumed.remove(&p);
                    s.pod_changed(&key(&name(p)), None, Instant::now());
                }
                Step::Finish(p) => if let Some(pod) = pods.get_mut(&p) {
                    pod.status.get_or_insert_default().phase = Some("Succeeded".into());
                    assumed.remove(&p);
                    s.pod_changed(&key(&name(p)), Some(&item(pod.clone(), revision)), Instant::now());
                },
                Step::Node(n, cpu, taint) => {
                    let mut node = node(&format!("n{n}"), &format!("{cpu}00m"), "1Gi");
                    if taint == 1 {
                        let t = Taint { key: "k".into(), effect: "NoSchedule".into(), ..Taint::default() };
                        node.spec.get_or_insert_default().taints = Some(vec![t]);
                    }
                    if taint == 2 { node.spec.get_or_insert_default().unschedulable = Some(true); }
                    add_node(&mut s, node.clone());
                    nodes.insert(n, node);
                }
                Step::NodeGone(n) => {
                    nodes.remove(&n);
                    s.node_changed(&Arc::from(format!("n{n}")), None, Instant::now());
                }
                Step::Refuse(p) => if assumed.remove(&p).is_some() {
                    s.bind_failed(&key(&name(p)), None);
                },
                Step::Seen(p) => if let (Some(node), Some(pod)) = (assumed.remove(&p), pods.get_mut(&p)) {
                    pod.spec.as_mut().unwrap().node_name = Some(node);
                    s.pod_changed(&key(&name(p)), Some(&item(pod.clone(), revision)), Instant::now());
                },
            }
            for d in s.schedule(7, Instant::now()) {
                match d {
                    Decision::Bind { pod, node } => {
                        let p: u8 = pod.key.1[1..].parse().unwrap();
                        let info = s.node(&node).unwrap();
                        let offer = info.offer.clone().unwrap();
                        let n: u8 = node[1..].parse().unwrap();
                        prop_assert!(nodes.contains_key(&n));
                        prop_assert!(pod.requests.cpu_milli == 0 || info.taken.cpu_milli <= offer.allocatable.cpu_milli);
                        prop_assert!(pod.requests.memory_bytes == 0 || info.taken.memory_bytes <= offer.allocatable.memory_bytes);
                        prop_assert!(offer.taints.is_empty() && !offer.unschedulable || !pod.tolerations.is_empty());
                        prop_assert!(assumed.insert(p, node.to_string()).is_none());
                    }
                    Decision::Unschedulable { pod, .. } => {
                        for n in nodes.keys() {
                            let name = format!("n{n}");
                            prop_assert!(!fits(&pod, s.node(&name).unwrap()));
                        }
                    }
                }
            }
        }
        // From scratch.
        let mut cpu: BTreeMap<String, i64> = BTreeMap::new();
        for (p, pod) in &pods {
            let info = PodInfo::new(&item(pod.clone(), 1));
            let at = info.node.as_ref().map(|n| n.to_string()).filter(|_| info.counts).or(assumed.get(p).cloned());
            if let Some(n) = at { *cpu.entry(n).or_default() += info.requests.cpu_milli; }
        }
        for n in 0u8..6 {
            let n = format!("n{n}");
            let have = s.node(&n).map_or(0, |i| i.taken.cpu_milli);
            prop_assert_eq!(have, cpu.get(&n).copied().unwrap_or(0), "{}", n);
        }
        // Everybody who can be placed is, after enough calls.
        for _ in 0..20 { s.schedule(100, Instant::now()); }
        for pod in pods.values() {
            let info = PodInfo::new(&item(pod.clone(), 1));
            let p: u8 = info.key.1[1..].parse().unwrap();
            if info.pending && !assumed.contains_key(&p) && s.is_waiting(&info.key) {
                for n in nodes.keys() {
                    let name = format!("n{n}");
                    prop_assert!(!fits(&info, s.node(&name).unwrap()));
                }
            }
        }
    }
}
