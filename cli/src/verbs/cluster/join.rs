//! `cluster join`: redeem a token for this machine's certificates.
//!
//! The keys are made and kept before the call: when its answer is lost, running the command again
//! sends the same requests, which the server may answer again. node.json is written last.

use std::time::{Duration, SystemTime};

use serde_json::json;
use trellis_proto::api::{JoinReply, JoinRequest, cluster_client::ClusterClient};
use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::node_config::{MemberAddress, NodeConfig, VERSION};
use trellis_proto::pki::{self, Key};
use trellis_proto::tls::ClientTls;

use super::{Machine, api_address, peer_address, ports_free, roles, start, write};
use crate::error::CliError;
use crate::machine::owners;
use crate::output;

/// Keys and requests of a join whose answer has not come yet.
const PENDING: &str = "pki/join-pending.json";

/// How far this machine's clock may be from the control plane's. Certificates forgive an hour
/// ([`pki::CLOCK_SKEW`]); half of it is left for clocks that drift later.
const CLOCK_OFF: Duration = Duration::from_secs(1_800);

/// Arguments of `cluster join`.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The token of `trellis cluster token create`
    #[arg(long, env = "TRELLIS_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// A member of the control plane: ADDRESS[:PORT] or unix:///PATH (repeatable)
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDRESS")]
    server: Vec<String>,
    #[command(flatten)]
    machine: Machine,
    /// Become a member of the control plane too
    #[arg(long)]
    control_plane: bool,
    /// Run no Pods here
    #[arg(long)]
    no_worker: bool,
}

struct Pending {
    request: JoinRequest,
    /// (file name without ending, key PEM)
    keys: Vec<(&'static str, String)>,
}

/// Joins, once.
pub async fn run(args: &Args) -> Result<(), CliError> {
    let m = &args.machine;
    let node = m.node_name()?;
    if let Some(c) = m.existing()? {
        if c.node_name == node {
            // A run that was interrupted after writing it may have left these undone.
            owners::settle(&m.config_dir)?;
            start(m)?;
            eprintln!("This machine already is node {node:?} of cluster {:?}; nothing was changed.", c.cluster_name);
            return Ok(());
        }
        return Err(CliError::Local(format!(
            "{} says that this machine is node {:?} of cluster {:?}: `trellis node reset` undoes that, to join as another",
            NodeConfig::path(&m.config_dir).display(),
            c.node_name,
            c.cluster_name
        )));
    }
    let hash = ca_hash(&args.token)?;
    ports_free(&m.config_dir, &roles(args.control_plane, !args.no_worker))?;
    let tls = ClientTls::pinned(hash).map_err(CliError::local)?;
    let pending = pending(args, &node)?;
    let conn = Connection::new(args.server.iter().map(|s| endpoint(s)).collect(), tls);
    let reply = conn
        .call(|c| {
            let request = pending.request.clone();
            async move { ClusterClient::new(c).join(request).await }
        })
        .await?
        .into_inner();
    let told = pki::fingerprint(&reply.ca_certificate).map_err(CliError::local)?;
    if !told.eq_ignore_ascii_case(hash) {
        return Err(CliError::Local("the server's CA is not the one that the token names: nothing was written".into()));
    }
    clock_agrees(&reply, SystemTime::now())?;
    store(args, &node, &pending, &reply)?;
    output::print(&format!("node {node:?} joined cluster {:?}\n", reply.cluster_name))?;
    let daemons = match (args.control_plane, args.no_worker) {
        (true, true) => "trellis-netd and trellis-control-plane",
        (true, false) => "trellis-netd, trellis-control-plane and trellis-node-agent",
        (false, _) => "trellis-netd and trellis-node-agent",
    };
    owners::settle(&m.config_dir)?;
    if start(m)? {
        eprintln!("{daemons} start; they wait for each other.");
    } else {
        eprintln!("Start {daemons} here; they wait for each other.");
    }
    Ok(())
}

/// The certificates were signed a moment ago: what this machine's clock says else is its error. It is told here,
/// where somebody looks, rather than later by daemons that find others' certificates not valid yet.
pub fn clock_agrees(reply: &JoinReply, now: SystemTime) -> Result<(), CliError> {
    let signed = pki::signed_at(&reply.netd_certificate).map_err(CliError::local)?;
    let (off, which) = match now.duration_since(signed) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(e) => (e.duration(), "behind"),
    };
    if off <= CLOCK_OFF {
        return Ok(());
    }
    Err(CliError::Local(format!(
        "this machine's clock is {} minutes {which} the control plane's: nothing was written; set it (`timedatectl \
         set-ntp true`, or `date -s`) and run the same command again: the token still holds for it",
        off.as_secs() / 60
    )))
}

/// The CA's hash in a token `trellis.v1.<id>.<secret>.<hash>`.
pub fn ca_hash(token: &str) -> Result<&str, CliError> {
    let parts: Vec<&str> = token.trim().split('.').collect();
    match parts.as_slice() {
        ["trellis", "v1", id, secret, hash]
            if !id.is_empty()
                && !secret.is_empty()
                && hash.len() == 64
                && hash.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            Ok(hash)
        }
        ["trellis", v, ..] if *v != "v1" => {
            Err(CliError::Usage(format!("the token has format {v}, this release reads v1: install a newer release")))
        }
        _ => Err(CliError::Usage(
            "the token is not whole: it looks like trellis.v1.ID.SECRET.HASH; make one with `trellis cluster token create`"
                .into(),
        )),
    }
}

/// `10.0.0.1`, `10.0.0.1:6443`, `[fd00::1]:6443`, `https://…` and `unix:///…` as the client takes
/// them.
pub fn endpoint(server: &str) -> String {
    if server.starts_with("unix://") || server.starts_with("https://") {
        return server.to_owned();
    }
    match server.parse::<std::net::IpAddr>() {
        Ok(ip) => format!("https://{}", api_address(ip)),
        Err(_) => format!("https://{server}"),
    }
}

fn pending(args: &Args, node: &str) -> Result<Pending, CliError> {
    let m = &args.machine;
    let ip = m.address()?;
    if let Some(p) = resumed(args, node) {
        return Ok(p);
    }
    let mut keys = Vec::new();
    let mut csr = |wanted: bool, file: &'static str, profile: Identity| -> Result<String, CliError> {
        if !wanted {
            return Ok(String::new());
        }
        let made = pki::request(&profile).map_err(CliError::local)?;
        keys.push((file, made.key_pem.to_string()));
        Ok(made.pem)
    };
    let member = args.control_plane;
    let request = JoinRequest {
        token: args.token.trim().to_owned(),
        node_name: node.to_owned(),
        agent_csr: csr(!args.no_worker, "agent", Identity::Agent(node.to_owned()))?,
        netd_csr: csr(true, "netd", Identity::Netd(node.to_owned()))?,
        member_csr: csr(member, "member", Identity::Member(node.to_owned()))?,
        api_address: if member { api_address(ip) } else { String::new() },
        peer_address: if member { peer_address(ip) } else { String::new() },
    };
    let kept = json!({
        "version": 1,
        "token": request.token,
        "node_name": request.node_name,
        "agent_csr": request.agent_csr,
        "netd_csr": request.netd_csr,
        "member_csr": request.member_csr,
        "api_address": request.api_address,
        "peer_address": request.peer_address,
        "keys": keys.iter().map(|(f, k)| ((*f).to_owned(), json!(k))).collect::<serde_json::Map<_, _>>(),
    });
    write(&m.config_dir, PENDING, kept.to_string().as_bytes())?;
    Ok(Pending { request, keys })
}

/// An earlier run with the same token and the same wishes.
fn resumed(args: &Args, node: &str) -> Option<Pending> {
    let bytes = std::fs::read(args.machine.config_dir.join(PENDING)).ok()?;
    let v: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let text = |f: &str| v[f].as_str().unwrap_or_default().to_owned();
    let request = JoinRequest {
        token: text("token"),
        node_name: text("node_name"),
        agent_csr: text("agent_csr"),
        netd_csr: text("netd_csr"),
        member_csr: text("member_csr"),
        api_address: text("api_address"),
        peer_address: text("peer_address"),
    };
    let same = request.token == args.token.trim()
        && request.node_name == node
        && request.agent_csr.is_empty() == args.no_worker
        && request.member_csr.is_empty() != args.control_plane;
    let mut keys = Vec::new();
    for file in ["agent", "netd", "member"] {
        if let Some(k) = v["keys"][file].as_str() {
            keys.push((file, k.to_owned()));
        }
    }
    (same && v["version"] == 1).then_some(Pending { request, keys })
}

fn store(args: &Args, node: &str, pending: &Pending, reply: &JoinReply) -> Result<(), CliError> {
    let m = &args.machine;
    let dir = &m.config_dir;
    write(dir, "pki/ca.crt", reply.ca_certificate.as_bytes())?;
    for (file, key) in &pending.keys {
        let certificate = match *file {
            "agent" => &reply.agent_certificate,
            "netd" => &reply.netd_certificate,
            _ => &reply.member_certificate,
        };
        if certificate.is_empty() {
            return Err(CliError::Local(format!(
                "the server gave no certificate for {file}: is the token one with --control-plane?"
            )));
        }
        write(dir, &format!("pki/{file}.key"), key.as_bytes())?;
        write(dir, &format!("pki/{file}.crt"), certificate.as_bytes())?;
    }
    let key = |bytes: &[u8]| Key::from_bytes(bytes).map_err(CliError::local);
    write(dir, "keys/gossip", key(&reply.gossip_key)?.to_hex().as_bytes())?;
    if args.control_plane {
        write(dir, "keys/kek", key(&reply.key_encryption_key)?.to_hex().as_bytes())?;
    }
    let ip = m.address()?;
    let mut members: Vec<MemberAddress> = reply
        .members
        .iter()
        .map(|p| MemberAddress {
            id: p.id,
            name: p.name.clone(),
            api_address: p.api_address.clone(),
            peer_address: p.peer_address.clone(),
        })
        .collect();
    if args.control_plane && !members.iter().any(|p| p.id == reply.member_id) {
        members.push(MemberAddress {
            id: reply.member_id,
            name: node.to_owned(),
            api_address: api_address(ip),
            peer_address: peer_address(ip),
        });
    }
    let config = NodeConfig {
        version: VERSION,
        node_name: node.to_owned(),
        cluster_name: reply.cluster_name.clone(),
        advertise_address: ip,
        members,
        roles: roles(args.control_plane, !args.no_worker),
        api_unix_socket: m.api_unix_socket.clone(),
        labels: m.labels(args.control_plane)?,
        taints: m.taints()?,
        insecure_registries: m.insecure_registries.clone(),
    };
    config.store(dir).map_err(CliError::local)?;
    // Spent: what it held stands in the files now.
    let _ = std::fs::remove_file(dir.join(PENDING));
    Ok(())
}
