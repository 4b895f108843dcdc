use std::time::Duration;

use super::*;

async fn next(watch: &mut WatchStream) -> WatchItem {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap()
}

/// The next change, bookmarks left out.
async fn change(watch: &mut WatchStream) -> (WatchKind, String) {
    loop {
        if let WatchItem::Change(kind, answer) = next(watch).await {
            return (kind, answer.key.name);
        }
    }
}

fn all_pods() -> Target {
    Target::new(Kind::Pod, "", "")
}

#[tokio::test]
async fn a_watch_from_nothing_tells_what_there_is_then_what_changes() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("a")).await.unwrap();
    bed.create(Kind::Pod, &pod("b")).await.unwrap();
    let mut watch = bed.ops.watch(&admin(), &all_pods(), &WatchArgs::default()).await.unwrap();
    assert_eq!(change(&mut watch).await, (WatchKind::Added, "a".into()));
    assert_eq!(change(&mut watch).await, (WatchKind::Added, "b".into()));
    let at = bed.ops.store().revision();
    assert!(matches!(next(&mut watch).await, WatchItem::Bookmark(r) if r == at));
    let labels = json!({"metadata": {"labels": {"x": "y"}}});
    bed.patch(&admin(), &target(Kind::Pod, "a"), Part::Main, labels).await.unwrap();
    bed.delete(&admin(), &target(Kind::Pod, "b"), None).await.unwrap();
    assert_eq!(change(&mut watch).await, (WatchKind::Modified, "a".into()));
    assert_eq!(change(&mut watch).await, (WatchKind::Deleted, "b".into()));
}

#[tokio::test]
async fn a_watch_from_a_revision_misses_and_repeats_nothing() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("a")).await.unwrap();
    let from_revision = bed.ops.store().revision();
    bed.create(Kind::Pod, &pod("b")).await.unwrap();
    let args = WatchArgs { from_revision, ..WatchArgs::default() };
    let mut watch = bed.ops.watch(&admin(), &all_pods(), &args).await.unwrap();
    assert_eq!(change(&mut watch).await, (WatchKind::Added, "b".into()));
    bed.create(Kind::Pod, &pod("c")).await.unwrap();
    assert_eq!(change(&mut watch).await, (WatchKind::Added, "c".into()));
}

#[tokio::test]
async fn entering_and_leaving_a_selector_is_coming_and_going() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("a")).await.unwrap();
    let args = WatchArgs { label_selector: "tier=front".into(), ..WatchArgs::default() };
    let mut by_label = bed.ops.watch(&admin(), &all_pods(), &args).await.unwrap();
    let args = WatchArgs { field_selector: "spec.nodeName=n1".into(), ..WatchArgs::default() };
    let mut by_field = bed.ops.watch(&admin(), &all_pods(), &args).await.unwrap();
    let set = |value: Value| json!({"metadata": {"labels": {"tier": value}}});
    let place = target(Kind::Pod, "a");
    bed.patch(&admin(), &place, Part::Main, set("front".into())).await.unwrap();
    bed.patch(&admin(), &place, Part::Main, set("back".into())).await.unwrap();
    assert_eq!(change(&mut by_label).await.0, WatchKind::Added);
    assert_eq!(change(&mut by_label).await.0, WatchKind::Deleted);
    bed.bind("a", "n1").await;
    assert_eq!(change(&mut by_field).await.0, WatchKind::Added);
    bed.patch(&admin(), &place, Part::Main, set(Value::Null)).await.unwrap();
    assert_eq!(change(&mut by_field).await.0, WatchKind::Modified);
}

#[tokio::test]
async fn a_netd_hears_only_of_what_it_can_see() {
    let bed = Bed::new().await;
    bed.create(Kind::Pod, &pod("a")).await.unwrap();
    let args = WatchArgs { network: true, ..WatchArgs::default() };
    let mut watch = bed.ops.watch(&netd("n1"), &all_pods(), &args).await.unwrap();
    // A Pod comes into sight when a node gets it.
    let WatchItem::Bookmark(_) = next(&mut watch).await else { panic!("there is nothing to see yet") };
    bed.bind("a", "n1").await;
    assert_eq!(change(&mut watch).await.0, WatchKind::Added);
    let place = target(Kind::Pod, "a");
    let hidden = json!({"metadata": {"annotations": {"x": "y"}}});
    bed.patch(&admin(), &place, Part::Main, hidden).await.unwrap();
    // The change is not told, but how far the watch is.
    let at = bed.ops.store().revision();
    loop {
        match next(&mut watch).await {
            WatchItem::Bookmark(r) if r == at => break,
            WatchItem::Bookmark(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let seen = json!({"metadata": {"labels": {"tier": "front"}}});
    bed.patch(&admin(), &place, Part::Main, seen).await.unwrap();
    assert_eq!(change(&mut watch).await.0, WatchKind::Modified);
}

fn all(kind: Kind) -> Target {
    Target::new(kind, "", "")
}

fn several() -> WatchArgs {
    WatchArgs { network: true, also: vec![all(Kind::Namespace), all(Kind::NetworkPolicy)], ..WatchArgs::default() }
}

fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"podSelector": {}},
    })
}

#[tokio::test]
async fn several_kinds_in_one_watch_come_in_the_order_of_their_revisions() {
    let bed = Bed::new().await;
    bed.create(Kind::NetworkPolicy, &policy("p0")).await.unwrap();
    bed.create(Kind::Pod, &pod("a")).await.unwrap();
    bed.bind("a", "n1").await;
    // From nothing: all that there is of each kind, and one bookmark for all of them.
    let mut watch = bed.ops.watch(&netd("n1"), &all_pods(), &several()).await.unwrap();
    let mut there = Vec::new();
    let at = loop {
        match next(&mut watch).await {
            WatchItem::Change(WatchKind::Added, answer) => there.push(answer.key.name),
            WatchItem::Bookmark(revision) => break revision,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(at, bed.ops.store().revision());
    for name in ["a", "p0", "default"] {
        assert!(there.iter().any(|n| n == name), "{name} is missing in {there:?}");
    }
    // Then changes, between which no other is missing.
    let mut expected = Vec::new();
    for i in 1..20 {
        let (kind, object) = if i % 2 == 0 {
            (Kind::NetworkPolicy, policy(&format!("p{i}")))
        } else {
            (Kind::Pod, pod(&format!("b{i}")))
        };
        bed.create(kind, &object).await.unwrap();
        if kind == Kind::Pod {
            bed.bind(&format!("b{i}"), "n1").await;
        }
        expected.push(object["metadata"]["name"].as_str().unwrap().to_owned());
    }
    for name in expected {
        assert_eq!(change(&mut watch).await, (WatchKind::Added, name));
    }
    // The same from the bookmark's revision, elsewhere.
    let args = WatchArgs { from_revision: at, ..several() };
    let mut again = bed.ops.watch(&netd("n1"), &all_pods(), &args).await.unwrap();
    assert_eq!(change(&mut again).await, (WatchKind::Added, "b1".into()));
}

#[tokio::test]
async fn several_kinds_are_refused_where_one_may_not_be_seen_or_is_narrowed() {
    let bed = Bed::new().await;
    let refused = |target: Target, args: WatchArgs| {
        let ops = bed.ops.clone();
        async move { ops.watch(&netd("n1"), &target, &args).await.err().map(|e| e.to_string()).unwrap_or_default() }
    };
    let secrets = WatchArgs { also: vec![all(Kind::Secret)], ..several() };
    assert!(refused(all_pods(), secrets).await.contains("secrets"), "a netd reads no Secrets");
    let whole = WatchArgs { network: false, ..several() };
    assert!(refused(all_pods(), whole).await.contains("network projection"), "a netd reads no whole Pods");
    let twice = WatchArgs { also: vec![all(Kind::Pod)], ..several() };
    assert!(refused(all_pods(), twice).await.contains("names Pod twice"));
    let narrow = WatchArgs { label_selector: "a=b".into(), ..several() };
    assert!(refused(all_pods(), narrow).await.contains("no selectors"));
    assert_eq!(refused(all_pods(), several()).await, "", "the control: the same, as it may be");
}

#[tokio::test]
async fn a_revision_before_the_history_is_expired() {
    use crate::store::{HistoryLimits, Store};
    struct Small(Store);
    impl Backend for Small {
        fn store(&self) -> &Store {
            &self.0
        }
        fn propose(&self, command: Command) -> futures::future::BoxFuture<'_, Result<Outcome, ApiError>> {
            let bytes = command.encode().unwrap();
            let outcome = self.0.apply([(1, &bytes[..])]).pop().unwrap();
            Box::pin(std::future::ready(Ok(outcome)))
        }
        fn read_barrier(&self) -> futures::future::BoxFuture<'_, Result<(), ApiError>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }
    let limits = HistoryLimits { events: 4, ..HistoryLimits::default() };
    let sealer = Sealer::new(pki::Key::generate());
    let bed = Bed { ops: Ops::new(Arc::new(Small(Store::new(limits))), sealer) };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
    bed.create(Kind::Namespace, &namespace).await.unwrap();
    for i in 0..20 {
        bed.create(Kind::ConfigMap, &config_map(&format!("c{i}"), "x")).await.unwrap();
    }
    let args = WatchArgs { from_revision: 2, ..WatchArgs::default() };
    let place = Target::new(Kind::ConfigMap, "", "");
    let error = bed.ops.watch(&admin(), &place, &args).await.err().unwrap();
    assert!(matches!(error, ApiError::Expired(_)), "{error}");
}
