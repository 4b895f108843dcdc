//! `cluster`: making, joining and changing the cluster itself.

mod init;
mod join;
mod members;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use trellis_model::names;
use trellis_proto::node_config::{NodeConfig, Role, write_private};

use crate::cli::Global;
use crate::error::CliError;
use crate::machine::{ports, services};

pub const EXAMPLES: &str = "Examples:
  trellis cluster init --name home --advertise-address 192.168.1.10
  trellis cluster token create --ttl 1h
  trellis cluster join --token trellis.v1.… --server 192.168.1.10
  trellis cluster status
  trellis cluster members -o json
  trellis cluster remove n3            then stop its control plane, and empty its folders
  trellis cluster add n3               for one that has joined, but could not be reached then
  trellis cluster transfer-leader n2";

/// Label of Nodes that carry the control plane, as kubeadm sets it.
const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Arguments of `cluster`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Make a new cluster, with this machine as its first member
    Init(init::Args),
    /// Make this machine part of a cluster
    Join(join::Args),
    /// Join tokens
    Token {
        #[command(subcommand)]
        action: members::Token,
    },
    /// List the members of the control plane
    Members(members::List),
    /// Add a member that has joined already
    Add(members::Add),
    /// Remove a member
    Remove {
        /// Name or id
        member: String,
    },
    /// Let another member lead
    TransferLeader {
        /// Name or id; left out: the one that is most up to date
        member: Option<String>,
    },
    /// Show how the cluster is
    Status(members::List),
}

/// What `init` and `join` ask about this machine.
#[derive(clap::Args, Debug, Clone)]
struct Machine {
    /// Name of this machine's Node [default: the host's name]
    #[arg(long)]
    node_name: Option<String>,
    /// Address at which other machines reach this one [default: that of the default route]
    #[arg(long, value_name = "IP")]
    advertise_address: Option<IpAddr>,
    /// Where the configuration is written
    #[arg(long, default_value = "/etc/trellis", env = "TRELLIS_CONFIG_DIR", value_name = "DIR")]
    config_dir: PathBuf,
    /// Leave the services as they are: do not start them, now or at boot
    #[arg(long)]
    no_start: bool,
    /// Serve the API on this unix socket too
    #[arg(long, value_name = "PATH")]
    api_unix_socket: Option<PathBuf>,
    /// Labels of the Node, as in zone=a,disk=ssd
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Taints of the Node, as in dedicated=gpu:NoSchedule
    #[arg(long, value_delimiter = ',', value_name = "KEY[=VALUE]:EFFECT")]
    taints: Vec<String>,
    /// Registries spoken to over plain HTTP
    #[arg(long, value_delimiter = ',', value_name = "HOST[:PORT]")]
    insecure_registries: Vec<String>,
}

/// Does what was asked.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    match args.action {
        Action::Init(a) => init::run(global, &a),
        Action::Join(a) => join::run(&a).await,
        Action::Token { action } => members::token(global, action).await,
        Action::Members(a) => members::list(global, &a).await,
        Action::Add(a) => members::add(global, a).await,
        Action::Remove { member } => members::remove(global, member).await,
        Action::TransferLeader { member } => members::transfer(global, member.unwrap_or_default()).await,
        Action::Status(a) => members::status(global, &a).await,
    }
}

impl Machine {
    fn node_name(&self) -> Result<String, CliError> {
        let name = match &self.node_name {
            Some(n) => n.clone(),
            None => rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase(),
        };
        match names::check_dns1123_subdomain(&name).into_iter().next() {
            None => Ok(name),
            Some(why) => Err(CliError::Usage(format!("node name {name:?}: {why}; choose one with --node-name"))),
        }
    }

    /// The address given, or the one that the kernel would send from.
    fn address(&self) -> Result<IpAddr, CliError> {
        if let Some(ip) = self.advertise_address {
            if ip.is_unspecified() || ip.is_loopback() {
                return Err(CliError::Usage(format!(
                    "--advertise-address={ip}: other machines cannot reach this one there"
                )));
            }
            return Ok(ip);
        }
        // Connecting a UDP socket sends nothing; it makes the kernel choose (TEST-NET-1).
        let chosen = UdpSocket::bind("0.0.0.0:0")
            .and_then(|s| s.connect("192.0.2.1:9").and_then(|()| s.local_addr()))
            .map(|a| a.ip());
        match chosen {
            Ok(ip) if !ip.is_unspecified() && !ip.is_loopback() => Ok(ip),
            _ => Err(CliError::Usage(
                "this machine has no default route to guess its address from: give --advertise-address".into(),
            )),
        }
    }

    fn labels(&self, control_plane: bool) -> Result<BTreeMap<String, String>, CliError> {
        let mut out = BTreeMap::new();
        for text in &self.labels {
            let (k, v) =
                text.split_once('=').ok_or_else(|| CliError::Usage(format!("--labels {text}: expected KEY=VALUE")))?;
            let bad = names::check_qualified_name(k).into_iter().chain(names::check_label_value(v)).next();
            if let Some(why) = bad {
                return Err(CliError::Usage(format!("--labels {text}: {why}")));
            }
            out.insert(k.to_owned(), v.to_owned());
        }
        if control_plane {
            out.insert(CONTROL_PLANE_LABEL.to_owned(), String::new());
        }
        Ok(out)
    }

    fn taints(&self) -> Result<Vec<serde_json::Value>, CliError> {
        self.taints
            .iter()
            .map(|t| {
                let (left, effect) = t
                    .split_once(':')
                    .filter(|(_, e)| matches!(*e, "NoSchedule" | "PreferNoSchedule" | "NoExecute"))
                    .ok_or_else(|| CliError::Usage(format!("--taints {t}: expected KEY[=VALUE]:EFFECT")))?;
                let (key, value) = left.split_once('=').unwrap_or((left, ""));
                let mut taint = serde_json::json!({"key": key, "effect": effect});
                if !value.is_empty() {
                    taint["value"] = value.into();
                }
                Ok(taint)
            })
            .collect()
    }

    /// What this machine is already, if anything.
    fn existing(&self) -> Result<Option<NodeConfig>, CliError> {
        match NodeConfig::load(&self.config_dir) {
            Ok(c) => Ok(Some(c)),
            Err(e) if e.is_missing() => Ok(None),
            Err(e) => Err(CliError::local(e)),
        }
    }
}

fn host_port(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

fn api_address(ip: IpAddr) -> String {
    host_port(ip, trellis_proto::ports::API)
}

fn peer_address(ip: IpAddr) -> String {
    host_port(ip, trellis_proto::ports::PEER)
}

/// Refuses when a port is taken that a daemon of this machine will need: it would say so in its
/// log only. A configuration in a place of its own may be for another network namespace.
fn ports_free(config_dir: &Path, roles: &[Role]) -> Result<(), CliError> {
    if config_dir != Path::new(services::CONFIG_DIR) {
        return Ok(());
    }
    match ports::taken(roles) {
        none if none.is_empty() => Ok(()),
        some => Err(CliError::Local(format!("{}: stop that first; nothing was written", some.join("; ")))),
    }
}

/// Starts the services, where an installation brought them and they were wanted.
fn start(machine: &Machine) -> Result<bool, CliError> {
    if machine.no_start { Ok(false) } else { services::start(&machine.config_dir) }
}

/// Writes a file below the configuration folder, for its owner only.
fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), CliError> {
    let path = dir.join(name);
    write_private(&path, content).map_err(|e| CliError::Local(format!("{}: {e}", path.display())))
}

fn roles(control_plane: bool, worker: bool) -> Vec<Role> {
    let all = [(control_plane, Role::ControlPlane), (worker, Role::Worker)];
    all.into_iter().filter(|(on, _)| *on).map(|(_, r)| r).collect()
}

#[cfg(test)]
mod tests;
