//! From bare nodes to a cluster whose nodes are all Ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
    time::Duration,
};

use trellis_proto::{client::ClusterContext, node_config::Role, patience::stretched};

use super::{Api, contexts};
use crate::{
    Error, Result,
    backend::{Backend, Output},
    layout::Layout,
    node::{NODE_BIN, TRELLIS_USER, control::DaemonSpec},
    progress::Progress,
    topology::{Node, Topology},
    wait,
};

/// Where the first node's `cluster init` leaves the administrator's context, as the node sees it.
const NODE_CONTEXT: &str = "/run/lab/config.json";
/// The API's unix socket, as a node sees it.
const NODE_API_SOCKET: &str = "/run/trellis/api.sock";
/// A member answers a second after its start, on a loaded machine later.
const API_LIMIT: Duration = Duration::from_secs(60);
/// The aim is ten seconds for everything; this is where hope ends.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Environment of the lab's caller that daemons get too.
const PASSED_ON: &[&str] = &["RUST_LOG", "RUST_BACKTRACE"];

/// Starts the nodes and makes them a cluster.
pub fn bring_up(backend: &dyn Backend, layout: &Layout, progress: &Progress) -> Result<()> {
    let topology = backend.topology();
    power_on(backend, progress)?;
    let first = topology.nodes.first().ok_or_else(|| Error::Topology("no nodes".to_owned()))?;

    progress.now(&format!("cluster init on {}", first.name));
    init(backend, first)?;
    start_daemons(backend, first)?;
    let context = take_context(backend, layout)?;
    contexts::add(&layout.contexts(), &backend.context(), context.clone())?;
    contexts::add(&contexts::users_file(), &backend.context(), context)?;
    progress.done(&format!("cluster initialised on {}", first.name));

    progress.now("the first member's API");
    let api = Api::open(&layout.contexts())?;
    wait::until("an answer of the first member's API", API_LIMIT, || {
        api.status().map(drop).map_err(|e| e.to_string())
    })?;
    progress.done("the API answers");

    let others: Vec<&Node> = topology.nodes.iter().skip(1).collect();
    in_parallel(&others, |node| {
        join(backend, &api, node)?;
        progress.done(&format!("{} joined", node.name));
        Ok(())
    })?;
    wait_ready(&api, topology, progress)
}

/// Powers all nodes on, side by side.
pub fn power_on(backend: &dyn Backend, progress: &Progress) -> Result<()> {
    let nodes: Vec<&Node> = backend.topology().nodes.iter().collect();
    progress.now(&format!("starting {} nodes", nodes.len()));
    in_parallel(&nodes, |node| backend.start(&node.name))?;
    progress.done(&format!("{} nodes are on", nodes.len()));
    Ok(())
}

/// Powers one node on again: a wiped one joins anew, any other finds its cluster by itself.
pub fn restart(backend: &dyn Backend, layout: &Layout, node: &str) -> Result<()> {
    let spec = backend.topology().node(node)?;
    let joined = layout.node(node).path("etc").join("node.json").exists();
    backend.start(node)?;
    if backend.daemons_start_themselves() {
        return Ok(());
    }
    if joined {
        return start_daemons(backend, spec);
    }
    if !layout.contexts().exists() {
        // Bare nodes: there is no cluster to join.
        return Ok(());
    }
    let api = Api::open(&layout.contexts())?;
    if spec.is_control_plane() && api.status()?.members.iter().any(|m| m.name == node) {
        // A member without its log and vote must not vote under its old id again.
        api.remove_member(node)?;
    }
    // The machine that had this name is lost; what joins is another one.
    api.delete("Node", "", node, None)?;
    join(backend, &api, spec)
}

fn init(backend: &dyn Backend, node: &Node) -> Result<()> {
    let topology = backend.topology();
    let mut argv: Vec<String> = ["cluster", "init", "--name", &topology.name].map(str::to_owned).to_vec();
    argv.extend(common(topology, node));
    if !node.roles.contains(&Role::Worker) {
        argv.extend(["--role".to_owned(), "control-plane".to_owned()]);
    }
    if let Some(cidr) = topology.pod_cidr {
        argv.extend(["--pod-cidr".to_owned(), cidr.to_string()]);
    }
    if let Some(lifetime) = &topology.certificate_lifetime {
        argv.extend(["--certificate-lifetime".to_owned(), lifetime.clone()]);
    }
    trellis(backend, node, &argv)
}

fn join(backend: &dyn Backend, api: &Api, node: &Node) -> Result<()> {
    let topology = backend.topology();
    let token = api.token(node.is_control_plane())?;
    let mut argv: Vec<String> = ["cluster", "join", "--token", &token].map(str::to_owned).to_vec();
    for member in topology.control_planes().filter(|m| m.name != node.name) {
        argv.extend(["--server".to_owned(), format!("https://{}:{}", member.address, trellis_proto::ports::API)]);
    }
    if node.is_control_plane() {
        argv.push("--control-plane".to_owned());
    }
    if !node.roles.contains(&Role::Worker) {
        argv.push("--no-worker".to_owned());
    }
    argv.extend(common(topology, node));
    trellis(backend, node, &argv)?;
    start_daemons(backend, node)
}

/// What `init` and `join` have in common.
fn common(topology: &Topology, node: &Node) -> Vec<String> {
    let mut argv = vec![
        "--node-name".to_owned(),
        node.name.clone(),
        "--advertise-address".to_owned(),
        node.address.to_string(),
        "--config-dir".to_owned(),
        "/etc/trellis".to_owned(),
    ];
    if node.is_control_plane() {
        argv.extend(["--api-unix-socket".to_owned(), NODE_API_SOCKET.to_owned()]);
    }
    for (name, value) in &node.labels {
        argv.extend(["--labels".to_owned(), format!("{name}={value}")]);
    }
    for registry in &topology.insecure_registries {
        argv.extend(["--insecure-registries".to_owned(), registry.clone()]);
    }
    argv
}

fn trellis(backend: &dyn Backend, node: &Node, args: &[String]) -> Result<()> {
    let program = format!("{NODE_BIN}/trellis");
    let argv: Vec<&str> = std::iter::once(program.as_str()).chain(args.iter().map(String::as_str)).collect();
    let env = BTreeMap::from([("TRELLIS_CONFIG".to_owned(), NODE_CONTEXT.to_owned())]);
    let output = backend.run(&node.name, &argv, &env)?;
    // Not the arguments: a token is among them.
    succeeded(&format!("trellis {} {} on {}", args[0], args[1], node.name), &output)
}

/// An error that shows what a failed command printed.
pub fn succeeded(what: &str, output: &Output) -> Result<()> {
    if output.code == 0 {
        return Ok(());
    }
    let printed = output.stdout.lines().chain(output.stderr.lines()).map(|l| format!("\n    {l}")).collect();
    Err(Error::Command { what: what.to_owned(), status: format!("exit code {}", output.code), output: printed })
}

/// The daemons of a node, in the order in which they are started.
#[must_use]
pub fn daemons_of(node: &Node) -> Vec<DaemonSpec> {
    let mut names = vec!["netd"];
    if node.is_control_plane() {
        names.push("control-plane");
    }
    if node.roles.contains(&Role::Worker) {
        names.push("node-agent");
    }
    let env: BTreeMap<String, String> =
        PASSED_ON.iter().filter_map(|n| std::env::var(n).ok().map(|v| ((*n).to_owned(), v))).collect();
    let argv = |name: &str| {
        let mut argv = vec![format!("{NODE_BIN}/trellis-{name}")];
        if name == "node-agent" {
            // A node's hierarchies are its own from their roots on; with cgroup v2 its daemons' own
            // group, which holds them, could hold no Pods.
            argv.extend(["--cgroup-root", "/"].map(str::to_owned));
        }
        argv
    };
    let spec = |name: &str| DaemonSpec {
        name: name.to_owned(),
        argv: argv(name),
        env: env.clone(),
        // The one daemon that needs no privilege runs without any.
        user: (name == "control-plane").then_some(TRELLIS_USER),
    };
    names.into_iter().map(spec).collect()
}

/// Starts what belongs on the node.
pub fn start_daemons(backend: &dyn Backend, node: &Node) -> Result<()> {
    daemons_of(node).into_iter().try_for_each(|daemon| backend.start_daemon(&node.name, daemon))
}

/// The context that `cluster init` made, with the endpoints that this machine can reach.
fn take_context(backend: &dyn Backend, layout: &Layout) -> Result<ClusterContext> {
    let topology = backend.topology();
    let first = &topology.nodes[0].name;
    let path = layout.node(first).path("lab").join("config.json");
    let mut context = contexts::read(&path)?;
    context.endpoints = topology.control_planes().map(|n| backend.api_endpoint(&n.name)).collect();
    remove(&path)?;
    Ok(context)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Error::io(path.display().to_string()))
}

/// Waits until all nodes that run Pods are Ready.
pub fn wait_ready(api: &Api, topology: &Topology, progress: &Progress) -> Result<()> {
    let all: BTreeSet<&str> =
        topology.nodes.iter().filter(|n| n.roles.contains(&Role::Worker)).map(|n| n.name.as_str()).collect();
    let mut told = BTreeSet::new();
    wait::until("all nodes Ready", stretched(READY_LIMIT), || {
        let ready = api.ready_nodes().map_err(|e| e.to_string())?;
        for name in ready.into_iter().filter(|n| all.contains(n.as_str())) {
            if told.insert(name.clone()) {
                progress.done(&format!("{name} is Ready ({} of {})", told.len(), all.len()));
            }
        }
        let missing: Vec<_> = all.iter().filter(|n| !told.contains(**n)).copied().collect();
        progress.now(&format!("waiting for {}", missing.join(", ")));
        if missing.is_empty() { Ok(()) } else { Err(format!("not Ready: {}", missing.join(", "))) }
    })
}

/// Does `work` for each node on a thread of its own; the first error wins.
fn in_parallel(nodes: &[&Node], work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
        let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        results.into_iter().try_for_each(|r| r.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked)))
    })
}
