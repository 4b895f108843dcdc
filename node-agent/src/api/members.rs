//! Where the control plane is: what gossip says now, what the members themselves say from time to
//! time, and what node.json remembers. A machine that joined when there was one member must find
//! the others when that one dies a second later.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;
use tonic::transport::Endpoint;
use trellis_proto::{
    api::{StatusRequest, cluster_client::ClusterClient},
    client::Connection,
    netd::{Liveness, MembershipView, WatchRequest, membership_client::MembershipClient},
    node_config::{MemberAddress, NodeConfig, Role},
};

/// Gossip tells of changes at once; this is for what gossip cannot tell: members that were
/// removed, and what is to be remembered for the next start.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// A machine that gossip has just shown becomes a member within moments.
const SETTLED: Duration = Duration::from_secs(2);
/// Between two tries to reach netd's socket.
const RETRY: Duration = Duration::from_millis(500);
/// A frozen netd keeps its socket open: only an unanswered ping tells.
const KEEPALIVE: Duration = Duration::from_millis(500);

/// The members to dial: this machine's own over its socket first, then those that gossip shows
/// alive, then those remembered.
pub fn endpoints(config: &NodeConfig, gossiped: &BTreeSet<String>) -> Vec<String> {
    let local = config.api_unix_socket.iter().map(|p| format!("unix://{}", p.display()));
    let alive = gossiped.iter().map(|address| format!("https://{address}"));
    let mut all: Vec<String> = Vec::new();
    for endpoint in local.chain(alive).chain(config.api_endpoints()) {
        if !all.contains(&endpoint) {
            all.push(endpoint);
        }
    }
    all
}

/// Keeps the connection's endpoints right, for ever.
pub async fn follow(config_dir: PathBuf, run_dir: PathBuf, mut config: NodeConfig, conn: Connection) {
    let (send, mut gossiped) = watch::channel(BTreeSet::new());
    tokio::spawn(follow_gossip(run_dir.join("netd-public/membership.sock"), send));
    let mut stored = config.members.clone();
    let mut ask = tokio::time::interval(ASK_EVERY);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ask.tick() => ask_members(&config_dir, (&mut config, &mut stored), &conn).await,
            changed = gossiped.changed() => {
                if changed.is_err() {
                    return;
                }
                ask.reset_after(SETTLED);
            }
        }
        conn.set_endpoints(endpoints(&config, &gossiped.borrow_and_update()));
    }
}

/// Takes over what the members say, and writes it down where this was not done yet.
async fn ask_members(
    config_dir: &Path,
    (config, stored): (&mut NodeConfig, &mut Vec<MemberAddress>),
    conn: &Connection,
) {
    let call = conn.call(|chan| async move { ClusterClient::new(chan).status(StatusRequest {}).await });
    // Nobody answers: what is known stays.
    let Ok(reply) = call.await else { return };
    let members = reply.into_inner().members.into_iter().filter(|m| !m.api_address.is_empty());
    let mut members: Vec<MemberAddress> = members
        .map(|m| MemberAddress { id: m.id, name: m.name, api_address: m.api_address, peer_address: m.peer_address })
        .collect();
    members.sort_by_key(|m| m.id);
    if members.is_empty() {
        return;
    }
    config.members = members;
    // Beside a member it is the member that keeps the file.
    if config.roles.contains(&Role::ControlPlane) || config.members == *stored {
        return;
    }
    match NodeConfig::store_members(config_dir, &config.members) {
        Ok(()) => stored.clone_from(&config.members),
        Err(error) => tracing::warn!(%error, "node.json does not follow the membership"),
    }
}

async fn follow_gossip(socket: PathBuf, send: watch::Sender<BTreeSet<String>>) {
    loop {
        if let Err(error) = views(&socket, &send).await {
            tracing::debug!(socket = %socket.display(), %error, "no gossip view");
        }
        tokio::select! {
            () = send.closed() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn views(
    socket: &Path,
    send: &watch::Sender<BTreeSet<String>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let mut stream = MembershipClient::new(endpoint.connect().await?).watch(WatchRequest {}).await?.into_inner();
    while let Some(view) = stream.message().await? {
        let alive = alive(&view);
        send.send_if_modified(|known| {
            let changed = *known != alive;
            *known = alive;
            changed
        });
    }
    Ok(())
}

/// API addresses of machines that are not known to be dead.
fn alive(view: &MembershipView) -> BTreeSet<String> {
    let living = view.members.iter().filter(|m| m.liveness() != Liveness::Dead);
    living.flat_map(|m| m.api_addresses.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use trellis_proto::netd::MemberState;

    fn config() -> NodeConfig {
        serde_json::from_value(serde_json::json!({
            "version": 1, "node_name": "n4", "cluster_name": "c", "advertise_address": "172.30.0.14",
            "members": [{"id": 1, "name": "n1", "api_address": "172.30.0.11:6443", "peer_address": "172.30.0.11:2380"}],
            "roles": ["worker"],
        }))
        .unwrap()
    }

    #[test]
    fn the_living_come_before_the_remembered_and_each_once() {
        let member = |last: u8, liveness: Liveness| MemberState {
            api_addresses: vec![format!("172.30.0.{last}:6443")],
            liveness: liveness.into(),
            ..MemberState::default()
        };
        let members = vec![member(11, Liveness::Dead), member(12, Liveness::Alive), member(13, Liveness::Suspect)];
        let found = alive(&MembershipView { members, healthy: true });
        assert_eq!(
            endpoints(&config(), &found),
            ["https://172.30.0.12:6443", "https://172.30.0.13:6443", "https://172.30.0.11:6443"]
        );
        assert_eq!(endpoints(&config(), &BTreeSet::new()), ["https://172.30.0.11:6443"]);
    }
}
