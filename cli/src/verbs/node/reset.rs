//! `node reset`: what `cluster init` or `cluster join` and the daemons have made on this machine is
//! taken away again. The cluster is not asked: it may be gone, or this machine cut off from it.

use std::fs;
use std::io::{BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use trellis_proto::node_config::NodeConfig;

use crate::error::CliError;
use crate::machine::services;
use crate::output;

/// What lies in the configuration folder; anything else in it is not ours.
const CONFIGURATION: &[&str] = &["node.json", "bootstrap.json", "bootstrap.json.done", "pki", "keys"];
const DATA: &[&str] = &["control-plane", "node-agent", "netd"];
/// Sockets and folders of a running node. Where an installation made the folders, it makes them
/// again at the next boot.
const RUN: &[&str] = &["shims", "agent", "netd/attach.sock", "netd/handoff.sock", "netd-public/membership.sock"];

/// Arguments of `node reset`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Keep images, logs, and the Raft log
    #[arg(long)]
    keep_data: bool,
    /// Seconds that containers may take to end before they are killed
    #[arg(long, default_value_t = 20)]
    grace_period: u64,
    /// Where the configuration is
    #[arg(long, default_value = "/etc/trellis", env = "TRELLIS_CONFIG_DIR", value_name = "DIR")]
    config_dir: PathBuf,
    /// Where the data is
    #[arg(long, default_value = "/var/lib/trellis", value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the sockets are
    #[arg(long, default_value = "/run/trellis", env = "TRELLIS_RUN_DIR", value_name = "DIR")]
    run_dir: PathBuf,
}

/// Resets, step by step, each said when it is done.
pub fn run(args: &Args) -> Result<(), CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::Usage("ending Pods and removing a node's files is root's to do: use sudo".into()));
    }
    let node = NodeConfig::load(&args.config_dir).ok();
    if node.is_none() && !anything_left(args) {
        eprintln!("This machine is no node, and nothing of one is left; nothing was changed.");
        return Ok(());
    }
    if !args.yes {
        confirm(args, node.as_ref())?;
    }
    if services::installed() {
        services::stop()?;
        output::print("stopped the services\n")?;
    }
    end_pods(args)?;
    withdraw_network(args)?;
    for name in CONFIGURATION {
        remove(&args.config_dir.join(name))?;
    }
    output::print(&format!("removed the configuration and keys in {}\n", args.config_dir.display()))?;
    for name in RUN {
        remove(&args.run_dir.join(name))?;
    }
    if args.keep_data {
        output::print(&format!("kept the data in {}\n", args.data_dir.display()))?;
    } else {
        DATA.iter().try_for_each(|name| remove(&args.data_dir.join(name)))?;
        output::print(&format!("removed the data in {}\n", args.data_dir.display()))?;
    }
    if let Some(node) = node {
        eprintln!("{}", afterwards(&node));
    }
    Ok(())
}

fn anything_left(args: &Args) -> bool {
    let data = !args.keep_data && DATA.iter().any(|name| args.data_dir.join(name).exists());
    data || CONFIGURATION.iter().any(|name| args.config_dir.join(name).exists())
        || ["shims", "agent"]
            .iter()
            .any(|name| fs::read_dir(args.run_dir.join(name)).is_ok_and(|mut entries| entries.next().is_some()))
}

fn confirm(args: &Args, node: Option<&NodeConfig>) -> Result<(), CliError> {
    let who = node.map_or_else(
        || "What is left of a node on this machine".to_owned(),
        |n| format!("Node {:?} of cluster {:?}", n.node_name, n.cluster_name),
    );
    let data = if args.keep_data { "" } else { ", and its data: images, logs, and on a member the Raft log" };
    let question = format!("{who} will be removed: its Pods, network, configuration and keys{data}.");
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Usage(format!("{question} Say --yes to do it without being asked")));
    }
    eprint!("{question} Go on? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(CliError::local)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CliError::Local("nothing was changed".into()))
}

fn end_pods(args: &Args) -> Result<(), CliError> {
    let mut command = daemon(args, "trellis-node-agent", "node-agent")?;
    // Pods are looked for below the root that the service gives the agent.
    if services::installed() {
        command.args(["--cgroup-root", services::POD_CGROUP]);
    }
    command.args(["end-pods", "--remove", "--grace-seconds", &args.grace_period.to_string()]);
    told(command)
}

fn withdraw_network(args: &Args) -> Result<(), CliError> {
    let mut command = daemon(args, "trellis-netd", "netd")?;
    command.arg("withdraw");
    told(command)
}

fn daemon(args: &Args, name: &str, data: &str) -> Result<Command, CliError> {
    let program = services::program(name).ok_or_else(|| {
        CliError::Local(format!(
            "{name} is neither beside this program nor in /usr/lib/trellis or /usr/local/lib/trellis"
        ))
    })?;
    let mut command = Command::new(program);
    command.arg("--data-dir").arg(args.data_dir.join(data)).arg("--run-dir").arg(&args.run_dir);
    Ok(command)
}

/// Runs it; what it prints is this program's output.
fn told(mut command: Command) -> Result<(), CliError> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| CliError::Local(format!("{shown}: {e}")))?;
    if status.success() { Ok(()) } else { Err(CliError::Local(format!("{shown}: {status}: see above"))) }
}

fn remove(path: &Path) -> Result<(), CliError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(CliError::Local(format!("cannot remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// What the rest of the cluster has to be told.
fn afterwards(node: &NodeConfig) -> String {
    let name = &node.node_name;
    let others = node.members.iter().any(|m| m.name != *name);
    if node.is_control_plane() && !others {
        return format!("It was the only member: cluster {:?} is no more.", node.cluster_name);
    }
    let member = if node.is_control_plane() { format!("  trellis cluster remove {name}\n") } else { String::new() };
    format!(
        "Tell cluster {:?}, wherever you have its context:\n{member}  trellis delete node {name}",
        node.cluster_name
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use trellis_proto::node_config::{MemberAddress, Role, VERSION};

    fn node(roles: &[Role], members: &[&str]) -> NodeConfig {
        let member = |(i, n): (usize, &&str)| MemberAddress {
            id: i as u64 + 1,
            name: (*n).to_owned(),
            api_address: String::new(),
            peer_address: String::new(),
        };
        NodeConfig {
            version: VERSION,
            node_name: "n1".into(),
            cluster_name: "c".into(),
            advertise_address: "172.30.0.11".parse().unwrap(),
            members: members.iter().enumerate().map(member).collect(),
            roles: roles.to_vec(),
            api_unix_socket: None,
            labels: Default::default(),
            taints: vec![],
            insecure_registries: vec![],
        }
    }

    #[test]
    fn the_rest_of_the_cluster_is_told_what_is_true_of_it() {
        let worker = afterwards(&node(&[Role::Worker], &["n2"]));
        assert!(worker.contains("delete node n1") && !worker.contains("cluster remove"), "{worker}");
        let member = afterwards(&node(&[Role::ControlPlane, Role::Worker], &["n1", "n2"]));
        assert!(member.contains("cluster remove n1") && member.contains("delete node n1"), "{member}");
        let last = afterwards(&node(&[Role::ControlPlane], &["n1"]));
        assert!(last.contains("is no more") && !last.contains("delete node"), "{last}");
    }
}
