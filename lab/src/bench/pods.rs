//! Pods: how many objects a second the whole API path takes, and how long from `create` to the
//! first packet answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tonic::Code;
use trellis_proto::{
    api::{CreateRequest, DeleteRequest},
    client::{Connection, request_id},
};

use super::{
    Bench, load,
    report::{Aim, Figure, percentile},
    writes::connections,
};
use crate::{
    Error, Result,
    backend::Backend,
    cluster::{Api, api::key},
    wait, workload,
};

const LENGTH: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
const CONNECTIONS: usize = 6;
const REMOVED_AT_ONCE: usize = 64;
/// Pods started one after another.
const SINGLE_STARTS: usize = 20;
/// Pods started at once.
const AT_ONCE: usize = 30;
const START_LIMIT: Duration = Duration::from_secs(60);

/// kube-apiserver 1.36 on one etcd, measured on a machine of this size: Pods a second.
const KUBE_APISERVER: [(usize, f64); 2] = [(16, 967.0), (64, 1128.0)];

pub(super) fn creates(bench: &mut Bench<'_>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::io("start a runtime"))?;
    let connections = connections(bench, CONNECTIONS)?;
    let serial = Arc::new(AtomicU64::new(0));
    for (clients, kube) in KUBE_APISERVER {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let (connections, serial) = (connections.clone(), Arc::clone(&serial));
            let load = runtime.block_on(load::run(clients, LENGTH, move |client, _| {
                let connection = connections[client % CONNECTIONS].clone();
                let name = format!("idle{}", serial.fetch_add(1, Ordering::Relaxed));
                async move {
                    // A selector that no node has: stored, judged unschedulable, not run.
                    let pod = pod(&name, &json!({ "bench.trellis/none": "x" }));
                    let request = CreateRequest {
                        key: Some(key("Pod", "default", &name)),
                        json: pod.to_string().into(),
                        request_id: request_id(),
                        dry_run: false,
                    };
                    connection.resources().create(request).await.map(drop).map_err(|e| e.message().to_owned())
                }
            }))?;
            rates.push(load.per_second);
        }
        let name = format!("Pod creates, {clients} clients");
        let peer = "kube-apiserver 1.36, recorded";
        bench.report.add(Figure::beside(name, "/s", rates, peer, vec![kube], Aim::RatioAtLeast(5000.0 / kube)));
    }
    // Too many to be removed one after the other.
    let all = serial.load(Ordering::Relaxed);
    let remove = |n: u64| delete(connections[n as usize % CONNECTIONS].clone(), format!("idle{n}"));
    runtime.block_on(load::each(0..all, REMOVED_AT_ONCE, remove))?;
    remove_all(bench.api)
}

async fn delete(connection: Connection, name: String) -> std::result::Result<(), String> {
    let request = DeleteRequest {
        key: Some(key("Pod", "default", &name)),
        grace_period_seconds: Some(0),
        request_id: request_id(),
        ..DeleteRequest::default()
    };
    match connection.resources().delete(request).await {
        Err(status) if status.code() != Code::NotFound => Err(status.message().to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn start(bench: &mut Bench<'_>) -> Result<()> {
    workload::provide(bench.lab.layout(), bench.lab.bin_dir())?;
    let from = bench.lab.topology().nodes[0].name.clone();
    let mut singles = Vec::new();
    for i in 0..SINGLE_STARTS {
        bench.progress.now(&format!("Pod {} of {SINGLE_STARTS}", i + 1));
        singles.push(answered(bench, &from, &format!("one{i}"))?);
    }
    remove_all(bench.api)?;
    let begin = Instant::now();
    let names: Vec<String> = (0..AT_ONCE).map(|i| format!("many{i}")).collect();
    for name in &names {
        bench.api.apply(&pod(name, &json!({})))?;
    }
    wait::until("all Pods Running", START_LIMIT, || {
        let pods = bench.api.list("Pod", "default", "app=bench").map_err(|e| e.to_string())?;
        let running = pods.iter().filter(|p| p["status"]["phase"] == "Running").count();
        if running == AT_ONCE { Ok(()) } else { Err(format!("{running} of {AT_ONCE} are Running")) }
    })?;
    let many = begin.elapsed().as_secs_f64();
    let peer = "kubelet with containerd, recorded";
    let of = |share| vec![percentile(&singles, share)];
    let report = &mut *bench.report;
    report.add(Figure::beside("Pod create to first answer, p50", "ms", of(0.5), peer, vec![480.0], Aim::AtMost(100.0)));
    report.add(Figure::limit("Pod create to first answer, p99", "ms", of(0.99), Aim::AtMost(400.0)));
    report.add(Figure::beside("30 Pods at once, all Running", "s", vec![many], peer, vec![4.0], Aim::AtMost(1.0)));
    remove_all(bench.api)
}

/// Milliseconds from sending `create` to the first answer over HTTP from another node.
fn answered(bench: &Bench<'_>, from: &str, name: &str) -> Result<f64> {
    let begin = Instant::now();
    bench.api.apply(&pod(name, &json!({})))?;
    let address = wait::until(&format!("Pod {name} has an address"), START_LIMIT, || {
        let pod = bench.api.get("Pod", "default", name).map_err(|e| e.to_string())?.unwrap_or_default();
        let running = pod["status"]["phase"] == "Running";
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
        ip.filter(|_| running).ok_or_else(|| format!("phase {}", pod["status"]["phase"]))
    })?;
    let address = SocketAddr::new(address, workload::web::PORT);
    loop {
        if bench.lab.http_get(from, address, "/", Duration::from_secs(1)).is_ok() {
            return Ok(begin.elapsed().as_secs_f64() * 1e3);
        }
        if begin.elapsed() > START_LIMIT {
            return Err(Error::Format { what: format!("Pod {name}"), why: "it never answered".to_owned() });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn pod(name: &str, node_selector: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": "bench" } },
        "spec": {
            "nodeSelector": node_selector,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "web", "image": workload::web::IMAGE, "imagePullPolicy": "IfNotPresent" }],
        },
    })
}

/// Deletes the bench's Pods and waits until they are gone.
pub(super) fn remove_all(api: &Api) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let pods = api.list("Pod", "default", "app=bench")?;
        if pods.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let why = format!("{} Pods are left after 300 s", pods.len());
            return Err(Error::Format { what: "removing the bench's Pods".to_owned(), why });
        }
        for pod in &pods {
            if pod["metadata"]["deletionTimestamp"].is_null() {
                api.delete("Pod", "default", pod["metadata"]["name"].as_str().unwrap_or_default(), Some(0))?;
            }
        }
        thread::sleep(wait::PERIOD);
    }
}
