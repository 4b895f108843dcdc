//! Follows the local netd's membership view over its unix socket, for ever.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use trellis_proto::netd::membership_client::MembershipClient;
use trellis_proto::netd::{Liveness as WireLiveness, MembershipView, WatchRequest};

use super::gossip::{GossipView, SharedGossip};

/// Short, since a leader without gossip hands over after 3 s.
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// A frozen netd keeps its socket open: only an unanswered ping tells.
const KEEPALIVE: Duration = Duration::from_millis(500);
/// Not to fill the log while netd is being installed.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// As many members as there may be leases.
const MAX_MEMBERS: usize = super::leases::MAX_LEASES;

/// The socket's place below the run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("netd-public").join("membership.sock")
}

/// Runs until `stop`. Never fails: netd may come, go and be absent.
pub async fn run(run_dir: PathBuf, shared: SharedGossip, stop: CancellationToken) {
    let path = socket_path(&run_dir);
    let mut complained: Option<Instant> = None;
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = follow(&path, &shared) => result,
        };
        shared.lost(Instant::now());
        let why = match result {
            Ok(()) => "netd closed the stream".to_owned(),
            Err(why) => why,
        };
        if complained.is_none_or(|t| t.elapsed() >= COMPLAIN_EVERY) {
            complained = Some(Instant::now());
            tracing::info!(socket = %path.display(), %why, "no gossip view: waiting for netd");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_EVERY) => {}
        }
    }
}

async fn follow(path: &Path, shared: &SharedGossip) -> Result<(), String> {
    let target = format!("unix://{}", path.display());
    let endpoint = Endpoint::from_shared(target)
        .map_err(|e| format!("{} is no socket address: {e}", path.display()))?
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(trellis_proto::patience::stretched(KEEPALIVE))
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|e| describe(&e))?;
    let mut client = MembershipClient::new(channel).max_decoding_message_size(16 << 20);
    let reply = client.watch(WatchRequest {}).await.map_err(|s| s.to_string())?;
    let mut stream = reply.into_inner();
    let mut first = true;
    while let Some(view) = stream.message().await.map_err(|s| s.to_string())? {
        if std::mem::take(&mut first) {
            tracing::info!(members = view.members.len(), "gossip view received");
        }
        shared.publish(convert(view));
    }
    Ok(())
}

/// The causes of a transport error, which its own text leaves out.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn convert(view: MembershipView) -> GossipView {
    let dead = view.members.into_iter().take(MAX_MEMBERS).filter_map(|m| {
        let dead = match WireLiveness::try_from(m.liveness) {
            Ok(WireLiveness::Dead) => true,
            // A suspicion is not a verdict: the suspect may still refute it.
            Ok(WireLiveness::Alive | WireLiveness::Suspect) => false,
            Ok(WireLiveness::Unspecified) | Err(_) => return None,
        };
        Some((Arc::from(m.node), dead))
    });
    GossipView { dead: dead.collect(), healthy: view.healthy }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
    use tonic::{Request, Response, Status};
    use trellis_proto::netd::MemberState;
    use trellis_proto::netd::membership_server::{Membership, MembershipServer};

    struct Netd(CancellationToken);

    #[tonic::async_trait]
    impl Membership for Netd {
        type WatchStream = ReceiverStream<Result<MembershipView, Status>>;
        async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
            let (tx, rx) = tokio::sync::mpsc::channel(1);
            let member = |node: &str, l: WireLiveness| MemberState {
                node: node.into(),
                liveness: l.into(),
                ..MemberState::default()
            };
            let members = vec![
                member("a", WireLiveness::Alive),
                member("b", WireLiveness::Suspect),
                member("c", WireLiveness::Dead),
            ];
            let stop = self.0.clone();
            tokio::spawn(async move {
                tx.send(Ok(MembershipView { members, healthy: true })).await.ok();
                stop.cancelled().await;
            });
            Ok(Response::new(ReceiverStream::new(rx)))
        }
    }

    async fn until(what: &str, shared: &SharedGossip, f: impl Fn(&SharedGossip) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !f(shared) {
            assert!(Instant::now() < deadline, "{what} did not come true");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn it_follows_a_netd_that_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let shared = SharedGossip::new();
        let task = tokio::spawn(run(dir.path().to_owned(), shared.clone(), stop.clone()));
        let path = socket_path(dir.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        for round in 0..2 {
            let listener = UnixListener::bind(&path).unwrap();
            let killed = CancellationToken::new();
            let server = tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(MembershipServer::new(Netd(killed.clone())))
                    .serve_with_incoming(UnixListenerStream::new(listener)),
            );
            until("a view", &shared, |s| s.current().fresh()).await;
            let view = shared.current().view.unwrap();
            assert_eq!(view.dead.values().copied().collect::<Vec<_>>(), vec![false, false, true], "round {round}");
            server.abort();
            killed.cancel();
            std::fs::remove_file(&path).unwrap();
            until("the loss", &shared, |s| s.current().lost_at.is_some()).await;
        }
        stop.cancel();
        task.await.unwrap();
    }
}
