//! Tests of the store: a table of what commands do, and properties against a naive model.
#![allow(clippy::unwrap_used, missing_docs)]

mod properties;

use bytes::Bytes;

use super::*;

pub(super) fn key(kind: &str, namespace: &str, name: &str) -> Key {
    Key::new("", kind, namespace, name)
}

pub(super) fn stored(uid: &str, text: &str) -> Stored {
    Stored {
        json: Bytes::from(format!("{{\"metadata\":{{\"name\":\"x\"}},\"t\":\"{text}\"}}")),
        splice_at: 13,
        index: Index { uid: uid.into(), ..Index::default() },
        sealed: false,
    }
}

pub(super) fn put(key: Key, when: When, object: Stored) -> Op {
    Op::Put { key, when, object }
}

fn state() -> State {
    State::new(HistoryLimits::default())
}

fn apply(state: &mut State, ops: Vec<Op>) -> Outcome {
    state.apply(1, &Command::new(1_000, ops))
}

fn failed(outcome: &Outcome) -> (usize, OpError) {
    match outcome {
        Outcome::Failed { op, why, .. } => (*op, *why),
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn conditions_hold_or_refuse_the_whole_transaction() {
    let a = key("Pod", "ns", "a");
    let b = key("Pod", "ns", "b");
    let mut s = state();
    let done = apply(&mut s, vec![put(a.clone(), When::Absent, stored("u1", "1"))]);
    assert_eq!(done.done(), Some(&[1][..]));
    let cases = [
        (When::Absent, Some(OpError::AlreadyExists)),
        (When::Exists, None),
        (When::Revision(9), Some(OpError::RevisionMismatch)),
        (When::Uid("u2".into()), Some(OpError::UidMismatch)),
        (When::RevisionAndUid(1, "u2".into()), Some(OpError::UidMismatch)),
        (When::RevisionAndUid(9, "u1".into()), Some(OpError::RevisionMismatch)),
        (When::RevisionAndUid(1, "u1".into()), None),
        (When::Uid("u1".into()), None),
        (When::Revision(1), None),
        (When::Always, None),
    ];
    for (when, expected) in cases {
        let check = Op::Check { key: a.clone(), when: when.clone() };
        let other = put(b.clone(), When::Always, stored("ub", &format!("{when:?}")));
        let before = s.revision();
        let outcome = apply(&mut s, vec![other, check]);
        match expected {
            Some(why) => {
                assert_eq!(failed(&outcome), (1, why), "{when:?}");
                assert_eq!(s.revision(), before, "nothing is changed");
                let Outcome::Failed { current: Some(c), .. } = outcome else { panic!("the present state is told") };
                assert_eq!((c.revision, c.uid.as_str()), (1, "u1"));
            }
            None => assert!(outcome.done().is_some(), "{when:?}: {outcome:?}"),
        }
    }
    for when in [When::Exists, When::Revision(1), When::Uid("u".into())] {
        let op = put(key("Pod", "ns", "none"), when, stored("u", "x"));
        assert_eq!(failed(&apply(&mut s, vec![op])), (0, OpError::NotFound));
    }
    let gone = Op::Delete { key: key("Pod", "ns", "none"), when: When::Always };
    assert_eq!(failed(&apply(&mut s, vec![gone])), (0, OpError::NotFound));
    let twice = vec![put(b.clone(), When::Always, stored("u", "p")), Op::Delete { key: b, when: When::Always }];
    assert_eq!(failed(&apply(&mut s, twice)), (1, OpError::Duplicate));
}

#[test]
fn each_changed_object_gets_its_own_revision_and_equal_content_none() {
    let mut s = state();
    let ops = (0..3).map(|i| put(key("Pod", "ns", &format!("p{i}")), When::Absent, stored("u", "1"))).collect();
    assert_eq!(apply(&mut s, ops).done(), Some(&[1, 2, 3][..]));
    let same = put(key("Pod", "ns", "p1"), When::Always, stored("u", "1"));
    let changed = put(key("Pod", "ns", "p2"), When::Always, stored("u", "2"));
    assert_eq!(apply(&mut s, vec![same, changed]).done(), Some(&[2, 4][..]));
    let delete = Op::Delete { key: key("Pod", "ns", "p0"), when: When::Revision(1) };
    assert_eq!(apply(&mut s, vec![delete]).done(), Some(&[5][..]));
    let kept = s.objects().get(&key("Pod", "ns", "p2")).unwrap();
    assert_eq!((kept.revision, kept.create_revision), (4, 3));
}

#[test]
fn a_retried_request_is_answered_from_memory_and_forgotten_in_time() {
    let mut s = state();
    let create = |now| {
        let op = put(key("Pod", "ns", "a"), When::Absent, stored("u", "1"));
        Command::new(now, vec![op]).with_request_id("admin/r1")
    };
    assert_eq!(s.apply(1, &create(1_000)).done(), Some(&[1][..]));
    let again = s.apply(7, &create(2_000));
    assert_eq!(again, Outcome::Done { revisions: vec![1], replayed: true });
    // A clock that goes back forgets nothing.
    assert!(matches!(s.apply(7, &create(0)), Outcome::Done { replayed: true, .. }));
    let late = s.apply(7, &create(1_000 + REQUEST_MEMORY_MILLIS + 1));
    assert_eq!(failed(&late), (0, OpError::AlreadyExists));
    // What failed is not remembered: it changed nothing, and may succeed the next time.
    let mut update = create(2_000_000);
    update.request_id = Some("admin/r2".into());
    assert_eq!(failed(&s.apply(7, &update)), (0, OpError::AlreadyExists));
    apply(&mut s, vec![Op::Delete { key: key("Pod", "ns", "a"), when: When::Always }]);
    assert!(s.apply(7, &update).done().is_some());
}

#[test]
fn request_memory_is_bounded_by_count() {
    let mut s = state();
    for i in 0..MAX_REMEMBERED_REQUESTS + 10 {
        let op = Op::SysPut { key: "k".into(), when: SysWhen::Always, value: Bytes::new() };
        s.apply(1, &Command::new(1, vec![op]).with_request_id(format!("r{i}")));
    }
    assert_eq!(s.requests.len(), MAX_REMEMBERED_REQUESTS);
}

#[test]
fn a_fenced_command_counts_only_in_its_own_term() {
    let mut s = state();
    let command =
        |text: &str| Command::new(1, vec![put(key("Pod", "n", "a"), When::Always, stored("u", text))]).fenced(4);
    assert_eq!(s.apply(5, &command("late")), Outcome::FencedOut { term: 5 });
    assert_eq!(s.revision(), 0);
    assert!(s.apply(4, &command("now")).done().is_some());
}

#[test]
fn limits_are_named_with_their_values() {
    let mut s = state();
    let big = Stored { json: Bytes::from(vec![b'x'; MAX_OBJECT_BYTES + 1]), ..stored("u", "") };
    let outcome = apply(&mut s, vec![put(key("Secret", "ns", "big"), When::Always, big)]);
    let Outcome::TooLarge(limit) = outcome else { panic!("{outcome:?}") };
    assert_eq!(limit.to_string(), "the size of Secret ns/big in bytes is 1572865, the limit is 1572864");
    let many = (0..=MAX_TRANSACTION_OPS)
        .map(|i| Op::Check { key: key("Pod", "n", &i.to_string()), when: When::Absent })
        .collect();
    let Outcome::TooLarge(limit) = apply(&mut s, many) else { panic!() };
    assert_eq!((limit.limit, limit.actual), (1_000, 1_001));
    let store = Store::default();
    let refused = store.apply([(1, &[9, 9, 9][..])]).remove(0);
    assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
    assert_eq!(store.revision(), 0);
}

#[test]
fn the_system_keyspace_has_conditions_and_revisions_of_its_own() {
    let mut s = state();
    let token = |when| Op::SysPut { key: "tokens/a".into(), when, value: Bytes::from_static(b"t") };
    assert_eq!(apply(&mut s, vec![token(SysWhen::Absent)]).done(), Some(&[1][..]));
    assert_eq!(failed(&apply(&mut s, vec![token(SysWhen::Absent)])), (0, OpError::AlreadyExists));
    let redeem = || Op::SysDelete { key: "tokens/a".into(), when: SysWhen::Revision(1) };
    assert_eq!(apply(&mut s, vec![redeem()]).done(), Some(&[2][..]));
    assert_eq!(failed(&apply(&mut s, vec![redeem()])), (0, OpError::NotFound), "a token serves once");
    assert_eq!(s.revision(), 0, "object revisions have no gaps");
}

#[test]
fn the_feature_level_only_rises() {
    let mut s = state();
    assert!(apply(&mut s, vec![Op::SetFeatureLevel(3)]).done().is_some());
    assert_eq!(failed(&apply(&mut s, vec![Op::SetFeatureLevel(2)])), (0, OpError::FeatureLevelLowered));
    assert_eq!(s.feature_level(), 3);
}

fn encoded(ops: Vec<Op>) -> Bytes {
    Command::new(1, ops).encode().unwrap()
}

#[test]
fn fields_and_owners_are_found_and_follow_changes() {
    let store = Store::default();
    let pod = |node: &str, owner: &str| {
        let mut object = stored("u", node);
        object.index.fields = vec![("spec.nodeName".into(), node.into()), ("status.phase".into(), "Running".into())];
        object.index.owners = vec![owner.into()];
        object
    };
    let write = |name: &str, object| {
        let bytes = encoded(vec![put(key("Pod", "ns", name), When::Always, object)]);
        store.apply([(1, &bytes[..])]);
    };
    write("a", pod("n1", "rs1"));
    write("b", pod("n1", "rs1"));
    write("b", pod("n2", "rs2"));
    let names =
        |found: Vec<std::sync::Arc<Versioned>>| -> Vec<String> { found.iter().map(|v| v.key.name.clone()).collect() };
    assert_eq!(names(store.by_field("Pod", "spec.nodeName", "n1")), ["a"]);
    assert_eq!(names(store.by_field("Pod", "spec.nodeName", "n2")), ["b"]);
    assert_eq!(names(store.by_field("Node", "spec.nodeName", "n2")), [""; 0]);
    assert_eq!(names(store.by_field("Pod", "status.phase", "Running")), ["a", "b"]);
    assert_eq!(names(store.by_owner("rs1")), ["a"]);
    let bytes = encoded(vec![Op::Delete { key: key("Pod", "ns", "a"), when: When::Always }]);
    store.apply([(1, &bytes[..])]);
    assert!(store.by_owner("rs1").is_empty());
    assert_eq!(store.stats().objects, 1);
}

#[test]
fn the_revision_is_spliced_into_metadata() {
    let store = Store::default();
    let bytes = encoded(vec![put(key("Pod", "ns", "a"), When::Always, stored("u", "1"))]);
    store.apply([(1, &bytes[..])]);
    let found = store.get(&key("Pod", "ns", "a")).unwrap();
    assert_eq!(found.json_with_revision(), &br#"{"metadata":{"resourceVersion":"1","name":"x"},"t":"1"}"#[..]);
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told_and_a_quiet_kind_stays_valid() {
    let store = Store::new(HistoryLimits { events: 10, bytes: 1 << 20 });
    let write = |kind: &str, i: usize| {
        let bytes = encoded(vec![put(key(kind, "", "x"), When::Always, stored("u", &i.to_string()))]);
        store.apply([(1, &bytes[..])]);
    };
    write("Node", 0);
    let mut quiet = store.watch(WatchFilter::kind("Node"), 1).unwrap();
    let mut busy = store.watch(WatchFilter::kind("Pod"), 1).unwrap();
    for i in 0..30 {
        write("Pod", i);
    }
    assert_eq!(busy.poll().unwrap_err(), Compacted { requested: 1, oldest: 21 });
    assert_eq!(store.watch(WatchFilter::kind("Pod"), 20).unwrap_err().oldest, 21);
    assert_eq!(quiet.poll().unwrap().revision, 31, "nothing of its kind was lost");
    write("Node", 1);
    assert_eq!(quiet.next().await.unwrap().events.len(), 1);
    let listed = store.list("Pod", None, None, 0, Some(5));
    assert!(matches!(listed, Err(RevisionError::Compacted { requested: 5, oldest: 22 })), "{listed:?}");
    assert!(matches!(store.list("Pod", None, None, 0, Some(99)), Err(RevisionError::NotYet { .. })));
}

/// Writes one object of `bytes` again and again.
fn churn(store: &Store, name: &str, bytes: usize, i: usize) {
    let text = format!("{i:05}{}", "x".repeat(bytes));
    let bytes = encoded(vec![put(key("Pod", "ns", name), When::Always, stored("u", &text))]);
    store.apply([(1, &bytes[..])]);
}

#[test]
fn the_history_is_bounded_by_bytes_too() {
    let limit = 10_000;
    let store = Store::new(HistoryLimits { events: 1_000, bytes: limit });
    for i in 0..100 {
        churn(&store, "a", 1_000, i);
        assert!(store.stats().history_bytes <= limit, "{:?}", store.stats());
    }
    // Each event but the first keeps an old version of a thousand bytes alive.
    let events = store.stats().events;
    assert!((5..10).contains(&events), "{events}");
    assert!(matches!(store.watch(WatchFilter::kind("Pod"), 1), Err(Compacted { requested: 1, oldest: 90.. })));
    store.watch(WatchFilter::kind("Pod"), 99).unwrap();
    // One that is larger than all of the history is kept as an object, not as history.
    churn(&store, "a", 20_000, 0);
    churn(&store, "a", 10, 1);
    assert_eq!((store.stats().events, store.stats().history_bytes), (0, 0));
    assert!(store.get(&key("Pod", "ns", "a")).is_some());
    // The control: with room for all of it, all of it is there.
    let store = Store::new(HistoryLimits { events: 1_000, bytes: 1 << 20 });
    (0..100).for_each(|i| churn(&store, "a", 1_000, i));
    assert_eq!(store.stats().events, 100);
}

#[test]
fn twenty_thousand_updates_of_fifty_objects_take_bounded_room() {
    let limits = HistoryLimits { events: 2_000, bytes: 400_000 };
    let store = Store::new(limits);
    let round = |i: usize| churn(&store, &format!("p{}", i % 50), 100, i);
    (0..5_000).for_each(round);
    let before = store.stats();
    (5_000..20_000).for_each(round);
    let after = store.stats();
    assert_eq!((after.revision, after.objects), (20_000, 50));
    assert_eq!((after.object_bytes, after.events), (before.object_bytes, before.events), "no more than before");
    assert!(after.events <= limits.events && after.events > 100, "{after:?}");
    assert!(after.history_bytes <= limits.bytes, "{after:?}");
    assert_eq!((after.requests, after.system), (0, 0));
}

#[tokio::test]
async fn a_waiting_watcher_is_woken_and_sees_an_object_leave_its_filter() {
    let store = Store::default();
    let on_node = |node: &str| {
        let mut object = stored("u", node);
        object.index.fields = vec![("spec.nodeName".into(), node.into())];
        encoded(vec![put(key("Pod", "ns", "a"), When::Always, object)])
    };
    let filter = WatchFilter { field: Some(("spec.nodeName".into(), "n1".into())), ..WatchFilter::kind("Pod") };
    let mut watcher = store.watch(filter, 0).unwrap();
    let waiting = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.extend(watcher.next().await.unwrap().events);
        }
        seen
    });
    for node in ["n1", "n2", "n3"] {
        store.apply([(1, &on_node(node)[..])]);
        tokio::task::yield_now().await;
    }
    let seen = waiting.await.unwrap();
    assert_eq!(seen.len(), 2, "its coming and its leaving, nothing after");
    assert_eq!(seen[1].old.as_ref().unwrap().object.index.field("spec.nodeName"), Some("n1"));
    assert_eq!(seen[1].new.as_ref().unwrap().object.index.field("spec.nodeName"), Some("n2"));
}

#[test]
fn a_damaged_snapshot_is_refused_everywhere() {
    let store = Store::default();
    for i in 0..5 {
        let bytes = encoded(vec![put(key("Pod", "ns", &format!("{i}")), When::Always, stored("u", "1"))]);
        store.apply([(1, &bytes[..])]);
    }
    let mut whole = Vec::new();
    store.capture().write_to(&mut whole).unwrap();
    assert!(snapshot::read_from(&mut &whole[..], HistoryLimits::default()).is_ok());
    for at in 0..whole.len() {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        assert!(snapshot::read_from(&mut &broken[..], HistoryLimits::default()).is_err(), "byte {at}");
        assert!(snapshot::read_from(&mut &whole[..at], HistoryLimits::default()).is_err(), "cut at {at}");
    }
    whole[8] = 2;
    let newer = snapshot::read_from(&mut &whole[..], HistoryLimits::default()).unwrap_err();
    assert!(newer.to_string().contains("update this member"), "{newer}");
}
