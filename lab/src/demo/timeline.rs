//! What the cluster itself says after a power cut, in the order in which it is said: gossip's
//! verdicts from netd's sockets on the nodes that live, the rest from the API's watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{net::UnixStream, runtime::Runtime, sync::mpsc, task::JoinHandle};
use tonic::transport::{Endpoint, Uri};
use trellis_proto::{
    api::{EventType, WatchRequest},
    client::Connection,
    netd::{self, Liveness, membership_client::MembershipClient},
};

use crate::{
    Error, Result,
    cluster::api::{condition, key},
};

/// Observations are few; who falls this far behind waits.
const QUEUE: usize = 256;
/// Between two tries to watch again.
const RETRY: Duration = Duration::from_millis(50);

/// Something that happened, and how long after the power cut.
pub(super) struct Event {
    pub(super) after: Duration,
    pub(super) what: String,
}

enum Seen {
    Gossip { observer: usize, liveness: Liveness },
    NodeLost { status: String },
    Pod { uid: String, name: String, node: Option<String>, ready: bool },
}

/// All watches; they end with this.
pub(super) struct Watchers {
    seen: mpsc::Receiver<(Instant, Seen)>,
    tasks: Vec<JoinHandle<()>>,
    scene: Scene,
}

/// Who is in the story.
struct Scene {
    /// Who loses its power.
    victim: String,
    /// How many others are asked what they know of it.
    observers: usize,
    /// The Pods that were there before.
    known: BTreeSet<String>,
}

impl Watchers {
    /// Begins to watch: gossip behind the sockets, the Node `victim`, Pods labelled `app`.
    /// `known` are the Pods that were there before.
    pub(super) fn start(
        api: &crate::cluster::Api,
        sockets: Vec<PathBuf>,
        victim: &str,
        app: &str,
        known: BTreeSet<String>,
    ) -> Result<Self> {
        let (send, seen) = mpsc::channel(QUEUE);
        let observers = sockets.len();
        let mut tasks = Vec::with_capacity(observers + 2);
        let runtime = api.runtime();
        for (observer, socket) in sockets.into_iter().enumerate() {
            tasks.push(runtime.spawn(watch_gossip(socket, observer, victim.to_owned(), send.clone())));
        }
        for kind in ["Node", "Pod"] {
            let namespace = if kind == "Pod" { "default" } else { "" };
            let request = WatchRequest {
                key: Some(key(kind, namespace, if kind == "Node" { victim } else { "" })),
                label_selector: if kind == "Pod" { format!("app={app}") } else { String::new() },
                ..WatchRequest::default()
            };
            tasks.push(runtime.spawn(watch_objects(api.connection().clone(), request, send.clone())));
        }
        Ok(Self { seen, tasks, scene: Scene { victim: victim.to_owned(), observers, known } })
    }

    /// Gathers events until `lost` new Pods are Ready.
    pub(super) fn until_recovered(
        &mut self,
        runtime: &Runtime,
        begin: Instant,
        limit: Duration,
        lost: usize,
    ) -> Result<Vec<Event>> {
        let mut story = Story::default_at(begin);
        let deadline = tokio::time::Instant::from_std(begin + limit);
        runtime.block_on(async {
            while story.ready.len() < lost || story.dead.len() < self.scene.observers {
                match tokio::time::timeout_at(deadline, self.seen.recv()).await {
                    Ok(Some((at, seen))) => story.hear(at, seen, &self.scene),
                    Ok(None) | Err(_) => break,
                }
            }
        });
        if story.ready.len() < lost {
            let told: Vec<_> = story.events.iter().map(|e| e.what.as_str()).collect();
            return Err(Error::Deadline {
                what: format!("{lost} replacements for the Pods of {}", self.scene.victim),
                seconds: limit.as_secs(),
                last: if told.is_empty() { "nobody noticed".to_owned() } else { told.join("; ") },
            });
        }
        Ok(story.events)
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Story {
    begin: Instant,
    events: Vec<Event>,
    suspected: bool,
    dead: BTreeSet<usize>,
    unknown: bool,
    bound: BTreeMap<String, String>,
    ready: BTreeSet<String>,
}

impl Story {
    fn default_at(begin: Instant) -> Self {
        Self {
            begin,
            events: Vec::new(),
            suspected: false,
            dead: BTreeSet::new(),
            unknown: false,
            bound: BTreeMap::new(),
            ready: BTreeSet::new(),
        }
    }

    fn tell(&mut self, at: Instant, what: String) {
        self.events.push(Event { after: at.saturating_duration_since(self.begin), what });
    }

    fn hear(&mut self, at: Instant, seen: Seen, scene: &Scene) {
        // The watches begin with the state before; only what came after the cut counts.
        if at < self.begin {
            return;
        }
        let victim = &scene.victim;
        match seen {
            Seen::Gossip { liveness: Liveness::Suspect, .. } if !self.suspected => {
                self.suspected = true;
                self.tell(at, format!("suspected: a neighbour's probes of {victim} go unanswered"));
            }
            Seen::Gossip { observer, liveness: Liveness::Dead } if self.dead.insert(observer) => {
                if self.dead.len() == 1 {
                    self.tell(at, format!("known: a first node takes {victim} for dead"));
                }
                if self.dead.len() == scene.observers {
                    self.tell(at, format!("known to all {} others", scene.observers));
                }
            }
            Seen::NodeLost { status } if !self.unknown => {
                self.unknown = true;
                self.tell(at, format!("the control plane agrees: {victim} is {status}, its Pods are evicted"));
            }
            Seen::Pod { uid, name, node: Some(node), ready } if !scene.known.contains(&uid) && node != *victim => {
                if self.bound.insert(uid.clone(), node.clone()).is_none() {
                    self.tell(at, format!("rebound: {name} to {node}"));
                }
                if ready && self.ready.insert(uid) {
                    self.tell(at, format!("running: {name} is Ready on {node}"));
                }
            }
            _ => {}
        }
    }
}

async fn watch_gossip(socket: PathBuf, observer: usize, victim: String, send: mpsc::Sender<(Instant, Seen)>) {
    loop {
        if let Ok(mut views) = open_gossip(socket.clone()).await {
            while let Ok(Some(view)) = views.message().await {
                let Some(member) = view.members.iter().find(|m| m.node == victim) else { continue };
                let seen = Seen::Gossip { observer, liveness: member.liveness() };
                if send.send((Instant::now(), seen)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn open_gossip(socket: PathBuf) -> Result<tonic::Streaming<netd::MembershipView>> {
    let what = socket.display().to_string();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://netd").connect_with_connector_lazy(connector);
    let views = MembershipClient::new(channel).watch(netd::WatchRequest {}).await;
    views.map(tonic::Response::into_inner).map_err(Error::api(what))
}

async fn watch_objects(connection: Connection, request: WatchRequest, send: mpsc::Sender<(Instant, Seen)>) {
    loop {
        // From the beginning each time: the story counts each thing once.
        if let Ok(reply) = connection.resources().watch(request.clone()).await {
            let mut events = reply.into_inner();
            while let Ok(Some(event)) = events.message().await {
                let at = Instant::now();
                let Some(object) = event.object.as_ref().filter(|_| event.r#type() != EventType::Deleted) else {
                    continue;
                };
                let Ok(object) = serde_json::from_slice::<Value>(&object.json) else { continue };
                let Some(seen) = Seen::of(&object) else { continue };
                if send.send((at, seen)).await.is_err() {
                    return;
                }
            }
        }
        connection.next_endpoint();
        tokio::time::sleep(RETRY).await;
    }
}

impl Seen {
    fn of(object: &Value) -> Option<Self> {
        let ready = condition(object, "Ready");
        if object["kind"] == "Node" {
            let status = ready.filter(|s| *s != "True")?;
            let status = if status == "Unknown" { "Unknown" } else { "NotReady" };
            return Some(Self::NodeLost { status: status.to_owned() });
        }
        Some(Self::Pod {
            uid: object["metadata"]["uid"].as_str()?.to_owned(),
            name: object["metadata"]["name"].as_str()?.to_owned(),
            node: object["spec"]["nodeName"].as_str().map(str::to_owned),
            ready: ready == Some("True"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn gossip(observer: usize, liveness: Liveness) -> Seen {
        Seen::Gossip { observer, liveness }
    }

    fn pod(uid: &str, node: Option<&str>, ready: bool) -> Seen {
        Seen::Pod { uid: uid.to_owned(), name: format!("web-{uid}"), node: node.map(str::to_owned), ready }
    }

    #[test]
    fn each_thing_is_told_once_when_it_is_first_seen_and_only_after_the_cut() {
        let scene = Scene { victim: "n4".to_owned(), observers: 2, known: ["old".to_owned()].into() };
        let cut = Instant::now();
        let mut story = Story::default_at(cut);
        // The watches' first answers, from before.
        if let Some(before) = cut.checked_sub(MILLI) {
            story.hear(before, pod("new", Some("n1"), true), &scene);
            story.hear(before, gossip(0, Liveness::Dead), &scene);
        }
        let lost = || Seen::NodeLost { status: "Unknown".to_owned() };
        let all = [
            gossip(0, Liveness::Alive),
            gossip(1, Liveness::Suspect),
            gossip(0, Liveness::Suspect),
            gossip(1, Liveness::Dead),
            gossip(1, Liveness::Dead),
            gossip(0, Liveness::Dead),
            lost(),
            lost(),
            // One that was there before, one not bound yet, one on the node that is gone.
            pod("old", Some("n2"), true),
            pod("new", None, false),
            pod("torn", Some("n4"), true),
            pod("new", Some("n2"), false),
            pod("new", Some("n2"), true),
            pod("new", Some("n2"), true),
        ];
        for (at, seen) in (1_u32..).zip(all) {
            story.hear(cut + MILLI * at, seen, &scene);
        }
        let told: Vec<(u128, &str)> = story.events.iter().map(|e| (e.after.as_millis(), e.what.as_str())).collect();
        assert_eq!(
            told,
            [
                (2, "suspected: a neighbour's probes of n4 go unanswered"),
                (4, "known: a first node takes n4 for dead"),
                (6, "known to all 2 others"),
                (7, "the control plane agrees: n4 is Unknown, its Pods are evicted"),
                (12, "rebound: web-new to n2"),
                (13, "running: web-new is Ready on n2"),
            ]
        );
        assert_eq!((story.ready.len(), story.dead.len()), (1, 2));
    }
}
