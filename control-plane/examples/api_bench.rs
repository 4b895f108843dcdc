//! What the API costs: Pods created through gRPC and TLS by many clients at one member, client
//! and member in this process. Prints creates a second and processor time a create, which, other
//! than the former, says the same on a busy machine.
//! `cargo run --release --example api_bench [clients] [seconds] [connections]`
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/api/bed.rs"]
#[allow(dead_code)]
mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bed::{Bed, key, pod};
use trellis_proto::api;

/// User and system time of this process so far, in ticks of 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::main]
async fn main() {
    let arg = |i: usize, or: u64| std::env::args().nth(i).map_or(or, |a| a.parse().unwrap());
    let (clients, seconds, connections) = (arg(1, 64), arg(2, 5), arg(3, 8));
    let bed = Bed::start().await;
    let pool: Vec<_> = (0..connections).map(|_| bed.admin()).collect();
    let done = Arc::new(AtomicU64::new(0));
    let (started, before) = (Instant::now(), ticks());
    let until = started + Duration::from_secs(seconds);
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let mut api = pool[usize::try_from(client % connections).unwrap()].resources();
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let mut took = Vec::new();
                for i in 0.. {
                    let name = format!("p-{client}-{i}");
                    let request = api::CreateRequest {
                        key: key("", "Pod", "default", &name),
                        json: pod(&name).to_string().into(),
                        request_id: name,
                        dry_run: false,
                    };
                    let began = Instant::now();
                    if began >= until {
                        break;
                    }
                    api.create(request).await.unwrap();
                    took.push(began.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(task.await.unwrap());
    }
    took.sort();
    let n = done.load(Ordering::Relaxed).max(1);
    let cpu = (ticks() - before) * 10_000 / n;
    let at = |p: usize| took[(took.len() - 1) * p / 100];
    println!(
        "{clients} clients: {:.0} creates/s, {cpu} µs of processor a create (both sides), p50 {:?}, p99 {:?}",
        n as f64 / started.elapsed().as_secs_f64(),
        at(50),
        at(99)
    );
}
