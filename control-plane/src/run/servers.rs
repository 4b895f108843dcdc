//! The ports: what is served where, to whom.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};
use trellis_proto::api::cluster_server::ClusterServer;
use trellis_proto::api::images_server::ImagesServer;
use trellis_proto::api::nodes_server::NodesServer;
use trellis_proto::api::pods_server::PodsServer;
use trellis_proto::api::resources_server::ResourcesServer;
use trellis_proto::identity::Identity;
use trellis_proto::server::{Incoming, Listen, listen};
use trellis_proto::tls::{ClientAuth, server_config};

use super::RunError;
use crate::api::agents::Agents;
use crate::api::cluster::ClusterService;
use crate::api::images::ImagesService;
use crate::api::nodes::NodesService;
use crate::api::ops::Ops;
use crate::api::oversize::{MAX_REQUEST_BYTES, name_the_limit};
use crate::api::pods::PodsService;
use crate::api::resources::ResourcesService;
use crate::api::session::{Limits, caller, forbidden, require_identity};
use crate::auth::Caller;
use crate::config::Settings;
use crate::raft::{Consensus, PeerServices};

/// A peer that lost power sends no FIN: it is asked twice a second …
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
/// … and has this long to answer. Not longer: what a node that is cut off one way has sent arrives late, and a lease
/// that is heard late makes it Ready once more.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a member asks itself whether it has lost the others.
const LOOK_AT_HEALTH: Duration = Duration::from_millis(500);
/// Streams of one connection: all calls and watches of a client, and then some.
const STREAMS: u32 = 4_096;
/// Flow-control windows: a stream of Pods must not wait for the peer every 64 KiB.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(trellis_proto::patience::stretched(KEEPALIVE_TIMEOUT)))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

async fn open(at: &Listen, settings: &Settings, auth: ClientAuth) -> Result<Incoming, RunError> {
    let tls = server_config(&settings.credentials, auth)?;
    let name = || match at {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => path.display().to_string(),
    };
    listen(at, tls).await.map_err(|source| RunError::Listen { at: name(), source })
}

fn serve(routes: Routes, incoming: Incoming, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
    let stop = stop.clone().cancelled_owned();
    let naming = tower::util::MapResponseLayer::new(name_the_limit);
    let serving = server().layer(naming).add_routes(routes).serve_with_incoming_shutdown(incoming, stop);
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "a server ended");
        }
    });
}

/// Only members speak Raft: another role's certificate opens the connection, and no more.
fn members_only(request: Request<()>) -> Result<Request<()>, Status> {
    match caller(&request)? {
        Caller::Peer(Identity::Member(_)) => Ok(request),
        other => Err(forbidden(&other, "speaking to the control plane's peers")),
    }
}

/// Port 2380.
pub(super) async fn serve_peers(
    settings: &Settings,
    at: SocketAddr,
    peers: PeerServices,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<(), RunError> {
    let incoming = open(&Listen::Tcp(at), settings, ClientAuth::Required).await?;
    let routes = Routes::new(InterceptedService::new(peers.raft, members_only))
        .add_service(InterceptedService::new(peers.leader, members_only));
    serve(routes, incoming, stop, tasks);
    Ok(())
}

/// Port 6443, and the unix socket, where there is one.
pub(super) async fn serve_api(
    settings: &Settings,
    at: SocketAddr,
    consensus: &Consensus,
    ops: &Ops,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<(), RunError> {
    let routes = api_routes(settings, consensus, ops, stop, tasks)?;
    let incoming = open(&Listen::Tcp(at), settings, ClientAuth::Optional).await?;
    serve(routes.clone(), incoming, stop, tasks);
    if let Some(path) = &settings.node.api_unix_socket {
        let incoming = open(&Listen::Unix(path.clone()), settings, ClientAuth::Optional).await?;
        serve(routes, incoming, stop, tasks);
    }
    Ok(())
}

/// Without a leader, or cut off from the others, this member answers stale reads only.
async fn tell_health(health: tonic_health::server::HealthReporter, consensus: Consensus, stop: CancellationToken) {
    let mut leadership = consensus.leadership();
    loop {
        let led = leadership.borrow_and_update().leader_id.is_some();
        if led && consensus.cut_off().is_none() {
            health.set_serving::<ResourcesServer<ResourcesService>>().await;
        } else {
            health.set_not_serving::<ResourcesServer<ResourcesService>>().await;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            // Nobody tells a member that it is cut off.
            () = tokio::time::sleep(LOOK_AT_HEALTH) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn api_routes(
    settings: &Settings,
    consensus: &Consensus,
    ops: &Ops,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<Routes, RunError> {
    let limits = Limits::default();
    let credentials = settings.credentials.clone();
    let agents = Agents::new(ops.clone(), credentials.clone());
    let cluster =
        ClusterService::new(ops.clone(), consensus.clone(), limits.clone(), credentials, settings.gossip_key.clone());
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(trellis_proto::DESCRIPTORS)
        .build_v1()
        .map_err(|e| RunError::Reflection(e.to_string()))?;
    let (health, health_service) = tonic_health::server::health_reporter();
    tasks.spawn(tell_health(health, consensus.clone(), stop.clone()));
    let resources = ResourcesService::new(ops.clone(), limits.clone(), consensus.leadership(), stop.clone());
    let resources = ResourcesServer::new(resources).max_decoding_message_size(MAX_REQUEST_BYTES);
    Ok(Routes::new(resources)
        .add_service(ClusterServer::new(cluster))
        .add_service(NodesServer::new(NodesService::new(consensus.clone(), limits.clone())))
        .add_service(PodsServer::new(PodsService::new(agents.clone(), limits.clone())))
        .add_service(ImagesServer::new(ImagesService::new(agents, limits)))
        .add_service(InterceptedService::new(health_service, require_identity))
        .add_service(InterceptedService::new(reflection, require_identity)))
}
