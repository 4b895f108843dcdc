//! Random transactions against a naive reference that keeps a whole copy of every revision.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{key, put, stored};
use crate::store::*;

type World = BTreeMap<Key, (u64, Stored)>;

/// Every state that ever was, by its revision, and every change, in order.
#[derive(Default)]
struct Reference {
    now: World,
    revision: u64,
    past: BTreeMap<u64, World>,
    changes: Vec<(u64, Key, Option<Stored>)>,
    answered: BTreeMap<String, Vec<u64>>,
}

impl Reference {
    fn holds(found: Option<&(u64, Stored)>, when: &When) -> bool {
        match (when, found) {
            (When::Always, _) | (When::Absent, None) | (When::Exists, Some(_)) => true,
            (When::Revision(r), Some((have, _))) => r == have,
            (When::Uid(u), Some((_, o))) => *u == o.index.uid,
            (When::RevisionAndUid(r, u), Some((have, o))) => r == have && *u == o.index.uid,
            _ => false,
        }
    }

    fn apply(&mut self, command: &Command) -> Option<Vec<u64>> {
        if let Some(answer) = command.request_id.as_ref().and_then(|id| self.answered.get(id)) {
            return Some(answer.clone());
        }
        let mut named = std::collections::BTreeSet::new();
        for op in &command.ops {
            let (key, when, delete) = match op {
                Op::Put { key, when, .. } | Op::Check { key, when } => (key, when, false),
                Op::Delete { key, when } => (key, when, true),
                _ => continue,
            };
            let found = self.now.get(key);
            if !named.insert(key) || !Self::holds(found, when) || (delete && found.is_none()) {
                return None;
            }
        }
        let mut revisions = Vec::new();
        for op in &command.ops {
            match op {
                Op::Put { key, object, .. } => {
                    if let Some((have, same)) = self.now.get(key)
                        && same == object
                    {
                        revisions.push(*have);
                        continue;
                    }
                    self.revision += 1;
                    self.now.insert(key.clone(), (self.revision, object.clone()));
                    self.changes.push((self.revision, key.clone(), Some(object.clone())));
                    revisions.push(self.revision);
                }
                Op::Delete { key, .. } => {
                    self.revision += 1;
                    self.now.remove(key);
                    self.changes.push((self.revision, key.clone(), None));
                    revisions.push(self.revision);
                }
                Op::Check { key, .. } => revisions.push(self.now.get(key).map_or(0, |(r, _)| *r)),
                _ => {}
            }
        }
        self.past.insert(self.revision, self.now.clone());
        if let Some(id) = &command.request_id {
            self.answered.insert(id.clone(), revisions.clone());
        }
        Some(revisions)
    }
}

fn any_key() -> impl Strategy<Value = Key> {
    (0..2usize, 0..3usize, 0..4usize).prop_map(|(k, ns, n)| {
        let kind = ["Pod", "Secret"][k];
        key(kind, ["", "a", "b"][ns], &format!("n{n}"))
    })
}

fn any_when() -> impl Strategy<Value = When> {
    prop_oneof![
        6 => Just(When::Always),
        2 => Just(When::Absent),
        2 => Just(When::Exists),
        1 => (0..60u64).prop_map(When::Revision),
        1 => (0..3u8).prop_map(|u| When::Uid(format!("u{u}"))),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any_key(), any_when(), 0..3u8, 0..4u8)
            .prop_map(|(k, w, u, t)| put(k, w, stored(&format!("u{u}"), &t.to_string()))),
        2 => (any_key(), any_when()).prop_map(|(key, when)| Op::Delete { key, when }),
        1 => (any_key(), any_when()).prop_map(|(key, when)| Op::Check { key, when }),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    let ops = prop::collection::vec(any_op(), 1..4);
    (ops, prop::option::of(0..20u8), 0..1_000u64).prop_map(|(ops, id, now)| Command {
        request_id: id.map(|i| format!("r{i}")),
        now_millis: now,
        fence_term: None,
        ops,
    })
}

fn apply(store: &Store, command: &Command) -> Outcome {
    let bytes = command.encode().unwrap();
    store.apply([(1, &bytes[..])]).remove(0)
}

fn check_lists(store: &Store, reference: &Reference, page: usize) {
    for (revision, world) in &reference.past {
        for namespace in [None, Some("a"), Some("")] {
            let expected: Vec<_> = world
                .iter()
                .filter(|(k, _)| k.kind == "Pod" && namespace.is_none_or(|ns| k.namespace == ns))
                .map(|(k, (r, o))| (k.clone(), *r, o.clone()))
                .collect();
            let mut found = Vec::new();
            let mut after: Option<Key> = None;
            loop {
                let page = store.list("Pod", namespace, after.as_ref(), page, Some(*revision)).unwrap();
                assert_eq!(page.revision, *revision);
                found.extend(page.items.iter().map(|v| (v.key.clone(), v.revision, v.object.clone())));
                after = found.last().map(|(k, _, _)| k.clone());
                if !page.more {
                    break;
                }
            }
            assert_eq!(found, expected, "at revision {revision} in {namespace:?}");
        }
    }
}

fn check_watch(store: &Store, reference: &Reference, from: u64) {
    let mut watcher = store.watch(WatchFilter::kind("Pod"), from).unwrap();
    let mut seen = Vec::new();
    loop {
        let batch = watcher.poll().unwrap();
        assert!(batch.revision == reference.revision || reference.past.contains_key(&batch.revision));
        if batch.events.is_empty() {
            break;
        }
        seen.extend(batch.events);
    }
    let told: Vec<_> =
        seen.iter().map(|e| (e.revision, e.key().unwrap().clone(), e.new.as_ref().map(|v| v.object.clone()))).collect();
    let expected: Vec<_> = reference.changes.iter().filter(|(r, k, _)| *r > from && k.kind == "Pod").cloned().collect();
    assert_eq!(told, expected, "every change once, in order, from {from}");
    for event in &seen {
        let before = reference.past.range(..event.revision).next_back();
        let key = event.key().unwrap();
        let old = event.old.as_ref().map(|v| v.revision);
        if let Some((at, world)) = before
            && *at == event.revision - 1
        {
            assert_eq!(old, world.get(key).map(|(r, _)| *r), "the version before is told too");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_reference_does(
        commands in prop::collection::vec(any_command(), 1..60),
        page in 1..5usize,
        from in 0..40u64,
    ) {
        let store = Store::default();
        let mut reference = Reference::default();
        reference.past.insert(0, World::new());
        for command in &commands {
            let outcome = apply(&store, command);
            let expected = reference.apply(command);
            prop_assert_eq!(outcome.done().map(<[u64]>::to_vec), expected);
            prop_assert_eq!(store.revision(), reference.revision);
        }
        check_lists(&store, &reference, page);
        check_watch(&store, &reference, from.min(reference.revision));
    }

    #[test]
    fn a_restored_snapshot_goes_on_like_the_original(
        before in prop::collection::vec(any_command(), 0..40),
        after in prop::collection::vec(any_command(), 0..20),
        events in 1..30usize,
    ) {
        let limits = HistoryLimits { events, bytes: 1 << 20 };
        let original = Store::new(limits);
        for command in &before {
            apply(&original, command);
        }
        let mut bytes = Vec::new();
        original.capture().write_to(&mut bytes).unwrap();
        let restored = Store::new(limits);
        restored.replace(snapshot::read_from(&mut &bytes[..], limits).unwrap());
        let again = |store: &Store| {
            let mut bytes = Vec::new();
            store.capture().write_to(&mut bytes).unwrap();
            bytes
        };
        prop_assert_eq!(&again(&restored), &bytes, "a snapshot of the restored is the same");
        for command in &after {
            prop_assert_eq!(apply(&original, command), apply(&restored, command));
        }
        prop_assert_eq!(again(&original), again(&restored));
        prop_assert_eq!(original.stats(), restored.stats());
    }
}
