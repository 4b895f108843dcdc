//! Drives creates against a cluster that runs already, and tells what each cost: writes a second,
//! latencies, and processor time a write of every process concerned, which, other than the rate,
//! says the same on a busy machine.
//! `cargo run --release --example load CONTEXT-FILE [writes|pods] [clients] [seconds] [connections]`
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trellis_proto::api::{CreateRequest, ObjectKey};
use trellis_proto::client::{ClusterContext, Connection, Contexts, request_id};

/// User and system time in ticks of 10 ms, by process.
fn ticks() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().into_string().unwrap().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (head, tail) = stat.rsplit_once(')').unwrap();
        let name = head.split_once('(').unwrap().1;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let sum = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let wanted = name.starts_with("trellis") || name == "load" || name.starts_with("jbd2");
        if wanted || pid == std::process::id() {
            all.insert(format!("{name} {pid}"), sum);
        }
    }
    all
}

fn json(kind: &str, name: &str) -> String {
    if kind == "ConfigMap" {
        let value = "x".repeat(256);
        return format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"default"}},"data":{{"v":"{value}"}}}}"#
        );
    }
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"default","labels":{{"app":"bench"}}}},"spec":{{"nodeSelector":{{"bench.trellis/none":"x"}},"terminationGracePeriodSeconds":0,"containers":[{{"name":"web","image":"localhost/demo:1","imagePullPolicy":"IfNotPresent"}}]}}}}"#
    )
}

async fn create(connection: &Connection, kind: &str, name: String) {
    let key = ObjectKey { group: String::new(), kind: kind.into(), namespace: "default".into(), name: name.clone() };
    let json = json(kind, &name).into();
    let request = CreateRequest { key: Some(key), json, request_id: request_id(), dry_run: false };
    connection.chan().create(request).await.unwrap();
}

fn connections(path: &str, count: usize) -> Vec<Connection> {
    let path = std::path::Path::new(path);
    let contexts = Contexts::load(path).unwrap();
    let context: &ClusterContext = contexts.pick(None, path).unwrap().1;
    let rotated = |i: usize| {
        let mut context = context.clone();
        let members = context.endpoints.len();
        context.endpoints.rotate_left(i % members);
        context.connect("load").unwrap()
    };
    (0..count).map(rotated).collect()
}

#[tokio::main]
async fn main() {
    let arg = |i: usize, or: &str| std::env::args().nth(i).unwrap_or_else(|| or.into());
    let number = |i: usize, or: &str| arg(i, or).parse::<usize>().unwrap();
    let (clients, seconds, count) = (number(3, "64"), number(4, "5"), number(5, "6"));
    let kind: &'static str = if arg(2, "writes") == "pods" { "Pod" } else { "ConfigMap" };
    let pool = connections(&arg(1, ""), count);
    let run = uuid_prefix();
    let serial = Arc::new(AtomicU64::new(0));
    let (started, before) = (Instant::now(), ticks());
    let until = started + Duration::from_secs(seconds as u64);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (connection, serial, run) = (pool[client % count].clone(), serial.clone(), run.clone());
            tokio::spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    create(&connection, kind, format!("{run}-{}", serial.fetch_add(1, Ordering::Relaxed))).await;
                    took.push(began.elapsed());
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    let (n, seconds) = (took.len().max(1), started.elapsed().as_secs_f64());
    took.sort();
    let at = |p: usize| took[(n - 1) * p / 100].as_secs_f64() * 1e3;
    println!("{kind} {clients} clients: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms", n as f64 / seconds, at(50), at(99));
    let mut sum = 0;
    for (process, now) in ticks() {
        let spent = (now - before.get(&process).copied().unwrap_or(0)) * 10_000;
        sum += spent;
        if spent as usize > n {
            println!("  {process:28} {:6.1} µs a write", spent as f64 / n as f64);
        }
    }
    println!("  {:28} {:6.1} µs a write", "all", sum as f64 / n as f64);
}

fn uuid_prefix() -> String {
    format!("l{}", &request_id()[..8])
}
