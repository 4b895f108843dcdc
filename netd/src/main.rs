//! `trellis-netd`: the network daemon of one node.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use tokio::sync::{mpsc, oneshot, watch};
use trellis_gossip::{Gossip, GossipKey, Liveness, NodeIdentity, View};
use trellis_netd::engine::{self, Config, Engine, Event, gossip_seeds};
use trellis_netd::member::Member;
use trellis_netd::store::Store;
use trellis_netd::withdraw::withdraw;
use trellis_netd::{api, drift, handoff, renew, serve};
use trellis_proto::client::Connection;
use trellis_proto::file::FileError;
use trellis_proto::node_config::NodeConfig;
use trellis_proto::patience;
use trellis_proto::pki::Key;
use trellis_proto::service::{ALIVE, READY, STOPPING, Watchdog, notify};
use trellis_proto::tls::{ClientTls, Credentials};

/// The pod network, its policy, and gossip, on one node.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Where node.json, pki and keys are.
    #[arg(long, env = "TRELLIS_CONFIG_DIR", default_value = "/etc/trellis")]
    config_dir: PathBuf,
    /// Where allocations and the last known state are kept.
    #[arg(long, default_value = "/var/lib/trellis/netd")]
    data_dir: PathBuf,
    /// Where the unix sockets are made.
    #[arg(long, env = "TRELLIS_RUN_DIR", default_value = "/run/trellis")]
    run_dir: PathBuf,
    /// How log lines look; RUST_LOG says which.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Ending takes the engine a plan and two files; the service manager's patience is 10 s.
const STOP_LIMIT: Duration = Duration::from_secs(5);

#[derive(clap::Subcommand)]
enum Command {
    /// Take the pod network out of the kernel again; the daemon must not run
    Withdraw,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    if let Some(Command::Withdraw) = arguments.command {
        let done = withdraw(&Store::open(&arguments.data_dir)?)?;
        println!(
            "taken out of the kernel: {} interfaces, {} routes, {} addresses, {} tables",
            done.links, done.routes, done.addresses, done.tables
        );
        return Ok(());
    }
    // Two threads: gossip must not wait behind a large list being decoded.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(4).enable_all().build()?;
    let done = runtime.block_on(run(arguments));
    runtime.shutdown_timeout(Duration::from_millis(200));
    done
}

/// Tries again every second, and says what is missing every ten.
async fn wait_for<T, E: std::fmt::Display>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let mut tries = 0_u32;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => {
                if tries.is_multiple_of(10) {
                    tracing::warn!(%error, "waiting for {what}");
                }
                tries += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn gossip_key(config_dir: &Path) -> anyhow::Result<GossipKey> {
    let path = config_dir.join("keys/gossip");
    let text = std::fs::read_to_string(&path).map_err(FileError::io(&path))?;
    let key = Key::from_hex(&text).with_context(|| format!("{}: 64 hexadecimal digits are wanted", path.display()))?;
    Ok(GossipKey::new(*key.as_bytes()))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop_signal()?);
    let stopping = || {
        notify(STOPPING);
        tracing::info!("stopping; the kernel's state stays");
    };
    let (node, key) = tokio::select! {
        found = configuration(&arguments.config_dir) => found,
        () = &mut stop => {
            stopping();
            return Ok(());
        }
    };
    let running = start_engine(&arguments, &node)?;
    let done = tokio::select! {
        done = serve_node(&arguments, node, &key, &running) => done,
        () = &mut stop => {
            stopping();
            Ok(())
        }
    };
    running.stop().await;
    done
}

/// What must be there before anything can be done.
async fn configuration(config_dir: &Path) -> (NodeConfig, GossipKey) {
    let node = wait_for("node.json", || NodeConfig::load(config_dir)).await;
    let key = wait_for("the gossip key", || gossip_key(config_dir).map_err(|error| format!("{error:#}"))).await;
    (node, key)
}

/// The engine, on its thread.
struct Running {
    store: Store,
    events: mpsc::Sender<Event>,
    outputs: engine::Outputs,
    thread: std::thread::JoinHandle<()>,
    /// Tells the gossip member to end; closed when it has.
    ending: watch::Sender<bool>,
}

impl Running {
    /// Engine and gossip end what they do and keep what they know, so that the next instance begins there.
    async fn stop(self) {
        let Self { events, thread, ending, .. } = self;
        let end = async move {
            ending.send_replace(true);
            // Not sent: it has ended already.
            let _ = events.send(Event::Stop).await;
            ending.closed().await;
            tokio::task::spawn_blocking(move || thread.join()).await
        };
        match tokio::time::timeout(STOP_LIMIT, end).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => tracing::error!("the engine did not end as it should"),
            Err(_) => {
                tracing::error!("the end took more than {STOP_LIMIT:?}; the last change may not be stored")
            }
        }
    }
}

fn start_engine(arguments: &Arguments, node: &NodeConfig) -> anyhow::Result<Running> {
    let IpAddr::V4(advertise) = node.advertise_address else {
        bail!("node.json: advertise_address {} is not IPv4, which the pod network needs", node.advertise_address);
    };
    let store = Store::open(&arguments.data_dir)?;
    let (events, queue) = mpsc::channel(engine::QUEUE);
    let (engine, outputs) = Engine::start(Config { node_name: node.node_name.clone(), advertise }, store.clone())?;
    drift::watch(&events)?;
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || engine.run(queue))?;
    Ok(Running { store, events, outputs, thread, ending: watch::Sender::new(false) })
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn serve_node(arguments: &Arguments, node: NodeConfig, key: &GossipKey, running: &Running) -> anyhow::Result<()> {
    let config_dir = &arguments.config_dir;
    let Running { store, events, outputs, .. } = running;
    // All sockets before readiness is told, and before gossip, which may wait for its address.
    let (view_out, view) = watch::channel(Arc::default());
    let attach = arguments.run_dir.join("netd/attach.sock");
    let pod_network = serve::bind_pod_network(&attach).with_context(|| attach.display().to_string())?;
    handoff::serve(&attach.with_file_name("handoff.sock"), events.clone()).context("handoff.sock")?;
    let membership = arguments.run_dir.join("netd-public/membership.sock");
    let membership = serve::bind_membership(&membership).with_context(|| membership.display().to_string())?;
    let pod_network = tokio::spawn(serve::pod_network(pod_network, events.clone()));
    let membership = tokio::spawn(serve::membership(membership, view.clone()));

    let member = member(&node, key, store.clone(), outputs, view_out, running.ending.subscribe()).await?;
    let seeds: Vec<IpAddr> = node
        .members
        .iter()
        .filter_map(|member| member.peer_address.parse::<SocketAddr>().ok())
        .map(|address| address.ip())
        .collect();
    let gossip = tokio::spawn(member.run(gossip_seeds(&seeds)));
    tokio::spawn(pass_views(view.clone(), events.clone()));
    tokio::spawn(tick(events.clone()));
    tokio::spawn(follow_api(config_dir.clone(), node, outputs.clone(), view, events.clone()));
    notify(READY);
    tokio::spawn(tell_alive(events.clone()));
    tokio::select! {
        done = pod_network => done?.context("attach.sock"),
        done = membership => done?.context("membership.sock"),
        done = gossip => done?.context("gossip"),
    }
}

async fn member(
    node: &NodeConfig,
    key: &GossipKey,
    store: Store,
    outputs: &engine::Outputs,
    views: watch::Sender<Arc<View>>,
    ending: watch::Receiver<bool>,
) -> anyhow::Result<Member> {
    let address = SocketAddr::new(node.advertise_address, trellis_proto::ports::GOSSIP);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = u64::try_from(now.as_millis())?.max(store.load_epoch()? + 1);
    store.save_epoch(epoch)?;
    let own_api = node.members.iter().find(|member| member.name == node.node_name);
    let api_addresses: Vec<String> = own_api.map(|member| member.api_address.clone()).into_iter().collect();
    let identity = NodeIdentity {
        name: node.node_name.clone(),
        address,
        pod_cidr: *outputs.pod_cidr.borrow(),
        version: env!("CARGO_PKG_VERSION").into(),
        epoch,
        api_addresses: api_addresses.clone(),
    };
    let started = Instant::now();
    let timing = trellis_gossip::Config::default().stretched(patience::factor());
    let mut machine = Gossip::new(identity, key, timing, rand::random(), Duration::ZERO)?;
    machine.remember(store.load_heard()?);
    views.send_replace(machine.view());
    let socket = loop {
        // The address may be given to the interface a moment after us.
        match tokio::net::UdpSocket::bind(address).await {
            Ok(socket) => break socket,
            Err(error) => {
                tracing::warn!(%address, %error, "cannot bind the gossip socket; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    Ok(Member {
        machine,
        started,
        socket,
        pod_cidr: outputs.pod_cidr.clone(),
        nodes: outputs.nodes.clone(),
        api_addresses,
        views,
        store,
        ending,
    })
}

async fn pass_views(mut view: watch::Receiver<Arc<View>>, events: mpsc::Sender<Event>) {
    loop {
        let current = Arc::clone(&view.borrow_and_update());
        if events.send(Event::View(current)).await.is_err() || view.changed().await.is_err() {
            return;
        }
    }
}

async fn tick(events: mpsc::Sender<Event>) {
    let mut period = tokio::time::interval(engine::TICK_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while events.send(Event::Tick).await.is_ok() {
        period.tick().await;
    }
}

/// Tells the service manager's watchdog of life, as often as it asks and the engine, which does
/// netd's work, answers from its queue's end.
async fn tell_alive(events: mpsc::Sender<Event>) {
    let mut watchdog = Watchdog::from_env();
    loop {
        watchdog.due().await;
        let (reply, answer) = oneshot::channel();
        if events.send(Event::Status { reply }).await.is_err() || answer.await.is_err() {
            return;
        }
        notify(ALIVE);
    }
}

/// Everything that needs the control plane; starts when the certificates are there.
async fn follow_api(
    config_dir: PathBuf,
    node: NodeConfig,
    outputs: engine::Outputs,
    mut view: watch::Receiver<Arc<View>>,
    events: mpsc::Sender<Event>,
) {
    let pki = config_dir.join("pki");
    let credentials = wait_for("netd's certificate", || Credentials::load(&pki, "netd")).await;
    let tls = wait_for("netd's certificate", || ClientTls::to_member(&credentials)).await;
    // Reports have a connection of their own: they find out that a member went silent long before
    // a watch does, and must not be held up by a large list.
    let known = endpoints(&node, &view.borrow());
    let watches = Connection::new(known.clone(), tls.clone());
    let reports = Connection::new(known, tls);
    tokio::spawn(api::follow(watches.clone(), events.clone()));
    tokio::spawn(renew::keep_valid(reports.clone(), credentials, pki, node.node_name.clone()));
    let engine::Outputs { applied, unrouted, .. } = outputs;
    tokio::spawn(api::report(reports.clone(), node.node_name.clone(), applied, unrouted, events));
    while view.changed().await.is_ok() {
        let known = endpoints(&node, &view.borrow_and_update());
        watches.set_endpoints(known.clone());
        reports.set_endpoints(known);
    }
}

/// The members to dial: this machine's own first, then those that gossip shows alive, then those
/// of the file. Every node begins at another one, so that they share the load.
fn endpoints(node: &NodeConfig, view: &View) -> Vec<String> {
    let alive = view.members.iter().filter(|member| member.liveness != Liveness::Dead);
    let gossiped = alive.flat_map(|member| &member.identity.api_addresses).map(|address| format!("https://{address}"));
    let mut members: Vec<String> = Vec::new();
    for endpoint in gossiped.chain(node.api_endpoints()) {
        if !members.contains(&endpoint) {
            members.push(endpoint);
        }
    }
    let first = node.node_name.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    if !members.is_empty() {
        let first = first % members.len();
        members.rotate_left(first);
    }
    if let Some(socket) = &node.api_unix_socket {
        members.insert(0, format!("unix://{}", socket.display()));
    }
    members
}
