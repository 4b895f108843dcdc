//! Nodes and Pods as network namespaces of this test's own.
//!
//! Each namespace belongs to a thread that serves closures sent to it; nothing is done in the
//! machine's own namespace. When the threads end, the kernel removes everything.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use trellis_netd::cluster::{Incoming, Kind};
use trellis_netd::engine::{Attachment, Config, Engine, EngineError, Event, Outputs, Status};
use trellis_netd::kernel::rtnl::Rtnl;
use trellis_netd::store::Store;

/// Prints why and answers true when root tests cannot run here.
pub fn cannot_run(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: needs root to make network namespaces");
        return true;
    }
    let tried = std::thread::spawn(|| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)).join();
    if !matches!(tried, Ok(Ok(()))) {
        eprintln!("SKIPPED: {test}: the kernel refuses a new network namespace");
        return true;
    }
    false
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it.
pub struct Netns {
    jobs: std_mpsc::SyncSender<Job>,
}

impl Netns {
    pub fn new() -> Self {
        let (jobs, queue) = std_mpsc::sync_channel::<Job>(64);
        let (ready, made) = std_mpsc::sync_channel(1);
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(()).unwrap();
            for job in queue {
                job();
            }
        });
        made.recv().unwrap();
        let netns = Self { jobs };
        netns.run(|| Rtnl::open().unwrap().set_link(1, true, None, None).unwrap());
        netns
    }

    /// Runs a closure on a thread inside (threads it spawns are inside as well).
    pub fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = std_mpsc::sync_channel(1);
        self.jobs
            .send(Box::new(move || {
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
                let _ = reply.send(done);
            }))
            .unwrap();
        match answer.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A descriptor of the namespace.
    pub fn fd(&self) -> OwnedFd {
        self.run(|| std::fs::File::open("/proc/thread-self/ns/net").unwrap().into())
    }

    /// An rtnetlink socket opened inside.
    pub fn route_socket(&self) -> OwnedFd {
        self.run(|| {
            use nix::sys::socket::*;
            use std::os::fd::AsRawFd;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .unwrap();
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
            fd
        })
    }

    /// A server that sends back what it gets; threads end with the listener's connections.
    pub fn echo(&self, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { continue };
                    std::thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(length) = stream.read(&mut buffer) {
                            if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        });
    }

    pub fn connect(&self, to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        self.run(move || {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), Duration::from_millis(700))?;
            stream.set_read_timeout(Some(Duration::from_millis(1500)))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Does a connection open and an echo come back?
    pub fn reaches(&self, to: Ipv4Addr, port: u16) -> bool {
        self.connect(to, port).is_ok_and(|mut stream| round_trip(&mut stream).is_ok())
    }

    pub fn rtnl<T: Send + 'static>(&self, act: impl FnOnce(&mut Rtnl) -> T + Send + 'static) -> T {
        self.run(move || act(&mut Rtnl::open().unwrap()))
    }
}

pub fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if condition() {
            return begin.elapsed();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not within {limit:?}: {what}");
}

/// A node: a namespace with an engine in it.
pub struct TestNode {
    pub netns: Netns,
    pub name: &'static str,
    pub address: Ipv4Addr,
    pub folder: tempfile::TempDir,
    pub running: Option<Running>,
}

pub struct Running {
    pub events: mpsc::Sender<Event>,
    pub outputs: Outputs,
    engine: std::thread::JoinHandle<()>,
}

/// Node names, underlay addresses, pod CIDRs.
pub const NODES: [(&str, &str, &str); 2] =
    [("n1", "172.30.0.11", "10.244.1.0/24"), ("n2", "172.30.0.12", "10.244.2.0/24")];

impl TestNode {
    /// Two nodes joined by a veth pair as their underlay, with running engines.
    pub fn two() -> (Self, Self) {
        let [mut a, mut b] = NODES.map(|(name, address, _)| Self {
            netns: Netns::new(),
            name,
            address: address.parse().unwrap(),
            folder: tempfile::tempdir().unwrap(),
            running: None,
        });
        let other = b.netns.fd();
        a.netns.rtnl(move |rtnl| {
            use std::os::fd::AsFd;
            rtnl.add_veth("eth0", [2, 0, 0, 0, 0, 1], "eth0", [2, 0, 0, 0, 0, 2], other.as_fd(), 1500).unwrap();
        });
        for node in [&a, &b] {
            let network = format!("{}/24", node.address).parse().unwrap();
            node.netns.rtnl(move |rtnl| {
                let index = rtnl.link("eth0").unwrap().unwrap().index;
                rtnl.add_address(index, network).unwrap();
                rtnl.set_link(index, true, None, None).unwrap();
            });
        }
        for node in [&a, &b] {
            let up = || node.netns.rtnl(|rtnl| rtnl.link("eth0").unwrap().unwrap().operational);
            eventually("the underlay's link", Duration::from_secs(3), up);
        }
        for node in [&mut a, &mut b] {
            node.start();
            node.list(Kind::Node, NODES.iter().map(|(n, ip, cidr)| node_object(n, ip, cidr)).collect());
            node.list(Kind::Namespace, vec![namespace_object("default"), namespace_object("other")]);
            node.list(Kind::NetworkPolicy, vec![]);
            node.list(Kind::Pod, vec![]);
        }
        (a, b)
    }

    pub fn start(&mut self) {
        let store = Store::open(self.folder.path()).unwrap();
        let config = Config { node_name: self.name.into(), advertise: self.address };
        let (send, events) = std_mpsc::sync_channel(1);
        let (out, outputs) = std_mpsc::sync_channel(1);
        let (handle_out, handle) = std_mpsc::sync_channel(1);
        self.netns.run(move || {
            let (sender, queue) = mpsc::channel(1024);
            let (engine, outputs) = Engine::start(config, store).unwrap();
            trellis_netd::drift::watch(&sender).unwrap();
            send.send(sender).unwrap();
            out.send(outputs).unwrap();
            handle_out.send(std::thread::spawn(move || engine.run(queue))).unwrap();
        });
        let events: mpsc::Sender<Event> = events.recv().unwrap();
        let ticks = events.downgrade();
        std::thread::spawn(move || {
            while let Some(events) = ticks.upgrade() {
                if events.blocking_send(Event::Tick).is_err() {
                    return;
                }
                drop(events);
                std::thread::sleep(trellis_netd::engine::TICK_PERIOD);
            }
        });
        self.running = Some(Running { events, outputs: outputs.recv().unwrap(), engine: handle.recv().unwrap() });
    }

    /// netd is told to end: the engine keeps what it knows, the kernel's state stays.
    pub fn stop(&mut self) {
        self.send(Event::Stop);
        self.die();
    }

    /// netd dies: nothing is written any more, the kernel's state stays.
    pub fn die(&mut self) {
        let running = self.running.take().unwrap();
        drop(running.events);
        running.engine.join().unwrap();
    }

    pub fn send(&self, event: Event) {
        self.running.as_ref().unwrap().events.blocking_send(event).unwrap();
    }

    pub fn list(&self, kind: Kind, objects: Vec<Incoming>) {
        self.send(Event::Listed { revision: 1, objects: [(kind, objects)].into() });
    }

    pub fn change(&self, kind: Kind, revision: u64, object: Incoming) {
        self.send(Event::Changed { kind, revision, object });
    }

    pub fn remove(&self, kind: Kind, revision: u64, object: Incoming) {
        self.send(Event::Removed { kind, revision, object });
    }

    /// Waits until everything up to the revision is in the kernel.
    pub fn settled(&self, revision: u64) {
        let applied = self.running.as_ref().unwrap().outputs.applied.clone();
        eventually("applied", Duration::from_secs(10), || *applied.borrow() >= revision);
    }

    pub fn status(&self) -> Status {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Status { reply });
        answer.blocking_recv().unwrap()
    }

    pub fn hand_over(&self, uid: &str, pod: &Netns) {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Handoff { uid: uid.into(), netns: pod.fd(), socket: pod.route_socket(), reply });
        answer.blocking_recv().unwrap();
    }

    pub fn try_attach(&self, uid: &str) -> Result<Attachment, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Attach { uid: uid.into(), reply });
        answer.blocking_recv().unwrap()
    }

    pub fn detach(&self, uid: &str) {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Detach { uid: uid.into(), reply });
        answer.blocking_recv().unwrap().unwrap();
    }

    /// A new Pod, attached; the API shows it to this node only.
    pub fn attach(&self, uid: &str, labels: serde_json::Value) -> (Netns, Ipv4Addr) {
        self.change(Kind::Pod, 2, pod_object(uid, "default", labels, None));
        let pod = Netns::new();
        self.hand_over(uid, &pod);
        let attachment = self.try_attach(uid).unwrap();
        (pod, attachment.address)
    }
}

fn object(namespace: &str, name: &str, json: &serde_json::Value) -> Incoming {
    Incoming { namespace: namespace.into(), name: name.into(), json: serde_json::to_vec(json).unwrap() }
}

pub fn node_object(name: &str, ip: &str, cidr: &str) -> Incoming {
    object(
        "",
        name,
        &json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }),
    )
}

pub fn namespace_object(name: &str) -> Incoming {
    object(
        "",
        name,
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name, "labels": {"kubernetes.io/metadata.name": name}}}),
    )
}

pub fn pod_object(uid: &str, namespace: &str, labels: serde_json::Value, ip: Option<Ipv4Addr>) -> Incoming {
    let status = match ip {
        Some(ip) => json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}),
        None => json!({"phase": "Pending"}),
    };
    object(
        namespace,
        uid,
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": uid, "namespace": namespace, "uid": uid, "labels": labels},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
            "status": status,
        }),
    )
}

pub fn policy_object(name: &str, spec: serde_json::Value) -> Incoming {
    object(
        "default",
        name,
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }),
    )
}
