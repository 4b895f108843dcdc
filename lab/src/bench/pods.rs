//! Pods as objects: how many a second the whole API path takes; and what the groups that run Pods
//! share.

use std::{
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
    report::{Aim, Figure},
    writes::connections,
};
use crate::{
    Error, Result,
    cluster::{Api, api::key},
    wait, workload,
};

const LENGTH: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
const CONNECTIONS: usize = 6;
const REMOVED_AT_ONCE: usize = 64;

/// kube-apiserver 1.36 on one etcd, measured on a machine of this size: Pods a second.
const KUBE_APISERVER: [(usize, f64); 2] = [(16, 967.0), (64, 1128.0)];

pub(super) fn creates(bench: &mut Bench<'_>) -> Result<()> {
    let runtime = load::runtime()?;
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
                    connection.chan().create(request).await.map(drop).map_err(|e| e.message().to_owned())
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
    match connection.chan().delete(request).await {
        Err(status) if status.code() != Code::NotFound => Err(status.message().to_owned()),
        _ => Ok(()),
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
