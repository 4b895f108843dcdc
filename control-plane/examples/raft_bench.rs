//! How fast three members write and read: `cargo run --release --example raft_bench [seconds]`.
//!
//! All three run in this process, over real gRPC on loopback, each with its own log and its own
//! fsyncs on the disk of the temporary folder. Values are 256 bytes.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/raft_support/mod.rs"]
mod raft_support;

use std::time::{Duration, Instant};

use raft_support::{Cluster, put};
use trellis_control_plane::raft::{Consensus, Tuning};

/// CPU time of this process so far, in seconds: on a busy machine it tells more than the rate.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // utime and stime, in ticks of 10 ms.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

async fn measure(what: &str, on: &[Consensus], writers: usize, length: Duration, write: bool) {
    let started = Instant::now();
    let cpu_before = cpu();
    let mut tasks = Vec::new();
    for w in 0..writers {
        let consensus = on[w % on.len()].clone();
        let value = "x".repeat(200);
        tasks.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while started.elapsed() < length {
                let began = Instant::now();
                if write {
                    let command = put(&format!("w{w}-{}", took.len() % 100), &format!("{value}{}", took.len()));
                    consensus.propose(command).await.unwrap();
                } else {
                    consensus.read_barrier().await.unwrap();
                }
                took.push(began.elapsed());
            }
            took
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    let elapsed = started.elapsed().as_secs_f64();
    all.sort();
    let at = |q: f64| all[((all.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    println!(
        "{what:<24} {writers:>4} tasks {:>9.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms  max {:>7.1} ms  cpu {:>6.1} us each",
        all.len() as f64 / elapsed,
        at(0.5),
        at(0.99),
        at(1.0),
        (cpu() - cpu_before) * 1e6 / all.len() as f64
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let seconds: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(5);
        let length = Duration::from_secs(seconds);
        let cluster = Cluster::new(3, Tuning::default()).await;
        let leader = cluster.leader(&[1, 2, 3]).await;
        let at_leader = [cluster.node(leader).clone()];
        let everywhere: Vec<Consensus> = (1..=3).map(|id| cluster.node(id).clone()).collect();
        for writers in [1, 64, 256] {
            measure("write at the leader", &at_leader, writers, length, true).await;
        }
        for writers in [1, 64] {
            measure("write at all members", &everywhere, writers, length, true).await;
        }
        for readers in [1, 64] {
            measure("read barrier, leader", &at_leader, readers, length / 2, false).await;
        }
        measure("read barrier, all", &everywhere, 64, length / 2, false).await;
        println!("{:?}", cluster.node(leader).stats());
    });
}
