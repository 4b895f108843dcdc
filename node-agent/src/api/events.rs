//! Kubernetes Events: what people see in `describe`. Bounded and rate-limited: a crash loop on a
//! thousand Pods must not fill the log of the control plane. Repetitions become a count.
use super::{ApiError, create, key};
use crate::pod::event::Note;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use trellis_proto::client::Connection;

/// Notes waiting to be written; more are dropped, and counted.
const QUEUE: usize = 256;
/// Events remembered for counting repetitions.
const REMEMBERED: usize = 512;
/// The same event is written again after this, then after twice that, up to the last.
const REPEAT_FIRST: Duration = Duration::from_secs(10);
const REPEAT_LAST: Duration = Duration::from_secs(600);
/// Writes a second over all Pods, and how many at once after a quiet time.
const RATE_PER_SEC: f64 = 20.0;
const BURST: f64 = 100.0;
/// A note is written this long after it was taken: what happens at a Pod's start comes before what
/// is told about it, and when thirty start at once their own writes do not wait behind Events.
const WRITTEN_AFTER: Duration = Duration::from_millis(500);
/// Messages come from programs' output: bounded as Kubernetes bounds them.
const MESSAGE_MAX_BYTES: usize = 1024;

/// Takes notes without ever waiting.
#[derive(Clone, Debug)]
pub struct Recorder {
    tx: mpsc::Sender<Taken>,
    node: String,
}

/// A note, and when it was taken.
#[derive(Debug)]
struct Taken {
    at: Instant,
    time: Timestamp,
    about: ObjectReference,
    note: Note,
}

impl Recorder {
    /// Starts the writer.
    pub fn start(conn: Connection, node: String) -> Self {
        let (tx, rx) = mpsc::channel(QUEUE);
        let name = node.clone();
        tokio::spawn(Writer { conn, node, seen: HashMap::new(), order: VecDeque::new(), tokens: BURST }.run(rx));
        Self { tx, node: name }
    }

    /// Notes something about this Node.
    pub fn node(&self, note: Note) {
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            // Events of what lies in no namespace lie here, in Kubernetes, too.
            namespace: Some("default".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..Default::default()
        };
        self.send(reference, note);
    }

    /// Notes something about a Pod.
    pub fn note(&self, pod: &Pod, note: Note) {
        let field = note.container.as_ref().map(|name| {
            let inits = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
            let list = if inits.map(|c| &c.name).any(|n| n == name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field,
        };
        self.send(reference, note);
    }

    fn send(&self, reference: ObjectReference, note: Note) {
        tracing::info!(
            object = %format!("{}/{}", reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or("")),
            reason = note.reason,
            "{}",
            note.message
        );
        let taken = Taken { at: Instant::now(), time: Timestamp::now(), about: reference, note };
        if self.tx.try_send(taken).is_err() {
            tracing::debug!("too many events: one dropped");
        }
    }
}

struct Known {
    first: Timestamp,
    count: i32,
    written: Instant,
    /// The next repetition is written after this.
    gap: Duration,
}

struct Writer {
    conn: Connection,
    node: String,
    seen: HashMap<String, Known>,
    order: VecDeque<String>,
    tokens: f64,
}

impl Writer {
    async fn run(mut self, mut rx: mpsc::Receiver<Taken>) {
        let mut refilled = Instant::now();
        while let Some(mut taken) = rx.recv().await {
            tokio::time::sleep_until((taken.at + WRITTEN_AFTER).into()).await;
            self.tokens = (self.tokens + refilled.elapsed().as_secs_f64() * RATE_PER_SEC).min(BURST);
            refilled = Instant::now();
            truncate(&mut taken.note.message, MESSAGE_MAX_BYTES);
            if let Err(error) = self.write(taken).await {
                tracing::debug!(%error, "an event was not written");
            }
        }
    }

    async fn write(&mut self, taken: Taken) -> Result<(), ApiError> {
        let Taken { time, about: reference, note, .. } = taken;
        let id = format!(
            "{}|{}|{}|{}",
            reference.uid.as_deref().unwrap_or_default(),
            reference.field_path.as_deref().unwrap_or_default(),
            note.reason,
            note.message
        );
        let namespace = reference.namespace.clone().unwrap_or_default();
        let (first, count) = match self.seen.get_mut(&id) {
            Some(known) => {
                known.count = known.count.saturating_add(1);
                if known.written.elapsed() < known.gap {
                    return Ok(());
                }
                (known.first, known.count)
            }
            None => (time, 1),
        };
        if self.tokens < 1.0 {
            return Ok(());
        }
        self.tokens -= 1.0;
        // An agent may create Events, not change them: a repetition is a new one that carries the
        // count, at growing intervals.
        let event = self.event(reference, &note, (first, time), count);
        let name = event.metadata.name.clone().unwrap_or_default();
        create(&self.conn, &key("Event", &namespace, &name), &event).await?;
        self.remember(id, first, count);
        Ok(())
    }

    fn remember(&mut self, id: String, first: Timestamp, count: i32) {
        if let Some(known) = self.seen.get_mut(&id) {
            known.written = Instant::now();
            known.gap = (known.gap * 2).min(REPEAT_LAST);
            return;
        }
        while self.order.len() >= REMEMBERED {
            if let Some(old) = self.order.pop_front() {
                self.seen.remove(&old);
            }
        }
        self.order.push_back(id.clone());
        self.seen.insert(id, Known { first, count, written: Instant::now(), gap: REPEAT_FIRST });
    }

    fn event(
        &self,
        reference: ObjectReference,
        note: &Note,
        (first, now): (Timestamp, Timestamp),
        count: i32,
    ) -> Event {
        let stamp = u64::try_from(now.as_nanosecond()).unwrap_or(0);
        let pod = reference.name.clone().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{pod}.{stamp:x}")),
                namespace: reference.namespace.clone(),
                ..Default::default()
            },
            involved_object: reference,
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(note.reason.into()),
            message: Some(note.message.clone()),
            count: Some(count),
            first_timestamp: Some(crate::pod::status::time(first)),
            last_timestamp: Some(crate::pod::status::time(now)),
            source: Some(EventSource { component: Some("trellis-node-agent".into()), host: Some(self.node.clone()) }),
            reporting_component: Some("trellis-node-agent".into()),
            reporting_instance: Some(self.node.clone()),
            ..Default::default()
        }
    }
}

fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}
