//! A real agent and real shims on a node of their own (network namespace, folders, cgroup), with
//! a control plane and a netd made for tests. Everything goes when it is dropped.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]
pub mod control_plane;
pub mod netd;

use control_plane::FakeControlPlane;
use hyper_util::rt::TokioIo;
use netd::FakeNetd;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint, Uri};
use trellis_proto::{
    api::{ImportRequest, images_client::ImagesClient},
    identity::Identity,
    pki::{CertificateAuthority, KeyAnd},
    tls::Credentials,
};
use trellis_sandbox::{
    Cleanup,
    cgroup::{Cgroup, CgroupRoot, Cgroups},
    cleanup, netns,
    spawn::{Namespaces, NsChild, NsCommand, kill_and_wait, namespace},
};

pub const IMAGE: &str = "docker.io/library/busybox:test";
/// The same, with `STOPSIGNAL SIGUSR1`.
pub const USR1_IMAGE: &str = "docker.io/library/busybox:usr1";

pub struct Node {
    pub dir: tempfile::TempDir,
    pub api: FakeControlPlane,
    pub netd: FakeNetd,
    ca: CertificateAuthority,
    member: KeyAnd,
    agent: Option<NsChild>,
}

impl Node {
    /// `None` (and a line that says why) where this cannot run.
    pub async fn start(name: &str) -> Option<Self> {
        let skip = |why: &str| eprintln!("SKIPPED: {name}: {why}");
        if !rustix::process::geteuid().is_root() {
            skip("not root");
            return None;
        }
        if !shim().exists() {
            skip("trellis-shim is not built: cargo build -p trellis-shim");
            return None;
        }
        if busybox().is_none() {
            skip("no static busybox (apt-get install busybox-static)");
            return None;
        }
        trellis_proto::tls::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::create("test").unwrap();
        let member = ca.issue(&Identity::Member("m1".into())).unwrap();
        let agent = ca.issue(&Identity::Agent("n1".into())).unwrap();
        let pki = dir.path().join("etc/pki");
        fs::create_dir_all(&pki).unwrap();
        fs::write(pki.join("ca.crt"), ca.certificate_pem()).unwrap();
        fs::write(pki.join("agent.crt"), &agent.pem).unwrap();
        fs::write(pki.join("agent.key"), agent.key_pem.as_bytes()).unwrap();
        let socket = dir.path().join("api.sock");
        let config = serde_json::json!({"version": 1, "node_name": "n1", "cluster_name": "test",
            "advertise_address": "127.0.0.1", "members": [], "roles": ["worker"], "api_unix_socket": socket});
        fs::write(dir.path().join("etc/node.json"), config.to_string()).unwrap();
        let credentials = Credentials::from_pem(ca.certificate_pem(), &member.pem, &member.key_pem).unwrap();
        let api = FakeControlPlane::start(&socket, &credentials).await;
        let netd = FakeNetd::start(&dir.path().join("run"));
        let mut node = Self { dir, api, netd, ca, member, agent: None };
        node.start_agent();
        Some(node)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn start_agent(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("agent.log")).unwrap();
        let arguments = [
            ("--config-dir", self.dir.path().join("etc")),
            ("--data-dir", self.data()),
            ("--run-dir", self.run()),
            ("--shim", shim()),
        ];
        let namespaces = Namespaces { net: true, ..Namespaces::default() };
        let mut command = NsCommand::new(env!("CARGO_BIN_EXE_trellis-node-agent"), namespaces)
            .stdio(2, log.into())
            .parent_death_signal(9)
            .env("RUST_LOG", "info,trellis_node_agent=debug");
        for (name, value) in arguments {
            command = command.arg(name).arg(value);
        }
        let child = command.spawn().unwrap();
        let ns = namespace(&child, "net").unwrap();
        netns::inside(ns.as_fd(), || netns::loopback_up().unwrap()).unwrap();
        self.agent = Some(child);
    }

    pub fn kill_agent(&mut self) {
        if let Some(child) = self.agent.take() {
            kill_and_wait(&child).unwrap();
        }
    }

    /// Sends SIGTERM and awaits the agent's end.
    pub fn ask_agent_to_end(&mut self) {
        use nix::{
            sys::{
                signal::{Signal, kill},
                wait::{WaitPidFlag, WaitStatus, waitpid},
            },
            unistd::Pid,
        };
        let pid = Pid::from_raw(self.agent.as_ref().unwrap().pid);
        kill(pid, Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap() == WaitStatus::StillAlive {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.agent = None;
    }

    /// Namespaces that the agent holds by descriptors: of Pods that are handed over, or forgotten.
    pub fn held_namespaces(&self) -> Vec<String> {
        let Some(agent) = &self.agent else { return Vec::new() };
        let fds = fs::read_dir(format!("/proc/{}/fd", agent.pid)).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).map(|l| l.display().to_string());
        let kinds = ["net:[", "ipc:[", "uts:[", "pid:[", "mnt:["];
        links.filter(|l| kinds.iter().any(|k| l.starts_with(k))).map(|l| format!("the agent holds {l}")).collect()
    }

    /// The first of these files of a container's cgroup that there is (the versions name them differently).
    pub fn cgroup_figures(&self, uid: &str, container: &str, names: &[&str]) -> String {
        let socket = self.run().join("shims").join(uid).join("shim.sock");
        let state = trellis_shim_protocol::Client::connect(&socket).unwrap().state().unwrap();
        let found = state.containers.into_iter().find(|c| c.labels["trellis.container"] == container).unwrap();
        let group = own_cgroup(&found.cgroup_path);
        let files = group.dirs().flat_map(|d| names.iter().map(move |n| d.join(n)));
        let text = files.filter_map(|f| fs::read_to_string(f).ok()).next();
        text.unwrap_or_else(|| panic!("none of {names:?} in {}", found.cgroup_path)).trim().to_owned()
    }

    /// A Pod's shim, while it listens.
    pub fn try_shim_pid(&self, uid: &str) -> Option<i32> {
        let socket = self.run().join("shims").join(uid).join("shim.sock");
        trellis_shim_protocol::Client::connect(&socket).ok()?.shim_pid().ok()
    }

    pub fn shim_pid(&self, uid: &str) -> i32 {
        self.try_shim_pid(uid).unwrap()
    }

    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// A member's connection to port 10250.
    pub async fn channel(&self) -> Channel {
        self.channel_as(Some(&self.member)).await.unwrap()
    }

    /// A certificate of the cluster.
    pub fn issue(&self, identity: &Identity) -> KeyAnd {
        self.ca.issue(identity).unwrap()
    }

    /// A connection to port 10250 with this certificate, or with none. Whether the agent takes it may be
    /// told by the first call only: TLS 1.3 ends for the client before the server has looked.
    pub async fn channel_as(&self, certificate: Option<&KeyAnd>) -> Result<Channel, tonic::transport::Error> {
        let roots = [CertificateDer::from_pem_slice(self.ca.certificate_pem().as_bytes()).unwrap()];
        let mut store = rustls::RootCertStore::empty();
        store.add_parsable_certificates(roots);
        let tls = rustls::ClientConfig::builder().with_root_certificates(store);
        let mut tls = match certificate {
            Some(certificate) => tls
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let ns: Arc<OwnedFd> = Arc::new(namespace(self.agent.as_ref().unwrap(), "net").unwrap());
        let service = tower::service_fn(move |_: Uri| {
            let (connector, ns) = (connector.clone(), ns.clone());
            async move {
                let deadline = Instant::now() + Duration::from_secs(20);
                let stream = loop {
                    let tried = netns::inside(ns.as_fd(), || std::net::TcpStream::connect("127.0.0.1:10250")).unwrap();
                    match tried {
                        Ok(stream) => break stream,
                        Err(e) if Instant::now() > deadline => return Err(e),
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                };
                stream.set_nonblocking(true)?;
                let stream = tokio::net::TcpStream::from_std(stream)?;
                let name = ServerName::try_from("n1.agent.trellis").unwrap();
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://agent").connect_with_connector(service).await
    }

    /// Brings a busybox image onto the node through Images.Import.
    pub async fn import_busybox(&self) {
        let archive = archive();
        let mut client = ImagesClient::new(self.channel().await);
        let parts: Vec<ImportRequest> =
            archive.chunks(256 * 1024).map(|c| ImportRequest { node: "n1".into(), data: c.to_vec().into() }).collect();
        let reply = client.import(tokio_stream::iter(parts)).await.unwrap().into_inner();
        let names: Vec<&String> = reply.images.iter().flat_map(|i| &i.names).collect();
        assert_eq!(names, [IMAGE, USR1_IMAGE]);
    }

    /// Nothing of a Pod is left on the node.
    pub fn traces(&self, uid: &str) -> Vec<String> {
        let mut found = Vec::new();
        let volumes = self.run().join("agent/volumes").join(uid);
        for path in [self.run().join("shims").join(uid), self.data().join("pods").join(uid), volumes] {
            if path.exists() {
                found.push(path.display().to_string());
            }
        }
        let group = own_cgroup(&format!("trellis/pod{uid}"));
        found.extend(group.dirs().filter(|d| d.exists()).map(|d| d.display().to_string()));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        found.extend(mounts.lines().filter(|l| l.contains(uid)).map(str::to_owned));
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cgroup")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(uid) {
                found.push(format!("process {}", entry.file_name().to_string_lossy()));
            }
        }
        if self.netd.pods.lock().unwrap().contains_key(uid) {
            found.push("netd's attachment".into());
        }
        found
    }
}

pub fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sh", "-c", script]})
}

pub fn running(pod: &Value) -> bool {
    let ready = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    pod["status"]["phase"] == "Running" && ready
}

pub fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Waits until nothing is left of a Pod.
pub async fn gone(node: &Node, pod: &str, uid: &str) {
    node.api.until(pod, "gone", Value::is_null).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !node.traces(uid).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", node.traces(uid));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A group as the agent, which is in this process' own, numbers them.
fn own_cgroup(path: &str) -> Cgroup {
    Cgroups::detect(&CgroupRoot::Own).unwrap().group(path)
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- agent's log:\n{}", self.agent_log());
        }
        self.kill_agent();
        // What a failed test left; one that passed has left nothing.
        for entry in fs::read_dir(self.dir.path().join("run/shims")).into_iter().flatten().flatten() {
            let what = Cleanup {
                cgroup_root: CgroupRoot::Own,
                cgroup_path: format!("trellis/pod{}", entry.file_name().to_string_lossy()),
                dirs: vec![entry.path()],
                within: Duration::from_secs(10),
            };
            if let Err(error) = cleanup(&what) {
                eprintln!("leftovers: {error}");
            }
        }
        // The last test takes the Pods' common parent away; while others run it is not empty.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            drop(fs::remove_dir(hierarchy.path().join("trellis")));
        }
        if let Err(error) = trellis_sandbox::mounts::detach_below(self.dir.path()) {
            eprintln!("leftovers: {error}");
        }
    }
}

fn shim() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_trellis-node-agent")).with_file_name("trellis-shim")
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|p| p.exists())
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A docker archive with busybox and its applets; its empty layer comes twice, as builders make them.
fn archive() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: u64| {
        let mut h = tar::Header::new_gnu();
        h.set_entry_type(kind);
        h.set_mode(mode);
        h.set_size(size);
        h
    };
    for dir in ["bin/", "etc/", "tmp/"] {
        layer.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), dir, std::io::empty()).unwrap();
    }
    let program = fs::read(busybox().unwrap()).unwrap();
    let size = program.len() as u64;
    layer.append_data(&mut header(tar::EntryType::Regular, 0o755, size), "bin/busybox", &program[..]).unwrap();
    for name in "sh echo sleep cat ls id env true false hostname kill test dd nc wc tail".split(' ') {
        let mut h = header(tar::EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut h, format!("bin/{name}"), "busybox").unwrap();
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n";
    let size = passwd.len() as u64;
    layer.append_data(&mut header(tar::EntryType::Regular, 0o644, size), "etc/passwd", &passwd[..]).unwrap();
    let layer = layer.into_inner().unwrap();
    // BuildKit names one empty layer as often as it comes.
    let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let diff_ids = [&empty, &layer, &empty].map(|l| format!("sha256:{}", sha(l)));
    let config = |config: serde_json::Value| {
        serde_json::json!({"architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
    };
    let plain = config(serde_json::json!({"Cmd": ["/bin/sh"]}));
    let usr1 = config(serde_json::json!({"Cmd": ["/bin/sh"], "StopSignal": "SIGUSR1"}));
    let layers = ["empty.tar", "layer.tar", "empty.tar"];
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": [IMAGE], "Layers": layers},
        {"Config": "usr1.json", "RepoTags": [USR1_IMAGE], "Layers": layers}])
    .to_string();
    let mut all = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("config.json", plain.as_bytes()),
        ("usr1.json", usr1.as_bytes()),
        ("empty.tar", &empty[..]),
        ("layer.tar", &layer[..]),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut h = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
        all.append_data(&mut h, name, bytes).unwrap();
    }
    all.into_inner().unwrap()
}
