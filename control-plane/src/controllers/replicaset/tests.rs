#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use crate::controllers::testing::{World, pod};
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use trellis_model::conditions;

struct P(Pod);

impl P {
    fn new(name: &str) -> Self {
        let mut p = pod("default", name);
        p.metadata.uid = Some(name.into());
        P(p)
    }
    fn on(mut self, node: &str) -> Self {
        self.0.spec.get_or_insert_default().node_name = Some(node.into());
        self
    }
    fn phase(mut self, phase: &str) -> Self {
        self.0.status.get_or_insert_default().phase = Some(phase.into());
        self
    }
    fn ready(mut self, now: &Now, seconds_ago: i64) -> Self {
        let at = Time(now.wall - k8s_openapi::jiff::SignedDuration::from_secs(seconds_ago));
        let c = PodCondition { type_: "Ready".into(), status: "True".into(), ..Default::default() };
        conditions::set(&mut self.0.status.get_or_insert_default().conditions, c, at);
        self.phase("Running")
    }
    fn restarts(mut self, n: i32) -> Self {
        let c = ContainerStatus { restart_count: n, ..Default::default() };
        self.0.status.get_or_insert_default().container_statuses = Some(vec![c]);
        self
    }
    fn cost(mut self, n: i32) -> Self {
        let key = "controller.kubernetes.io/pod-deletion-cost".to_owned();
        self.0.metadata.annotations.get_or_insert_default().insert(key, n.to_string());
        self
    }
}

fn first_of(a: P, b: P, related: Vec<P>) -> String {
    let item = |p: P| Arc::new(Item { revision: 1, object: p.0 });
    let (a, b) = (item(a), item(b));
    let mut all: Vec<Arc<Item<Pod>>> = related.into_iter().map(item).collect();
    all.extend([a.clone(), b.clone()]);
    // Whatever the order they come in.
    let now = Now::read();
    let one = rank::victims(&[&a, &b], &all, 1, &now)[0].name().to_owned();
    let two = rank::victims(&[&b, &a], &all, 1, &now)[0].name().to_owned();
    assert_eq!(one, two);
    one
}

#[test]
fn victims_are_ranked_as_in_kubernetes() {
    let now = Now::read();
    let p = P::new;
    let none = Vec::new;
    assert_eq!(first_of(p("v"), p("k").on("n"), none()), "v", "unbound first");
    assert_eq!(
        first_of(p("v").on("n").phase("Pending"), p("k").on("n").phase("Running"), none()),
        "v",
        "Pending first"
    );
    assert_eq!(
        first_of(p("v").on("n").phase("Running"), p("k").on("n").ready(&now, 1), none()),
        "v",
        "not ready first"
    );
    assert_eq!(first_of(p("v").on("n").cost(-5), p("k").on("n").cost(5), none()), "v", "cheap first");
    let crowd = vec![p("x").on("n1"), p("y").on("n1")];
    assert_eq!(first_of(p("v").on("n1"), p("k").on("n2"), crowd), "v", "crowded first");
    assert_eq!(first_of(p("v").on("n").ready(&now, 2), p("k").on("n").ready(&now, 900), none()), "v", "young first");
    let steady = p("k").on("n").ready(&now, 2).restarts(0);
    assert_eq!(first_of(p("v").on("n").ready(&now, 2).restarts(3), steady, none()), "v", "restarting first");
}

#[test]
fn it_adopts_orphans_releases_strangers_and_counts_the_rest() {
    let mut w = World::new();
    let set = crate::controllers::testing::object(serde_json::json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"namespace": "default", "name": "s", "uid": "set"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
                 "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    }));
    w.create(set);
    let labelled = |name: &str, value: &str| {
        let mut p = pod("default", name);
        p.metadata.labels = Some([("a".to_owned(), value.to_owned())].into());
        p
    };
    w.create(labelled("orphan", "b"));
    let mut stranger = labelled("stranger", "x");
    let set = w.cache.replica_sets.get("default", "s").unwrap().clone();
    stranger.metadata.owner_references = Some(vec![controller_ref(Kind::ReplicaSet, &set.object.metadata)]);
    w.create(stranger);
    let orphans: Vec<_> =
        w.cache.uncontrolled(Kind::Pod, "default").map(|n| w.cache.pods.get("default", n).unwrap().clone()).collect();
    assert_eq!(orphans.len(), 1);
    let owned = w.cache.pods_of("set");
    let none: Vec<Arc<Item<Pod>>> = Vec::new();
    let now = w.now();
    let claim = plan(&Input { set: &set, owned: &owned, orphans: &orphans, related: &none }, &now, &mut || 1);
    assert_eq!(claim.writes.len(), 3, "a check, an adoption, a release: {claim:?}");
    // Then, with one own Pod, two are missing; every write hangs on the ReplicaSet's revision.
    let mut n = 0;
    let mut random = || {
        n += 1;
        n
    };
    let scaled = plan(&Input { set: &set, owned: &orphans, orphans: &[], related: &none }, &now, &mut random);
    let creates = scaled.writes.iter().filter(|w| matches!(w, Write::Create(_))).count();
    assert_eq!(creates, 2);
    assert!(scaled.writes.iter().any(|w| w.key() == set.key()));
    assert_eq!(scaled.notes.len(), 2);
}
