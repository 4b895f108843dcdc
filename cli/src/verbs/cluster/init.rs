//! `cluster init`: the CA, the first member's certificates, and the administrator's context.
//!
//! node.json is written last: the daemons wait for it, so that they never see a half-made folder.

use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde_json::json;
use trellis_proto::client::{ClusterContext, Contexts};
use trellis_proto::identity::Identity;
use trellis_proto::node_config::{MemberAddress, NodeConfig, VERSION};
use trellis_proto::pki::{CertificateAuthority, Key, base64};

use super::{Machine, api_address, peer_address, ports_free, roles, start, write};
use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::machine::owners;
use crate::output;

/// Arguments of `cluster init`.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The cluster's name
    #[arg(long, default_value = "trellis")]
    name: String,
    #[command(flatten)]
    machine: Machine,
    /// Addresses of Pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: IpNetwork,
    /// Prefix length of each node's part of them
    #[arg(long, default_value = "24")]
    node_prefix: u8,
    /// Addresses of Services
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: IpNetwork,
    /// How long certificates live; daemons renew theirs at two thirds of it
    #[arg(long, value_parser = duration::seconds, default_value = "365d", value_name = "DURATION")]
    certificate_lifetime: u64,
    /// What runs here (repeatable) [default: both]
    #[arg(long, value_parser = ["control-plane", "worker"])]
    role: Vec<String>,
    /// File that the administrator's context goes into [default: as --config]
    #[arg(long, value_name = "FILE")]
    context_out: Option<PathBuf>,
    /// Name of the context [default: the cluster's]
    #[arg(long, value_name = "NAME")]
    context_name: Option<String>,
}

#[cfg(test)]
impl Args {
    pub fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }
}

/// A handshake or two must fit into the shortest; the CA ends after the longest.
const LIFETIME_SECONDS: std::ops::RangeInclusive<u64> = 10..=10 * 365 * 86_400;

/// Makes the cluster, once.
pub fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let m = &args.machine;
    let node = m.node_name()?;
    if let Some(c) = m.existing()? {
        if c.cluster_name == args.name && c.node_name == node {
            // A run that was interrupted after writing it may have left these undone.
            owners::settle(&m.config_dir)?;
            start(m)?;
            eprintln!("This machine already is node {node:?} of cluster {:?}; nothing was changed.", args.name);
            return Ok(());
        }
        return Err(CliError::Local(format!(
            "{} says that this machine is node {:?} of cluster {:?}: `trellis node reset` undoes that, to make another cluster",
            NodeConfig::path(&m.config_dir).display(),
            c.node_name,
            c.cluster_name
        )));
    }
    check(args)?;
    let worker = args.role.is_empty() || args.role.iter().any(|r| r == "worker");
    let ip = m.address()?;
    let config = NodeConfig {
        version: VERSION,
        node_name: node.clone(),
        cluster_name: args.name.clone(),
        advertise_address: ip,
        members: vec![MemberAddress {
            id: 1,
            name: node.clone(),
            api_address: api_address(ip),
            peer_address: peer_address(ip),
        }],
        roles: roles(true, worker),
        api_unix_socket: m.api_unix_socket.clone(),
        labels: m.labels(true)?,
        taints: m.taints()?,
        insecure_registries: m.insecure_registries.clone(),
    };
    ports_free(&m.config_dir, &config.roles)?;
    let ca = CertificateAuthority::create(&args.name).map_err(CliError::local)?;
    secrets(args, &ca, &node)?;
    let (name, path) = context(global, args, &ca, &config)?;
    config.store(&m.config_dir).map_err(CliError::local)?;
    owners::settle(&m.config_dir)?;
    output::print(&format!("cluster {:?} initialised on node {node:?}\n", args.name))?;
    let daemons = if worker {
        "trellis-netd, trellis-control-plane and trellis-node-agent"
    } else {
        "trellis-netd and trellis-control-plane"
    };
    eprintln!(
        "Context {name:?} is in {} and is the current one.\n{}\n  \
         trellis cluster token create      a token for another machine\n  \
         trellis get nodes",
        path.display(),
        if start(m)? { format!("{daemons} start. Then:") } else { format!("Start {daemons} here, then:") }
    );
    Ok(())
}

fn check(args: &Args) -> Result<(), CliError> {
    if !args.role.is_empty() && !args.role.iter().any(|r| r == "control-plane") {
        return Err(CliError::Usage(
            "the first machine carries the control plane: --role must include control-plane".into(),
        ));
    }
    let why = trellis_model::names::check_dns1123_label(&args.name).into_iter().next();
    if let Some(why) = why {
        return Err(CliError::Usage(format!("--name {:?}: {why}", args.name)));
    }
    let lifetime = args.certificate_lifetime;
    if !LIFETIME_SECONDS.contains(&lifetime) {
        return Err(CliError::Usage(format!(
            "--certificate-lifetime: {lifetime} s is not between {} s and ten years, the CA's own life",
            LIFETIME_SECONDS.start()
        )));
    }
    let (pods, services) = (args.pod_cidr, args.service_cidr);
    let most = if pods.is_ipv4() { 30 } else { 126 };
    if args.node_prefix < pods.prefix() || args.node_prefix > most {
        return Err(CliError::Usage(format!(
            "--node-prefix={}: must be between {} (the Pod CIDR's) and {most}",
            args.node_prefix,
            pods.prefix()
        )));
    }
    let overlap = pods.contains(services.network()) || services.contains(pods.network());
    if overlap {
        return Err(CliError::Usage(format!("--pod-cidr {pods} and --service-cidr {services} overlap")));
    }
    Ok(())
}

fn secrets(args: &Args, ca: &CertificateAuthority, node: &str) -> Result<(), CliError> {
    let dir = &args.machine.config_dir;
    let kek = Key::generate();
    write(dir, "pki/ca.crt", ca.certificate_pem().as_bytes())?;
    let lifetime = Duration::from_secs(args.certificate_lifetime);
    for (name, identity) in [
        ("member", Identity::Member(node.to_owned())),
        ("agent", Identity::Agent(node.to_owned())),
        ("netd", Identity::Netd(node.to_owned())),
    ] {
        let made = ca.issue_for(&identity, lifetime).map_err(CliError::local)?;
        write(dir, &format!("pki/{name}.key"), made.key_pem.as_bytes())?;
        write(dir, &format!("pki/{name}.crt"), made.pem.as_bytes())?;
    }
    write(dir, "keys/kek", kek.to_hex().as_bytes())?;
    write(dir, "keys/gossip", Key::generate().to_hex().as_bytes())?;
    let bootstrap = json!({
        "version": 1,
        "cluster_name": args.name,
        "pod_cidr": args.pod_cidr.to_string(),
        "node_prefix": args.node_prefix,
        "service_cidr": args.service_cidr.to_string(),
        "certificate_lifetime_seconds": args.certificate_lifetime,
        "ca_key_sealed": base64(&ca.seal_key(&kek)),
    });
    write(dir, "bootstrap.json", format!("{bootstrap:#}\n").as_bytes())
}

/// The administrator's context, put into its file and made current.
fn context(
    global: &Global,
    args: &Args,
    ca: &CertificateAuthority,
    config: &NodeConfig,
) -> Result<(String, PathBuf), CliError> {
    let admin = ca.issue(&Identity::admin()).map_err(CliError::local)?;
    let path = args.context_out.clone().or_else(|| global.config.clone()).unwrap_or_else(Contexts::default_path);
    let name = args.context_name.clone().unwrap_or_else(|| args.name.clone());
    let socket = args.machine.api_unix_socket.iter().map(|p| format!("unix://{}", p.display()));
    let endpoints = socket.chain(config.api_endpoints()).collect();
    let context = ClusterContext {
        endpoints,
        ca: ca.certificate_pem().to_owned(),
        certificate: admin.pem,
        key: admin.key_pem.to_string(),
        namespace: "default".to_owned(),
    };
    Contexts::change(&path, |all| -> Result<(), CliError> {
        all.contexts.insert(name.clone(), context);
        all.current.clone_from(&name);
        Ok(())
    })?;
    Ok((name, path))
}
