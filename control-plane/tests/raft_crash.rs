//! Real processes, SIGKILLed at random under write load: every acknowledged write is found
//! again, at the revision it was acknowledged with, on every member.
//!
//! The members are this very test program, started again with `TRELLIS_RAFT_MEMBER` set; they
//! take orders on stdin and tell on stdout. What was printed before a kill stays in the pipe.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod raft_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use raft_support::{NoHooks, PlainDialer, put};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::transport::Server;
use trellis_control_plane::raft::disk::RealDisk;
use trellis_control_plane::raft::{Consensus, Member, Options, Tuning, start};
use trellis_control_plane::store::Store;

const MEMBER: &str = "TRELLIS_RAFT_MEMBER";
const KILLS: usize = 50;
const WRITERS: usize = 3;

// ---- the member process --------------------------------------------------------------------

/// Not a test: what a member process runs. Without its variable it does nothing.
#[test]
fn member_process() {
    let Ok(spec) = std::env::var(MEMBER) else { return };
    let mut parts = spec.splitn(4, ' ');
    let id: u64 = parts.next().unwrap().parse().unwrap();
    let address: SocketAddr = parts.next().unwrap().parse().unwrap();
    let life = parts.next().unwrap().to_string();
    let dir = PathBuf::from(parts.next().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(member(id, address, life, dir));
    // Without unwinding or waiting for anything: the parent is gone or done.
    std::process::exit(0);
}

async fn member(id: u64, address: SocketAddr, life: String, dir: PathBuf) {
    let options = Options {
        id,
        cluster_name: "crash".into(),
        data_dir: dir,
        disk: Arc::new(RealDisk),
        dialer: Arc::new(PlainDialer::default()),
        hooks: Arc::new(NoHooks),
        tuning: Tuning {
            snapshot_entries: 500,
            keep_entries: 50,
            segment_bytes: 32 * 1024,
            cache_bytes: 16 * 1024,
            deadline: Duration::from_secs(20),
            ..Tuning::default()
        },
    };
    let (consensus, services) = start(options, Store::default()).await.unwrap();
    tokio::spawn(async move {
        let served = Server::builder().add_service(services.raft).add_service(services.leader).serve(address).await;
        println!("\nserver ended: {served:?}");
    });
    println!("\nready");
    let (tell, mut told) = tokio::sync::mpsc::channel::<String>(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = told.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["bootstrap"] => {
                let done = consensus.bootstrap(named(id, &address.to_string())).await;
                println!("\ndone {done:?}");
            }
            ["add", other, at] => {
                let done = consensus.add_member(named(other.parse().unwrap(), at)).await;
                println!("\ndone {done:?}");
            }
            ["load"] => {
                for w in 0..WRITERS {
                    tokio::spawn(write(consensus.clone(), format!("{id}-{life}-{w}")));
                }
            }
            ["dump"] => dump(&consensus).await,
            _ => println!("\nwhat? {line}"),
        }
    }
}

fn named(id: u64, address: &str) -> Member {
    Member { id, name: format!("n{id}"), api_address: "none".into(), peer_address: address.into() }
}

async fn write(consensus: Consensus, writer: String) {
    for n in 0.. {
        let name = format!("{writer}-{n}");
        let command = put(&name, "some text to have something to tear").with_request_id(&name);
        // A write whose outcome is unknown is no acknowledged one.
        if let Ok(outcome) = consensus.propose(command).await {
            println!("ack {name} {}", outcome.done().unwrap()[0]);
        }
    }
}

async fn dump(consensus: &Consensus) {
    while let Err(e) = consensus.read_barrier().await {
        println!("\nnot yet: {e}");
    }
    for object in &consensus.store().list_kinds(&["ConfigMap"]).0[0] {
        println!("object {} {}", object.key.name, object.revision);
    }
    println!("\nend");
}

// ---- the test ------------------------------------------------------------------------------

struct Running {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Acks = Arc<Mutex<Vec<(String, u64)>>>;

fn spawn(id: u64, address: SocketAddr, life: usize, dir: &std::path::Path, acks: &Acks) -> Running {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "member_process", "--nocapture", "--test-threads=1"])
        .env(MEMBER, format!("{id} {address} {life} {}", dir.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let orders = child.stdin.take().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (tell, lines) = mpsc::sync_channel(1_000_000);
    let acks = acks.clone();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            match line.strip_prefix("ack ").and_then(|a| a.split_once(' ')) {
                Some((name, revision)) => acks.lock().unwrap().push((name.into(), revision.parse().unwrap())),
                None if line.is_empty() => {}
                None => drop(tell.send(line)),
            }
        }
    });
    Running { child, orders, lines }
}

impl Running {
    fn order(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap();
        self.orders.flush().unwrap();
    }

    fn expect(&self, what: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|e| panic!("no {what:?}: {e}"));
            if line.starts_with(what) {
                return line;
            }
        }
    }
}

#[test]
fn fifty_kills_lose_no_acknowledged_write() {
    if std::env::var(MEMBER).is_ok() {
        return;
    }
    let dirs = Kept(Some(tempfile::TempDir::new().unwrap()));
    let dir = |id: u64| dirs.0.as_ref().unwrap().path().join(id.to_string());
    // Loopback addresses of our own and a port that no outgoing connection is given: they are
    // still free when a killed member comes back.
    let run = std::process::id().to_le_bytes();
    let address = |id: u64| SocketAddr::from(([127, 64 + run[2] % 64, run[1], run[0]], 2_379 + id as u16));
    let addresses: BTreeMap<u64, SocketAddr> = (1..=3).map(|id| (id, address(id))).collect();
    let acks: Acks = Arc::default();
    let mut rng = StdRng::seed_from_u64(7);
    let mut members: BTreeMap<u64, Running> =
        (1..=3).map(|id| (id, spawn(id, addresses[&id], 0, &dir(id), &acks))).collect();
    members[&1].expect("ready");
    members.get_mut(&1).unwrap().order("bootstrap");
    assert_eq!(members[&1].expect("done"), "done Ok(())");
    for id in [2, 3] {
        members[&id].expect("ready");
        members.get_mut(&1).unwrap().order(&format!("add {id} {}", addresses[&id]));
        assert_eq!(members[&1].expect("done"), "done Ok(())");
    }
    members.values_mut().for_each(|m| m.order("load"));
    let mut kills = 0;
    let mut life = 0;
    while kills < KILLS {
        progress(&acks, 100);
        std::thread::sleep(Duration::from_millis(rng.random_range(0..150)));
        let victims: Vec<u64> = match rng.random_range(0..5) {
            0 => vec![1, 2, 3],
            1 => vec![1 + kills as u64 % 3, 1 + (kills as u64 + 1) % 3],
            _ => vec![rng.random_range(1..=3)],
        };
        for id in &victims {
            // SIGKILL.
            members.remove(id);
            kills += 1;
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..200)));
        life += 1;
        for id in victims {
            let mut member = spawn(id, addresses[&id], life, &dir(id), &acks);
            member.order("load");
            members.insert(id, member);
        }
    }
    progress(&acks, 100);
    // Once more all at once, so that what is read comes from disk.
    members.clear();
    let acknowledged = acks.lock().unwrap().clone();
    let mut found: Vec<BTreeMap<String, u64>> = Vec::new();
    for id in 1..=3 {
        members.insert(id, spawn(id, addresses[&id], life + 1, &dir(id), &acks));
    }
    for member in members.values_mut() {
        member.order("dump");
        let mut objects = BTreeMap::new();
        loop {
            let line = member.lines.recv_timeout(Duration::from_secs(60)).expect("the dump goes on");
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["object", name, revision] => drop(objects.insert(name.to_string(), revision.parse().unwrap())),
                ["end"] => break,
                _ => {}
            }
        }
        found.push(objects);
    }
    for (id, objects) in (1..=3).zip(&found) {
        let differs = |(name, revision): &(&String, &u64)| found[0].get(*name) != Some(*revision);
        let other: Vec<_> = objects.iter().filter(differs).take(5).collect();
        assert!(
            objects.len() == found[0].len() && other.is_empty(),
            "member {id} has {} objects, member 1 {}; differing: {other:?}",
            objects.len(),
            found[0].len()
        );
    }
    let lost: Vec<_> = acknowledged.iter().filter(|(name, revision)| found[0].get(name) != Some(revision)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {:?}", lost.len(), acknowledged.len(), &lost[..lost.len().min(5)]);
    in_order(&acknowledged);
    let revisions: BTreeSet<u64> = found[0].values().copied().collect();
    assert_eq!(revisions.len(), found[0].len(), "no revision was given twice");
    eprintln!("{kills} kills, {} acknowledged writes, {} in all, none lost", acknowledged.len(), found[0].len());
}

/// Leaves the members' folders for whoever must find out why it failed.
struct Kept(Option<tempfile::TempDir>);

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the members' folders are kept in {}", self.0.take().unwrap().keep().display());
        }
    }
}

/// One writer's acknowledgements must have growing revisions.
fn in_order(acknowledged: &[(String, u64)]) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, revision) in acknowledged {
        let (writer, _) = name.rsplit_once('-').unwrap();
        let before = last.insert(writer, *revision).unwrap_or(0);
        assert!(before < *revision, "{name}: {revision} after {before}");
    }
}

/// Waits until so many more writes are acknowledged.
fn progress(acks: &Acks, more: usize) {
    let goal = acks.lock().unwrap().len() + more;
    let deadline = Instant::now() + Duration::from_secs(60);
    while acks.lock().unwrap().len() < goal {
        assert!(Instant::now() < deadline, "the cluster does not come back to writing");
        std::thread::sleep(Duration::from_millis(5));
    }
}
