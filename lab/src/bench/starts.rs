//! How long a Pod takes from `create` to the first packet answered, and 30 Pods at once.
//!
//! What is timed is what a client sees: a watch, opened before, tells when a Pod is bound and when
//! it is Running; nothing is polled until then. Only the first packet has to be tried for: the
//! program in the Pod listens some time after its start, which nobody is told of.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::mpsc};
use trellis_proto::{
    api::{CreateRequest, EventType, ObjectKey, WatchRequest},
    client::{Connection, request_id},
};

use super::{
    Bench, pods,
    report::{Aim, Figure, percentile},
    writes::connections,
};
use crate::{Error, Result, backend::Backend, cluster::api::key, workload};

/// Pods started one after another: so many that p99 is not the slowest one.
const SINGLES: usize = 110;
/// Pods started at once …
const AT_ONCE: usize = 30;
/// … this often.
const ROUNDS: usize = 5;
/// Before what is timed: the first Pod of a node reads its image's layers from disk.
const UNTIMED: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);
/// Between two tries to reach a Pod.
const TRY_AGAIN: Duration = Duration::from_micros(500);
/// Changes that nobody has taken from the watch yet.
const QUEUE: usize = 1024;

/// A change of a Pod, at the moment when the watch told it.
struct Sight {
    name: String,
    at: Instant,
    bound: bool,
    running: Option<IpAddr>,
}

/// Milliseconds since the create was sent.
pub(super) struct Start {
    stored: f64,
    bound: f64,
    running: f64,
    /// The first packet came back.
    pub(super) answered: f64,
}

/// A client of the bench: a connection, and the watch on it.
pub(super) struct Client {
    runtime: Runtime,
    connection: Connection,
    sights: mpsc::Receiver<Sight>,
}

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let mut client = Client::open(bench)?;
    let from = bench.lab.topology().nodes[0].name.clone();
    for i in 0..UNTIMED {
        client.one(bench, &from, &format!("first{i}"))?;
    }
    let mut singles = Vec::new();
    for i in 0..SINGLES {
        bench.progress.now(&format!("Pod {} of {SINGLES}", i + 1));
        singles.push(client.one(bench, &from, &format!("one{i}"))?);
    }
    pods::remove_all(bench.api)?;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        bench.progress.now(&format!("{AT_ONCE} Pods at once, round {} of {ROUNDS}", round + 1));
        rounds.push(client.many(&format!("many{round}-"))?);
        pods::remove_all(bench.api)?;
    }
    tell(bench, &singles, rounds);
    Ok(())
}

fn tell(bench: &mut Bench<'_>, singles: &[Start], rounds: Vec<f64>) {
    let of = |share, what: fn(&Start) -> f64| percentile(&singles.iter().map(what).collect::<Vec<_>>(), share);
    bench.progress.done(&format!(
        "a Pod start, medians: stored after {:.1} ms, bound {:.1}, Running {:.1}, answered {:.1}",
        of(0.5, |s| s.stored),
        of(0.5, |s| s.bound),
        of(0.5, |s| s.running),
        of(0.5, |s| s.answered)
    ));
    let peer = "kubelet with containerd, recorded";
    let answered = || singles.iter().map(|s| s.answered).collect::<Vec<_>>();
    let report = &mut *bench.report;
    report.add(Figure::beside(
        "Pod create to first answer, p50",
        "ms",
        answered(),
        peer,
        vec![480.0],
        Aim::AtMost(100.0),
    ));
    report.add(Figure::limit("Pod create to first answer, p99", "ms", answered(), Aim::AtMost(400.0)).at(0.99));
    report.add(Figure::beside("30 Pods at once, all Running", "s", rounds, peer, vec![4.0], Aim::AtMost(1.0)));
}

impl Client {
    /// Connects and watches; returns when all that exists has been told.
    pub(super) fn open(bench: &Bench<'_>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::io("start a runtime"))?;
        let connection = connections(bench, 1)?[0].clone();
        let (tx, sights) = mpsc::channel(QUEUE);
        runtime.block_on(watch(connection.clone(), tx))?;
        Ok(Self { runtime, connection, sights })
    }

    /// One Pod, until it answers a machine.
    pub(super) fn one(&mut self, bench: &Bench<'_>, from: &str, name: &str) -> Result<Start> {
        let begin = Instant::now();
        let millis = |at: Instant| at.duration_since(begin).as_secs_f64() * 1e3;
        self.runtime.block_on(create(self.connection.clone(), name.to_owned()))?;
        let stored = millis(Instant::now());
        let mut bound = None;
        let (running, address) = loop {
            let sight = self.next(begin)?;
            if sight.name != name {
                continue;
            }
            if sight.bound {
                bound.get_or_insert(millis(sight.at));
            }
            if let Some(address) = sight.running {
                break (millis(sight.at), address);
            }
        };
        let address = SocketAddr::new(address, workload::web::PORT);
        while bench.lab.http_get(from, address, "/", Duration::from_secs(1)).is_err() {
            if begin.elapsed() > LIMIT {
                return Err(late(&format!("{name} did not answer")));
            }
            thread::sleep(TRY_AGAIN);
        }
        Ok(Start { stored, bound: bound.unwrap_or(running), running, answered: millis(Instant::now()) })
    }

    /// Seconds until all are Running.
    pub(super) fn many(&mut self, prefix: &str) -> Result<f64> {
        let begin = Instant::now();
        let creates: Vec<_> =
            (0..AT_ONCE).map(|i| self.runtime.spawn(create(self.connection.clone(), format!("{prefix}{i}")))).collect();
        let mut running = BTreeMap::new();
        while running.len() < AT_ONCE {
            let sight = self.next(begin)?;
            if sight.running.is_some() && sight.name.starts_with(prefix) {
                running.entry(sight.name).or_insert(sight.at);
            }
        }
        for each in creates {
            self.runtime.block_on(each).map_err(|e| late(&e.to_string()))??;
        }
        let last = running.values().max().map_or(0.0, |at| at.duration_since(begin).as_secs_f64());
        Ok(last)
    }

    fn next(&mut self, begin: Instant) -> Result<Sight> {
        let left = LIMIT.saturating_sub(begin.elapsed());
        let next = self.runtime.block_on(async { tokio::time::timeout(left, self.sights.recv()).await });
        next.map_err(|_| late("not Running"))?.ok_or_else(|| late("the watch ended"))
    }
}

fn late(why: &str) -> Error {
    let why = format!("{why} (at most {} s)", LIMIT.as_secs());
    Error::Format { what: "starting the bench's Pods".to_owned(), why }
}

async fn create(connection: Connection, name: String) -> Result<()> {
    let request = CreateRequest {
        key: Some(key("Pod", "default", &name)),
        json: pods::pod(&name, &json!({})).to_string().into(),
        request_id: request_id(),
        dry_run: false,
    };
    let created = connection.resources().create(request).await;
    created.map(drop).map_err(Error::api(format!("create Pod {name}")))
}

/// Returns with the initial list's end; goes on telling changes beside.
async fn watch(connection: Connection, tx: mpsc::Sender<Sight>) -> Result<()> {
    let request = WatchRequest {
        key: Some(ObjectKey { name: String::new(), ..key("Pod", "default", "") }),
        label_selector: "app=bench".to_owned(),
        ..WatchRequest::default()
    };
    let api = || Error::api("watch Pods");
    let mut stream = connection.resources().watch(request).await.map_err(api())?.into_inner();
    while let Some(event) = stream.message().await.map_err(api())? {
        if event.r#type() == EventType::Bookmark {
            break;
        }
    }
    tokio::spawn(async move {
        while let Ok(Some(event)) = stream.message().await {
            let (at, kind) = (Instant::now(), event.r#type());
            let Some(object) = event.object.filter(|_| matches!(kind, EventType::Added | EventType::Modified)) else {
                continue;
            };
            if let Some(sight) = sight(&object.json, at)
                && tx.send(sight).await.is_err()
            {
                return;
            }
        }
    });
    Ok(())
}

fn sight(json: &[u8], at: Instant) -> Option<Sight> {
    let pod: Value = serde_json::from_slice(json).ok()?;
    let address = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    Some(Sight {
        name: pod["metadata"]["name"].as_str()?.to_owned(),
        at,
        bound: pod["spec"]["nodeName"].is_string(),
        running: address.filter(|_| pod["status"]["phase"] == "Running"),
    })
}
