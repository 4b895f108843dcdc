//! A cluster of members in one process, over real gRPC on loopback, whose links can be cut.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code)]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Server};
use trellis_control_plane::raft::disk::{Disk, RealDisk};
use trellis_control_plane::raft::{
    Consensus, Dialer, LeaderHooks, LeaseGrant, Member, NetworkReport, Options, Tuning, start,
};
use trellis_control_plane::store::{Command, Index, Key, Op, Store, Stored, When};

/// Plain TCP to wherever `routes` says an address really is.
#[derive(Debug, Clone, Default)]
pub struct PlainDialer {
    pub routes: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
}

impl Dialer for PlainDialer {
    fn channel(&self, peer_address: &str) -> Result<Channel, String> {
        let routes = self.routes.lock().unwrap();
        let to = routes.get(peer_address).map_or(peer_address.to_string(), ToString::to_string);
        let endpoint = Endpoint::from_shared(format!("http://{to}")).map_err(|e| e.to_string())?;
        Ok(endpoint
            .connect_timeout(Duration::from_millis(500))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_millis(500))
            .keep_alive_timeout(Duration::from_millis(500))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect_lazy())
    }
}

pub struct NoHooks;

impl LeaderHooks for NoHooks {
    fn renew_lease(&self, node: &str, _instance: &str) -> LeaseGrant {
        LeaseGrant { ttl_millis: 1_200, term: node.len() as u64 }
    }
    fn report_network(&self, _node: &str, report: NetworkReport) -> u64 {
        report.applied_revision
    }
}

/// Where a member listens just now; another port after each start.
type Listening = Arc<Mutex<Option<SocketAddr>>>;

/// How often a member was asked what, by its id and the method's name.
type Asked = Arc<Mutex<BTreeMap<(u64, String), u64>>>;

/// A link that carries bytes until it is cut; a cut one carries nothing and closes nothing.
async fn proxy(to: Listening, cut: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (cut, to) = (cut.clone(), to.clone());
            tokio::spawn(async move {
                let mut open = cut.clone();
                if open.wait_for(|c| !*c).await.is_err() {
                    return;
                }
                let Some(to) = *to.lock().unwrap() else {
                    return;
                };
                let Ok(far) = TcpStream::connect(to).await else {
                    return;
                };
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::select! {
                    () = pump(near_in, far_out, cut.clone()) => {}
                    () = pump(far_in, near_out, cut) => {}
                }
            });
        }
    });
    address
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(n) = from.read(&mut buffer).await else { return };
        if n == 0 || cut.wait_for(|c| !*c).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

pub struct Node {
    pub member: Member,
    pub consensus: Consensus,
    pub dir: PathBuf,
    /// The server's own: its connections end with it, as in a crash.
    server: Option<Runtime>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub tuning: Tuning,
    pub disk: Arc<dyn Disk>,
    dirs: TempDir,
    listening: BTreeMap<u64, Listening>,
    asked: Asked,
    cuts: BTreeMap<(u64, u64), watch::Sender<bool>>,
    dialers: BTreeMap<u64, PlainDialer>,
}

impl Cluster {
    /// Members 1..=count, all voting.
    pub async fn new(count: u64, tuning: Tuning) -> Self {
        let mut cluster = Self::prepare(count, tuning).await;
        for id in 1..=count {
            cluster.start(id).await;
        }
        let first = cluster.nodes[&1].member.clone();
        cluster.node(1).bootstrap(first).await.unwrap();
        for id in 2..=count {
            let member = cluster.nodes[&id].member.clone();
            cluster.node(1).add_member(member).await.unwrap();
        }
        cluster
    }

    pub async fn prepare(count: u64, tuning: Tuning) -> Self {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let listening: BTreeMap<u64, Listening> = (1..=count).map(|id| (id, Listening::default())).collect();
        let dialers: BTreeMap<u64, PlainDialer> = (1..=count).map(|id| (id, PlainDialer::default())).collect();
        let mut cuts = BTreeMap::new();
        for from in 1..=count {
            for to in (1..=count).filter(|to| *to != from) {
                let (cut, seen) = watch::channel(false);
                let via = proxy(listening[&to].clone(), seen).await;
                dialers[&from].routes.lock().unwrap().insert(address(to), via);
                cuts.insert((from, to), cut);
            }
        }
        Self {
            nodes: BTreeMap::new(),
            tuning,
            disk: Arc::new(RealDisk),
            dirs: TempDir::new().unwrap(),
            listening,
            asked: Asked::default(),
            cuts,
            dialers,
        }
    }

    pub async fn start(&mut self, id: u64) {
        let member = Member { id, name: format!("n{id}"), api_address: format!("api-{id}"), peer_address: address(id) };
        let dir = self.dirs.path().join(format!("member-{id}"));
        let options = Options {
            id,
            cluster_name: "test".into(),
            data_dir: dir.clone(),
            disk: self.disk.clone(),
            dialer: Arc::new(self.dialers[&id].clone()),
            hooks: Arc::new(NoHooks),
            tuning: self.tuning.clone(),
        };
        let (consensus, services) = start(options, Store::default()).await.unwrap();
        let asked = self.asked.clone();
        let count = tower::util::MapRequestLayer::new(move |request: http::Request<tonic::body::Body>| {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            *asked.lock().unwrap().entry((id, method)).or_default() += 1;
            request
        });
        let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (ready, bound) = tokio::sync::oneshot::channel();
        server.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            ready.send(at).unwrap();
            Server::builder()
                .http2_keepalive_interval(Some(Duration::from_millis(500)))
                .http2_keepalive_timeout(Some(Duration::from_millis(500)))
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
                .layer(count)
                .add_service(services.raft)
                .add_service(services.leader)
                .serve_with_incoming(incoming)
                .await
        });
        *self.listening[&id].lock().unwrap() = Some(bound.await.unwrap());
        self.nodes.insert(id, Node { member, consensus, dir, server: Some(server) });
    }

    /// Stops a member; its folder stays.
    pub async fn stop(&mut self, id: u64) {
        if let Some(node) = self.nodes.remove(&id) {
            *self.listening[&id].lock().unwrap() = None;
            let consensus = node.consensus.clone();
            drop(node);
            consensus.shutdown().await;
        }
    }

    /// Empties a stopped member's folder.
    pub fn wipe(&self, id: u64) {
        let dir = self.dirs.path().join(format!("member-{id}"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// How often a member was asked this, over all its starts.
    pub fn asked(&self, id: u64, method: &str) -> u64 {
        self.asked.lock().unwrap().get(&(id, method.to_owned())).copied().unwrap_or(0)
    }

    pub fn node(&self, id: u64) -> &Consensus {
        &self.nodes[&id].consensus
    }

    /// Cuts or mends all links of a member.
    pub fn isolate(&self, id: u64, cut: bool) {
        for ((from, to), link) in &self.cuts {
            if *from == id || *to == id {
                link.send_replace(cut);
            }
        }
    }

    /// Cuts or mends one link: what `from` asks of `to`. Answers come back over the link of the question.
    pub fn cut(&self, from: u64, to: u64, cut: bool) {
        self.cuts[&(from, to)].send_replace(cut);
    }

    /// The leader, once all members of `among` agree on it and it is among them.
    pub async fn leader(&self, among: &[u64]) -> u64 {
        eventually("a leader is agreed on", Duration::from_secs(10), || {
            let seen: Vec<_> = among.iter().map(|id| self.node(*id).leadership().borrow().clone()).collect();
            let leader = seen[0].leader_id?;
            let agreed = seen.iter().all(|l| l.leader_id == Some(leader)) && among.contains(&leader);
            (agreed && self.node(leader).leadership().borrow().is_leader).then_some(leader)
        })
        .await
    }
}

/// A member's name on the "network": dialers know where it leads.
fn address(id: u64) -> String {
    format!("member-{id}:2380")
}

/// Polls until `check` gives something.
pub async fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}

pub fn now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub fn key(name: &str) -> Key {
    Key::new("", "ConfigMap", "default", name)
}

pub fn object(name: &str, value: &str) -> Stored {
    let json = format!(r#"{{"metadata":{{"name":"{name}"}},"data":{{"v":"{value}"}}}}"#);
    Stored {
        json: Bytes::from(json),
        splice_at: 13,
        index: Index { uid: format!("uid-{name}"), ..Index::default() },
        sealed: false,
    }
}

pub fn put(name: &str, value: &str) -> Command {
    let op = Op::Put { key: key(name), when: When::Always, object: object(name, value) };
    Command::new(now_millis(), vec![op])
}
