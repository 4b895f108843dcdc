//! The real binary on two nodes without a control plane: sockets, descriptors, gossip over UDP.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::{NODES, Netns, cannot_run, eventually, namespace_object, node_object, pod_object};
use tonic::transport::{Channel, Endpoint};
use trellis_netd::cluster::{Cluster, Kind};
use trellis_netd::store::Store;
use trellis_proto::netd::membership_client::MembershipClient;
use trellis_proto::netd::pod_network_client::PodNetworkClient;
use trellis_proto::netd::{AttachRequest, DetachRequest, Liveness, MembershipView, StatusRequest, WatchRequest};

struct Daemon {
    netns: Netns,
    folder: tempfile::TempDir,
    name: &'static str,
    child: Option<Child>,
}

impl Daemon {
    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn start(&mut self) {
        let folder = self.folder.path().to_owned();
        let child = self.netns.run(move || {
            Command::new(env!("CARGO_BIN_EXE_trellis-netd"))
                .arg("--config-dir")
                .arg(folder.join("etc"))
                .arg("--data-dir")
                .arg(folder.join("data"))
                .arg("--run-dir")
                .arg(folder.join("run"))
                .env("RUST_LOG", "info")
                .spawn()
                .unwrap()
        });
        self.child = Some(child);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    fn stop(&mut self, signal: Signal) -> std::process::ExitStatus {
        self.signal(signal);
        self.child.take().unwrap().wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Two machines on one network, each with configuration, the cluster's last known state, a daemon.
fn two() -> [Daemon; 2] {
    let mut daemons = NODES.map(|(name, _, _)| Daemon {
        netns: Netns::new(),
        folder: tempfile::tempdir().unwrap(),
        name,
        child: None,
    });
    let other = daemons[1].netns.fd();
    daemons[0].netns.rtnl(move |rtnl| {
        rtnl.add_veth("eth0", [2, 0, 0, 0, 0, 1], "eth0", [2, 0, 0, 0, 0, 2], other.as_fd(), 1500).unwrap();
    });
    let members: Vec<_> = NODES
        .iter()
        .enumerate()
        .map(|(id, (name, ip, _))| {
            json!({"id": id + 1, "name": name, "api_address": format!("{ip}:6443"), "peer_address": format!("{ip}:2380")})
        })
        .collect();
    for (daemon, (name, ip, _)) in daemons.iter().zip(NODES) {
        let network = format!("{ip}/24").parse().unwrap();
        daemon.netns.rtnl(move |rtnl| {
            let index = rtnl.link("eth0").unwrap().unwrap().index;
            rtnl.add_address(index, network).unwrap();
            rtnl.set_link(index, true, None, None).unwrap();
        });
        let etc = daemon.folder.path().join("etc");
        std::fs::create_dir_all(etc.join("keys")).unwrap();
        std::fs::write(etc.join("keys/gossip"), "0b".repeat(32)).unwrap();
        let node = json!({"version": 1, "node_name": name, "cluster_name": "c", "advertise_address": ip,
            "members": members, "roles": ["control-plane", "worker"]});
        std::fs::write(etc.join("node.json"), node.to_string()).unwrap();
        let mut cluster = Cluster::default();
        let nodes: Vec<_> = NODES.iter().map(|(n, ip, cidr)| node_object(n, ip, cidr)).collect();
        cluster.reset(Kind::Node, 5, &nodes);
        cluster.reset(Kind::Namespace, 5, &[namespace_object("default")]);
        cluster.reset(Kind::NetworkPolicy, 5, &[]);
        cluster.reset(Kind::Pod, 5, &[pod_object(&format!("pod-of-{name}"), "default", json!({}), None)]);
        Store::open(&daemon.folder.path().join("data")).unwrap().save_cluster(&cluster).unwrap();
    }
    for daemon in &mut daemons {
        daemon.start();
    }
    daemons
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn dial(path: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The view as a newcomer gets it now.
fn view(daemon: &Daemon) -> MembershipView {
    runtime().block_on(async {
        let channel = dial(&daemon.run_dir().join("netd-public/membership.sock")).await;
        let mut views = MembershipClient::new(channel).watch(WatchRequest {}).await.unwrap().into_inner();
        views.message().await.unwrap().unwrap()
    })
}

fn sees(daemon: &Daemon, node: &str) -> Option<Liveness> {
    view(daemon).members.iter().find(|member| member.node == node).map(|member| member.liveness())
}

/// What an agent does: one packet with the uid and two descriptors.
fn hand_over(daemon: &Daemon, uid: &str, descriptors: &[OwnedFd]) -> String {
    use nix::sys::socket::*;
    let path = daemon.run_dir().join("netd/handoff.sock");
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(uid.as_bytes())], control, MsgFlags::empty(), None).unwrap();
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

fn attach(daemon: &Daemon, uid: &str) -> Result<String, tonic::Status> {
    runtime().block_on(async {
        let channel = dial(&daemon.run_dir().join("netd/attach.sock")).await;
        let request = AttachRequest { pod_uid: uid.into(), namespace: "default".into(), pod: uid.into() };
        let reply = PodNetworkClient::new(channel).attach(request).await?.into_inner();
        Ok(reply.addresses.concat())
    })
}

#[test]
fn two_daemons_without_a_control_plane() {
    if cannot_run("two_daemons_without_a_control_plane") {
        return;
    }
    let mut daemons = two();
    eventually("both see both", Duration::from_secs(10), || {
        daemons.iter().all(|daemon| NODES.iter().all(|(name, _, _)| sees(daemon, name) == Some(Liveness::Alive)))
    });
    let api = &view(&daemons[0]).members[1].api_addresses;
    assert_eq!(api, &["172.30.0.12:6443"]);

    // Attaching through the real sockets, with wrong messages before the right one.
    let pods: Vec<_> = daemons
        .iter()
        .map(|daemon| {
            let uid = format!("pod-of-{}", daemon.name);
            let refused = attach(daemon, &uid).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
            let pod = Netns::new();
            assert!(hand_over(daemon, &uid, &[]).starts_with("error: 0 descriptors"));
            assert!(hand_over(daemon, &uid, &[pod.fd(), pod.fd()]).starts_with("error: the second"));
            assert_eq!(hand_over(daemon, &uid, &[pod.fd(), pod.route_socket()]), "ok");
            let address = attach(daemon, &uid).unwrap().parse().unwrap();
            pod.echo(80);
            (pod, address)
        })
        .collect();
    assert!(pods[0].0.reaches(pods[1].1, 80) && pods[1].0.reaches(pods[0].1, 80));

    // A paused observer declares nobody dead.
    daemons[0].signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(3));
    daemons[0].signal(Signal::SIGCONT);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_ne!(sees(&daemons[0], "n2"), Some(Liveness::Dead));
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("both see both again", Duration::from_secs(10), || {
        daemons.iter().all(|daemon| NODES.iter().all(|(name, _, _)| sees(daemon, name) == Some(Liveness::Alive)))
    });

    // SIGTERM is a clean end: what is known is stored, and the kernel's state stays; a restart is no
    // death.
    let file = daemons[1].folder.path().join("data/cluster.json");
    std::fs::remove_file(&file).unwrap();
    assert!(daemons[1].stop(Signal::SIGTERM).success());
    assert!(file.exists(), "what is known is stored at the end");
    let heard = Store::open(&daemons[1].folder.path().join("data")).unwrap().load_heard().unwrap();
    let of_n1 = heard.iter().find(|heard| heard.source.to_string() == "172.30.0.11:7946").unwrap();
    assert!(of_n1.counter > 0, "how far the others were heard as well: {heard:?}");
    assert!(pods[0].0.reaches(pods[1].1, 80));
    daemons[1].start();
    let status = runtime().block_on(async {
        let channel = dial(&daemons[1].run_dir().join("netd/attach.sock")).await;
        PodNetworkClient::new(channel).status(StatusRequest {}).await.unwrap().into_inner()
    });
    assert_eq!(status.pod_cidr, "10.244.2.0/24");
    assert_eq!((status.attached.len(), status.attached[0].netns_held), (1, false));
    eventually("back", Duration::from_secs(5), || sees(&daemons[0], "n2") == Some(Liveness::Alive));
    assert!(pods[0].0.reaches(pods[1].1, 80));

    // A kill is noticed, and traffic to the dead node's Pods is refused at once.
    daemons[1].stop(Signal::SIGKILL);
    let took = eventually("dead", Duration::from_secs(10), || sees(&daemons[0], "n2") == Some(Liveness::Dead));
    eprintln!("a killed node was known after {took:?}");
    eventually("no way", Duration::from_secs(5), || {
        pods[0].0.connect(pods[1].1, 80).is_err_and(|error| error.kind() == std::io::ErrorKind::HostUnreachable)
    });
    runtime().block_on(async {
        let channel = dial(&daemons[0].run_dir().join("netd/attach.sock")).await;
        let request = DetachRequest { pod_uid: "pod-of-n1".into() };
        PodNetworkClient::new(channel).detach(request).await.unwrap();
    });
    let links = daemons[0].netns.rtnl(|rtnl| rtnl.links().unwrap());
    assert!(!links.iter().any(|link| link.name.starts_with("trl")));
}
