#![allow(clippy::unwrap_used, missing_docs)]
use super::cidr::{CidrAllocator, PodRange};
use super::*;
use crate::controllers::testing::{World, node, pod};
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use std::sync::Arc;
use std::time::Instant;
use trellis_model::taints as keys;

fn item(n: Node) -> Item<Node> {
    Item { revision: 1, object: n }
}

fn next(n: &Item<Node>, standing: Standing, not_ready_for: Option<Duration>, suspended: bool) -> Node {
    let input = Input { node: n, standing, not_ready_for, suspended, pod_cidrs: &[], reach: &reach::Finding::Unknown };
    let now = Now::read();
    let plan = plan(&input, &now);
    let next = match plan.writes.as_slice() {
        [] => n.object.clone(),
        [Write::Update { object: Object::Node(n), .. }] => (**n).clone(),
        other => panic!("{other:?}"),
    };
    let again = super::plan(&Input { node: &item(next.clone()), ..input }, &now);
    assert!(again.writes.is_empty(), "planning again yields nothing: {again:?}");
    next
}

fn taints_of(n: &Node) -> Vec<String> {
    let list = n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    list.iter().map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect)).collect()
}

#[test]
fn the_table() {
    let n = item(node("a", "4", "8Gi"));
    let healthy = next(&n, Standing::Healthy, None, false);
    assert_eq!((ready_status(&healthy), taints_of(&healthy)), (Some("True"), vec![]));

    let cut = next(&n, Standing::Cut, None, false);
    assert_eq!((ready_status(&cut), taints_of(&cut)), (Some("True"), vec!["network-unavailable:NoSchedule".into()]));
    let joined = next(&item(cut), Standing::Healthy, None, false);
    assert!(taints_of(&joined).is_empty());

    let silent = next(&n, Standing::Silent, Some(Duration::ZERO), false);
    assert_eq!((ready_status(&silent), taints_of(&silent)), (Some("False"), vec!["not-ready:NoSchedule".into()]));
    let long = next(&item(silent), Standing::Silent, Some(NOT_READY_GRACE), false);
    assert_eq!(taints_of(&long), vec!["not-ready:NoSchedule", "not-ready:NoExecute"]);

    let dead = next(&n, Standing::Dead, Some(Duration::ZERO), false);
    assert_eq!(ready_status(&dead), Some("Unknown"));
    assert_eq!(taints_of(&dead), vec!["unreachable:NoSchedule", "unreachable:NoExecute"]);
    assert_eq!(prior_standing(&dead), Standing::Dead);
    let held = next(&item(dead.clone()), Standing::Dead, Some(Duration::ZERO), true);
    assert_eq!(taints_of(&held), vec!["unreachable:NoSchedule"], "nothing is evicted while most are lost");

    let back = next(&item(dead), Standing::Healthy, Some(Duration::ZERO), false);
    assert_eq!((ready_status(&back), taints_of(&back)), (Some("True"), vec![]));
    assert_eq!(back.metadata.annotations, None);
}

#[test]
fn what_the_agent_said_is_restored() {
    let mut n = node("a", "4", "8Gi");
    n.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "False".into();
    let dead = next(&item(n), Standing::Dead, Some(Duration::ZERO), false);
    let back = next(&item(dead), Standing::Healthy, Some(Duration::ZERO), false);
    assert_eq!(ready_status(&back), Some("False"));
}

#[test]
fn cordon_and_pressure_are_tainted_and_others_taints_are_kept() {
    let mut n = node("a", "4", "8Gi");
    let spec = n.spec.get_or_insert_default();
    spec.unschedulable = Some(true);
    let own = Taint { key: "mine".into(), effect: "NoExecute".into(), ..Taint::default() };
    spec.taints = Some(vec![own]);
    let conditions = n.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions.push(NodeCondition { type_: "DiskPressure".into(), status: "True".into(), ..Default::default() });
    let out = next(&item(n), Standing::Healthy, None, false);
    assert_eq!(taints_of(&out), vec!["mine:NoExecute", "unschedulable:NoSchedule", "disk-pressure:NoSchedule"]);
}

#[test]
fn a_node_without_routes_says_so_until_it_has_them() {
    let now = Now::read();
    let mut node = item(node("a", "4", "8Gi"));
    let mut planned = |standing: Standing, finding: reach::Finding| {
        let plan_of = |node: &Item<Node>| {
            let input =
                Input { node, standing, not_ready_for: None, suspended: false, pod_cidrs: &[], reach: &finding };
            super::plan(&input, &now)
        };
        let plan = plan_of(&node);
        if let [Write::Update { object: Object::Node(n), .. }] = plan.writes.as_slice() {
            node = item((**n).clone());
        }
        let again = plan_of(&node);
        assert!(again.writes.is_empty(), "planning again yields nothing: {again:?}");
        let list = node.object.status.as_ref().and_then(|s| s.conditions.as_ref());
        let condition = conditions::find(list, NETWORK_UNAVAILABLE).cloned().unwrap_or_default();
        let told: Vec<&str> = plan.notes.iter().map(|n| n.reason).collect();
        (condition.status, condition.reason.unwrap_or_default(), taints_of(&node.object).len(), told.join(" "))
    };
    let is = |a: &str, b: &str, taints: usize, told: &str| (a.to_owned(), b.to_owned(), taints, told.to_owned());
    let (cut, some) = (reach::Finding::CutOff("no route".into()), reach::Finding::SomeUnrouted("not all".into()));
    let healthy = Standing::Healthy;
    assert_eq!(planned(healthy, reach::Finding::Routed), is("", "", 0, ""), "nothing to say");
    assert_eq!(planned(healthy, cut.clone()), is("True", "NoRouteCreated", 1, "FailedToCreateRoute"));
    assert_eq!(planned(healthy, reach::Finding::Unknown), is("True", "NoRouteCreated", 1, ""), "a new leader");
    assert_eq!(planned(Standing::Cut, cut.clone()), is("True", "GossipUnreachable", 1, ""));
    assert_eq!(planned(healthy, cut), is("True", "NoRouteCreated", 1, "FailedToCreateRoute"));
    assert_eq!(planned(healthy, some), is("False", "PeersWithoutRoute", 0, "FailedToCreateRoute"));
    assert_eq!(planned(healthy, reach::Finding::Routed), is("False", "RouteCreated", 0, "RouteCreated"));
    assert_eq!(planned(healthy, reach::Finding::Routed), is("False", "RouteCreated", 0, ""));
}

fn evictions(
    standing: Standing,
    suspended: bool,
    taint: &str,
    pods: Vec<Pod>,
    age: Duration,
) -> (Vec<Write>, Option<Duration>) {
    let mut w = World::new();
    let mut n = node("a", "4", "8Gi");
    let t = Taint { key: taint.into(), effect: keys::NO_EXECUTE.into(), ..Taint::default() };
    n.spec.get_or_insert_default().taints = Some(vec![t]);
    w.create(n);
    for mut p in pods {
        p.spec.get_or_insert_default().node_name = Some("a".into());
        w.create(p);
    }
    let now = w.now();
    let now = Now { mono: now.mono + age, ..now };
    let seen = now.mono - age;
    let on: Vec<_> = w.cache.pods_on("a").cloned().collect();
    let first_seen = |_: &Taint| -> Instant { seen };
    let node = w.cache.nodes.get("", "a").unwrap();
    let input = evict::Input { node, standing, suspended, pods: &on, first_seen: &first_seen };
    let plan = evict::plan(&input, &now);
    (plan.writes, plan.again_at.map(|t| t - now.mono))
}

fn tolerant(name: &str, seconds: Option<i64>) -> Pod {
    let mut p = pod("default", name);
    let t = Toleration { operator: Some("Exists".into()), toleration_seconds: seconds, ..Toleration::default() };
    p.spec.get_or_insert_default().tolerations = Some(vec![t]);
    p
}

#[test]
fn eviction_honours_tolerations() {
    let s = Duration::from_secs;
    let all = || vec![pod("default", "plain"), tolerant("ten", Some(10)), tolerant("ever", None)];
    let names = |w: &[Write]| w.iter().map(|w| w.key().name.to_string()).collect::<Vec<_>>();
    let (now, again) = evictions(Standing::Healthy, false, "mine", all(), s(0));
    assert_eq!((names(&now), again), (vec!["plain".to_owned()], Some(s(10))));
    assert!(matches!(now[0], Write::Update { .. }), "marked: its agent stops it");
    let (later, _) = evictions(Standing::Healthy, false, "mine", all(), s(10));
    assert_eq!(names(&later), vec!["plain", "ten"]);
    let (dead, _) = evictions(Standing::Dead, false, keys::UNREACHABLE, all(), s(0));
    assert!(matches!(dead[0], Write::Delete { .. }), "removed: nobody is left to stop it");
    let (held, _) = evictions(Standing::Dead, true, keys::UNREACHABLE, all(), s(99));
    assert!(held.is_empty(), "nothing while most nodes are lost");
    let (own, _) = evictions(Standing::Healthy, true, "mine", all(), s(0));
    assert_eq!(own.len(), 1, "a taint that somebody set counts all the same");
}

#[test]
fn terminating_pods_of_a_dead_node_go_whatever_they_tolerate() {
    let mut p = tolerant("t", None);
    p.metadata.deletion_timestamp = Some(Now::read().time());
    let (w, _) = evictions(Standing::Dead, false, keys::UNREACHABLE, vec![p.clone()], Duration::ZERO);
    assert!(matches!(w[0], Write::Delete { .. }));
    let (w, _) = evictions(Standing::Silent, false, keys::NOT_READY, vec![p], Duration::ZERO);
    assert!(w.is_empty());
}

#[test]
fn cidrs_are_given_in_rotation_and_rest_before_reuse() {
    let range = PodRange::new("10.0.0.0/22".parse().unwrap(), 24).unwrap();
    let mut a = CidrAllocator::new(vec![range]);
    let n = |s: &str| -> Arc<str> { Arc::from(s) };
    let t = Instant::now();
    assert_eq!(a.allocate(&n("a"), t), vec!["10.0.0.0/24"]);
    assert_eq!(a.allocate(&n("a"), t), vec!["10.0.0.0/24"], "promised once");
    assert_eq!(a.set(&n("b"), &["10.0.1.0/24".into()]), None);
    assert_eq!(a.allocate(&n("c"), t), vec!["10.0.2.0/24"]);
    a.release("a", t);
    assert_eq!(a.allocate(&n("d"), t), vec!["10.0.3.0/24"]);
    assert!(a.allocate(&n("e"), t).is_empty(), "a's rests");
    let free = a.next_free().unwrap();
    assert_eq!(a.allocate(&n("e"), free), vec!["10.0.0.0/24"]);
    assert_eq!(a.set(&n("x"), &["10.0.2.0/23".into()]), Some(n("c")), "an overlap is told");
}

#[test]
fn a_new_leader_goes_on_in_the_rotation_and_waits_before_it_gives_anything_again() {
    let range = || vec![PodRange::new("10.0.0.0/22".parse().unwrap(), 24).unwrap()];
    let n = |s: &str| -> Arc<str> { Arc::from(s) };
    let t = Instant::now();
    let mut first = CidrAllocator::new(range());
    for (node, cidr) in [("a", "10.0.0.0/24"), ("b", "10.0.1.0/24"), ("c", "10.0.2.0/24")] {
        assert_eq!(first.allocate(&n(node), t), vec![cidr]);
    }
    let next = first.given("c").unwrap() + 1;
    // Its Node goes, and then the leader, before it has rested.
    let lead = |next: Option<u64>| {
        let mut second = CidrAllocator::new(range());
        second.set(&n("a"), &["10.0.0.0/24".into()]);
        second.set(&n("b"), &["10.0.1.0/24".into()]);
        if let Some(next) = next {
            second.resume(next, t);
        }
        second
    };
    assert_eq!(lead(None).allocate(&n("d"), t), vec!["10.0.2.0/24"], "the control: c's, at once");
    let mut second = lead(Some(next));
    assert_eq!(second.allocate(&n("d"), t), vec!["10.0.3.0/24"]);
    assert!(second.allocate(&n("e"), t).is_empty(), "c's may rest");
    let free = second.next_free().unwrap();
    assert_eq!(second.allocate(&n("e"), free), vec!["10.0.2.0/24"], "round again");
    // The counter goes on growing: a third leader is in the second round, and waits too.
    let next = second.given("e").unwrap() + 1;
    assert_eq!(next, 7);
    let mut third = lead(Some(next));
    third.set(&n("d"), &["10.0.3.0/24".into()]);
    assert!(third.allocate(&n("f"), t).is_empty());
    let free = third.next_free().unwrap();
    assert_eq!(third.allocate(&n("f"), free), vec!["10.0.2.0/24"]);
}

#[test]
fn impossible_ranges_are_refused() {
    assert!(PodRange::new("10.0.0.0/24".parse().unwrap(), 16).is_err());
    assert!(PodRange::new("10.0.0.0/24".parse().unwrap(), 31).is_err());
    assert!(PodRange::new("fd00::/32".parse().unwrap(), 64).is_err());
    let v6 = PodRange::new("fd00::/48".parse().unwrap(), 64).unwrap();
    let mut a = CidrAllocator::new(vec![v6]);
    a.allocate(&Arc::from("a"), Instant::now());
    assert_eq!(a.allocate(&Arc::from("b"), Instant::now()), vec!["fd00:0:0:1::/64"]);
}
