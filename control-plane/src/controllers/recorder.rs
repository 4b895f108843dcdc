//! Events that controllers tell: made into Event objects, equal ones counted up instead of
//! repeated, a flood of them dropped rather than queued.
//!
//! Best effort by design: an Event that cannot be written is lost, and nothing waits for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Event, EventSource};
use trellis_model::{Kind, Object};

use super::object::{Note, Now, ObjKey, TRANSACTION_BYTES, Write};

/// Notes that wait to be written; more are dropped and counted.
const MAX_PENDING: usize = 4_096;
/// Distinct Events remembered for counting.
const MAX_REMEMBERED: usize = 2_048;
/// Events in one transaction: a few hundred bytes each.
const BATCH: usize = 200;

type Sameness = (String, String, &'static str, String);

/// See the module.
#[derive(Debug, Default)]
pub struct Recorder {
    pending: VecDeque<Note>,
    remembered: HashMap<Sameness, Remembered>,
    order: VecDeque<Sameness>,
    dropped: u64,
    sequence: u64,
    /// Makes names of this leader's Events differ from any other's.
    prefix: String,
}

#[derive(Debug, Clone)]
struct Remembered {
    event: Arc<Event>,
}

impl Recorder {
    /// A recorder whose Events' names carry `prefix` (a term, hex).
    pub fn new(prefix: String) -> Self {
        Self { prefix, ..Self::default() }
    }

    /// Takes notes to be told.
    pub fn tell(&mut self, notes: impl IntoIterator<Item = Note>) {
        for note in notes {
            if self.pending.len() >= MAX_PENDING {
                self.dropped += 1;
                continue;
            }
            self.pending.push_back(note);
        }
    }

    /// Whether something waits to be written.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Notes dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The next transaction of Events; its writes are independent of each other. `namespaces`
    /// says whether Events may still be made in a namespace.
    pub fn batch(&mut self, now: &Now, namespaces: impl Fn(&str) -> bool) -> Vec<Write> {
        let mut writes: Vec<Write> = Vec::new();
        let mut seen: std::collections::HashSet<ObjKey> = std::collections::HashSet::new();
        let mut bytes = 0;
        while writes.len() < BATCH
            && bytes < TRANSACTION_BYTES
            && let Some(note) = self.pending.pop_front()
        {
            let namespace = note.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
            if !namespaces(&namespace) {
                continue;
            }
            let event = self.event(note, namespace, now);
            let object = Object::Event(Box::new(event));
            let key = ObjKey::of(Kind::Event, object.meta());
            if seen.insert(key) {
                let write = Write::Record(object);
                bytes += write.weight();
                writes.push(write);
            }
        }
        writes
    }

    fn event(&mut self, note: Note, namespace: String, now: &Now) -> Event {
        let text = |o: &Option<String>| o.clone().unwrap_or_default();
        let same = (text(&note.about.uid), text(&note.about.name), note.reason, note.message.clone());
        if let Some(known) = self.remembered.get_mut(&same) {
            let mut event = (*known.event).clone();
            event.count = Some(event.count.unwrap_or(1) + 1);
            event.last_timestamp = Some(now.time());
            known.event = Arc::new(event.clone());
            return event;
        }
        self.sequence += 1;
        let name = text(&note.about.name);
        let event = Event {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some(format!("{name}.{}{:05x}", self.prefix, self.sequence)),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: note.about,
            reason: Some(note.reason.to_owned()),
            message: Some(note.message),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            count: Some(1),
            first_timestamp: Some(now.time()),
            last_timestamp: Some(now.time()),
            source: Some(EventSource { component: Some(note.component.to_owned()), host: None }),
            reporting_component: Some(note.component.to_owned()),
            ..Event::default()
        };
        self.remembered.insert(same.clone(), Remembered { event: Arc::new(event.clone()) });
        self.order.push_back(same);
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;

    fn note(name: &str, message: &str) -> Note {
        let about = ObjectReference { name: Some(name.into()), namespace: Some("ns".into()), ..Default::default() };
        Note { about, warning: false, reason: "R", message: message.into(), component: "c" }
    }

    fn count(w: &Write) -> i32 {
        match w {
            Write::Record(Object::Event(e)) => e.count.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn equal_events_are_counted_and_a_flood_is_dropped() {
        let mut r = Recorder::new("1".into());
        let now = Now::read();
        r.tell([note("a", "x"), note("b", "x")]);
        let first = r.batch(&now, |_| true);
        assert_eq!(first.len(), 2);
        r.tell([note("a", "x")]);
        let second = r.batch(&now, |_| true);
        assert_eq!(count(&second[0]), 2);
        assert_eq!(second[0].key(), first[0].key());
        r.tell((0..MAX_PENDING + 7).map(|i| note("a", &i.to_string())));
        assert_eq!(r.dropped(), 7);
        r.tell([note("z", "gone")]);
        while !r.is_empty() {
            assert!(r.batch(&now, |_| false).is_empty());
        }
    }
}
