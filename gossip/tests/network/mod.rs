//! A simulated network under a virtual clock: latency, loss, partitions, pauses, deaths.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use trellis_gossip::{Config, Effect, Gossip, GossipKey, Liveness, NodeIdentity};

pub const KEY: [u8; 32] = [42; 32];
/// A socket buffer's worth of packets; the kernel's default 212,992 bytes hold about this many.
const SOCKET_BUFFER: usize = 250;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([172, 30, (n / 250) as u8, (n % 250 + 1) as u8], 7946))
}

pub fn identity(n: usize, epoch: u64) -> NodeIdentity {
    NodeIdentity {
        name: format!("n{n}"),
        address: address(n),
        pod_cidr: Some(format!("10.244.{}.0/24", n % 256).parse().unwrap()),
        version: "0.1.0".into(),
        epoch,
        api_addresses: Vec::new(),
    }
}

enum Event {
    Packet { to: usize, from: SocketAddr, bytes: Vec<u8> },
    Timer { node: usize, instance: u64, at: Duration },
}

pub struct Node {
    pub machine: Gossip,
    instance: u64,
    timer: Duration,
    paused: bool,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// (when, observer, subject, liveness): every change of every view.
pub type Verdict = (Duration, usize, String, Liveness);

pub struct Network {
    pub now: Duration,
    pub nodes: Vec<Option<Node>>,
    pub loss: f64,
    pub verdicts: Vec<Verdict>,
    pub packets: u64,
    pub largest_packet: usize,
    events: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    /// Nodes with different numbers do not hear each other.
    island: Vec<u32>,
    rng: StdRng,
    last_views: Vec<BTreeMap<String, Liveness>>,
    /// Every packet sent, when recording.
    pub recorded: Option<Vec<(usize, SocketAddr, Vec<u8>)>>,
}

impl Network {
    pub fn new(size: usize, seed: u64) -> Self {
        let mut network = Self {
            now: ms(1000),
            nodes: (0..size).map(|_| None).collect(),
            loss: 0.0,
            verdicts: Vec::new(),
            packets: 0,
            largest_packet: 0,
            events: BTreeMap::new(),
            sequence: 0,
            island: vec![0; size],
            rng: StdRng::seed_from_u64(seed),
            last_views: vec![BTreeMap::new(); size],
            recorded: None,
        };
        for n in 0..size {
            network.start(n, 1000);
        }
        network
    }

    /// Starts node `n` with the first three nodes as seeds.
    pub fn start(&mut self, n: usize, epoch: u64) {
        let seed = self.rng.random();
        let machine = Gossip::new(identity(n, epoch), &GossipKey::new(KEY), Config::default(), seed, self.now).unwrap();
        self.nodes[n] =
            Some(Node { machine, instance: seed, timer: Duration::MAX, paused: false, inbox: VecDeque::new() });
        self.last_views[n].clear();
        let now = self.now;
        let seeds: Vec<_> = (0..3).map(address).collect();
        self.with(n, |machine| machine.announce(now, seeds));
    }

    /// The node is given a pod CIDR, and says so.
    pub fn update(&mut self, n: usize, cidr: &str) {
        let (now, cidr) = (self.now, cidr.parse().unwrap());
        self.with(n, |machine| machine.update_identity(now, Some(cidr), Vec::new()).unwrap());
    }

    pub fn kill(&mut self, n: usize) {
        self.nodes[n] = None;
    }

    pub fn pause(&mut self, n: usize) {
        self.nodes[n].as_mut().unwrap().paused = true;
    }

    /// The process goes on: what waits in its socket and its overdue timer come in either order.
    pub fn resume(&mut self, n: usize) {
        let node = self.nodes[n].as_mut().unwrap();
        node.paused = false;
        let inbox: Vec<_> = node.inbox.drain(..).collect();
        let now = self.now;
        let timer_first = self.rng.random_bool(0.5);
        if timer_first {
            self.with(n, |machine| machine.on_timer(now));
        }
        for (from, bytes) in inbox {
            self.with(n, |machine| machine.on_packet(now, from, &bytes));
        }
        self.with(n, |machine| machine.on_timer(now));
    }

    pub fn split(&mut self, island: u32, nodes: &[usize]) {
        for n in nodes {
            self.island[*n] = island;
        }
    }

    pub fn heal(&mut self) {
        self.island.fill(0);
    }

    pub fn machine(&self, n: usize) -> &Gossip {
        &self.nodes[n].as_ref().unwrap().machine
    }

    pub fn sees(&self, observer: usize, subject: usize) -> Option<Liveness> {
        self.machine(observer).view().member(&format!("n{subject}")).map(|m| m.liveness)
    }

    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].is_some())
    }

    /// Does every running node see every running node alive?
    pub fn all_alive(&self) -> bool {
        self.running()
            .all(|observer| self.running().all(|subject| self.sees(observer, subject) == Some(Liveness::Alive)))
    }

    pub fn all_see(&self, subject: usize, liveness: Liveness) -> bool {
        self.running().all(|n| n == subject || self.sees(n, subject) == Some(liveness))
    }

    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step_before(end) {}
        self.now = end;
    }

    /// Runs until the condition holds; answers how long it took, or None after `limit`.
    pub fn run_until(&mut self, limit: Duration, mut condition: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        while self.now < begin + limit {
            if condition(self) {
                return Some(self.now - begin);
            }
            self.run(ms(10));
        }
        None
    }

    pub fn deaths_since(&self, since: Duration) -> Vec<&Verdict> {
        self.verdicts.iter().filter(|v| v.0 >= since && v.3 == Liveness::Dead).collect()
    }

    pub fn deliver(&mut self, to: usize, from: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        self.with(to, |machine| machine.on_packet(now, from, bytes));
    }

    fn step_before(&mut self, end: Duration) -> bool {
        let Some(entry) = self.events.first_entry() else { return false };
        if entry.key().0 > end {
            return false;
        }
        self.now = entry.key().0;
        let now = self.now;
        match entry.remove() {
            Event::Packet { to, from, bytes } => {
                let Some(node) = self.nodes[to].as_mut() else { return true };
                if node.paused {
                    if node.inbox.len() < SOCKET_BUFFER {
                        node.inbox.push_back((from, bytes));
                    }
                } else {
                    self.with(to, |machine| machine.on_packet(now, from, &bytes));
                }
            }
            Event::Timer { node: n, instance, at } => {
                let due = self.nodes[n]
                    .as_ref()
                    .is_some_and(|node| node.instance == instance && node.timer == at && !node.paused);
                if due {
                    self.with(n, |machine| machine.on_timer(now));
                }
            }
        }
        true
    }

    fn with(&mut self, n: usize, act: impl FnOnce(&mut Gossip) -> Vec<Effect>) {
        let Some(node) = self.nodes[n].as_mut() else { return };
        for effect in act(&mut node.machine) {
            match effect {
                Effect::Send { to, packet } => self.send(n, to, packet),
                Effect::ViewChanged => self.note_view(n),
                Effect::SetTimer(at) => {
                    let node = self.nodes[n].as_mut().unwrap();
                    node.timer = at;
                    let instance = node.instance;
                    self.sequence += 1;
                    self.events.insert((at.max(self.now), self.sequence), Event::Timer { node: n, instance, at });
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Vec<u8>) {
        self.packets += 1;
        self.largest_packet = self.largest_packet.max(packet.len());
        let Some(to) = (0..self.nodes.len()).find(|n| address(*n) == to) else { return };
        if let Some(recorded) = &mut self.recorded {
            recorded.push((to, address(from), packet.clone()));
        }
        if self.island[from] != self.island[to] || self.rng.random_bool(self.loss) {
            return;
        }
        let at = self.now + Duration::from_micros(self.rng.random_range(200..5000));
        self.sequence += 1;
        let event = Event::Packet { to, from: address(from), bytes: packet };
        self.events.insert((at, self.sequence), event);
    }

    fn note_view(&mut self, n: usize) {
        let view = self.machine(n).view();
        for member in &view.members {
            let name = member.identity.name.clone();
            let before = self.last_views[n].insert(name.clone(), member.liveness);
            if before != Some(member.liveness) {
                self.verdicts.push((self.now, n, name, member.liveness));
            }
        }
    }
}
