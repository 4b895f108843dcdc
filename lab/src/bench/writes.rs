//! API writes of 256 bytes, three members, fsync on: against etcd with three members on the same
//! disk. Creates, not updates: nothing can be answered without a log entry. Ours go through mutual
//! TLS, between members too, and through authorisation, defaulting and validation; etcd's are plain.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use trellis_proto::{
    api::CreateRequest,
    client::{Connection, request_id},
};

use super::{
    Bench,
    etcd::{self, Etcd},
    load::{self, Load},
    report::{Aim, Figure},
};
use crate::{
    Error, Result,
    cluster::{api::key, contexts},
};

/// Each of ours and of the peer's.
const LENGTH: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
const VALUE_BYTES: usize = 256;
/// HTTP/2 connections that the clients share, ours and the peer's alike. Ours send their writes down
/// one stream of each, as node agents do.
const CONNECTIONS: usize = 6;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let runtime = load::runtime()?;
    let connections = connections(bench, CONNECTIONS)?;
    let etcd = Etcd::start(bench.lab, bench.exe)?;
    let channels = etcd.connect(&runtime, CONNECTIONS)?;
    let serial = Arc::new(AtomicU64::new(0));
    for clients in [1, 64, 256] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            bench.progress.now(&format!("{clients} clients, round {} of {ROUNDS}", round + 1));
            let (connections, serial) = (connections.clone(), Arc::clone(&serial));
            ours.push(runtime.block_on(load::run(clients, LENGTH, move |client, _| {
                create(connections[client % CONNECTIONS].clone(), serial.fetch_add(1, Ordering::Relaxed))
            }))?);
            let channels = channels.clone();
            theirs.push(runtime.block_on(load::run(clients, LENGTH, move |client, n| {
                let key = format!("{round}-{clients}-{client}-{n}").into_bytes();
                etcd::put(channels[client % CONNECTIONS].clone(), key, vec![b'x'; VALUE_BYTES])
            }))?);
        }
        add(bench, clients, &ours, &theirs);
    }
    Ok(())
}

/// What is told of a load: its name's end, its unit, how it is read off, its aim.
type Part = (&'static str, &'static str, fn(&Load) -> f64, Aim);

fn add(bench: &mut Bench<'_>, clients: usize, ours: &[Load], theirs: &[Load]) {
    let aim = if clients == 1 { 1.0 } else { 4.0 };
    let of = |loads: &[Load], f: fn(&Load) -> f64| loads.iter().map(f).collect::<Vec<_>>();
    let name = |what: &str| format!("API writes, {clients} clients{what}");
    let parts: [Part; 3] = [
        ("", "/s", |l| l.per_second, Aim::RatioAtLeast(aim)),
        (", p50", "ms", |l| l.p50_millis, Aim::RatioAtMost(1.0)),
        (", p99", "ms", |l| l.p99_millis, Aim::RatioAtMost(1.0)),
    ];
    for (what, unit, f, aim) in parts {
        bench.report.add(Figure::beside(
            name(what),
            unit,
            of(ours, f),
            "etcd on loopback without TLS, 3 members",
            of(theirs, f),
            aim,
        ));
    }
}

/// Connections, each to one member first, in turn.
pub(super) fn connections(bench: &Bench<'_>, count: usize) -> Result<Arc<[Connection]>> {
    let context = contexts::read(&bench.lab.layout().contexts())?;
    (0..count)
        .map(|i| {
            let mut context = context.clone();
            let members = context.endpoints.len().max(1);
            context.endpoints.rotate_left(i % members);
            context
                .connect("bench")
                .map_err(|e| Error::Format { what: "the bench's context".to_owned(), why: e.to_string() })
        })
        .collect::<Result<Vec<_>>>()
        .map(Into::into)
}

async fn create(connection: Connection, serial: u64) -> std::result::Result<(), String> {
    let name = format!("w{serial}");
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"default"}},"data":{{"v":"{}"}}}}"#,
        "x".repeat(VALUE_BYTES)
    );
    let request = CreateRequest {
        key: Some(key("ConfigMap", "default", &name)),
        json: json.into(),
        request_id: request_id(),
        dry_run: false,
    };
    connection.chan().create(request).await.map(drop).map_err(|e| e.message().to_owned())
}
