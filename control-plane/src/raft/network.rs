//! The client side of Raft's messages: one [`Link`] per peer and purpose.
//!
//! Appends are one long stream a follower: the next request is sent while the one before is
//! still being fsynced there. Heartbeats and snapshots have connections of their own, so that
//! neither waits behind a large append. HTTP/2 keepalives (the dialer's) end a stream whose
//! peer lost power.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use trellis_proto::peer::RaftMessage;
use trellis_proto::peer::raft_client::RaftClient;

use super::config::{TypeConfig, Vote};
use super::notices::{self, Wanted};
use super::snapshots::SnapshotFile;
use super::types::Member;
use super::wire;

/// Bytes in one message of a snapshot.
const CHUNK: usize = 512 * 1024;
/// Messages of a snapshot read ahead of the network.
const CHUNKS_AHEAD: usize = 4;

/// An unreachable member is tried again this often: it costs a connect, and one that returns
/// is brought up to date at once.
const RETRY: Duration = Duration::from_millis(100);

/// Makes channels to members; must not block, connects lazily, and sets HTTP/2 keepalive.
pub trait Dialer: Send + Sync + fmt::Debug + 'static {
    /// A channel to "ip:port".
    fn channel(&self, peer_address: &str) -> Result<Channel, String>;
}

/// Dials members with mutual TLS.
#[derive(Debug, Clone)]
pub struct TlsDialer(pub trellis_proto::tls::ClientTls);

impl Dialer for TlsDialer {
    fn channel(&self, peer_address: &str) -> Result<Channel, String> {
        trellis_proto::client::channel(&format!("https://{peer_address}"), &self.0).map_err(|e| e.message().to_string())
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    Append,
    Heartbeat,
    Snapshot,
    Leader,
}

/// The connections of this member, made once per address and purpose.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    dialer: Arc<dyn Dialer>,
    channels: Arc<Mutex<HashMap<(String, Purpose), Channel>>>,
    /// What followers' callers wait for.
    pub(super) wanted: Wanted,
}

impl Peers {
    /// More than any cluster has; when reached, all are made anew.
    const LIMIT: usize = 128;

    pub(super) fn new(dialer: Arc<dyn Dialer>) -> Self {
        Self { dialer, channels: Arc::default(), wanted: Wanted::default() }
    }

    pub(super) fn channel(&self, address: &str, purpose: Purpose) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address.to_string(), purpose);
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let channel =
            self.dialer.channel(address).map_err(|e| Status::unavailable(format!("member at {address}: {e}")))?;
        if channels.len() >= Self::LIMIT {
            channels.clear();
        }
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}

/// Makes [`Link`]s.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) peers: Peers,
}

impl Network {
    fn link(&self, node: &Member, purpose: Purpose) -> Link {
        Link { peers: self.peers.clone(), address: node.peer_address.clone(), purpose, failing: false }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, _target: u64, node: &Member) -> Link {
        self.link(node, Purpose::Append)
    }

    async fn new_heartbeat_client(&mut self, _target: u64, node: &Member) -> Link {
        self.link(node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, _target: u64, node: &Member) -> Link {
        self.link(node, Purpose::Snapshot)
    }
}

/// The way to one member for one purpose.
pub(super) struct Link {
    peers: Peers,
    address: String,
    purpose: Purpose,
    /// The last append stream could not be opened.
    failing: bool,
}

fn rpc_error(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        // Backs off; the others are tried again at once.
        Code::Unavailable | Code::Unknown => RPCError::Unreachable(Unreachable::from_string(status)),
        _ => RPCError::Network(NetworkError::from_string(status)),
    }
}

fn streaming_error(status: &Status) -> StreamingError<TypeConfig> {
    StreamingError::from(rpc_error(status))
}

impl Link {
    fn client(&self) -> Result<RaftClient<Channel>, Status> {
        let channel = self.peers.channel(&self.address, self.purpose)?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(wire::MAX_MESSAGE)
            .max_encoding_message_size(wire::MAX_MESSAGE))
    }

    /// openraft's own back-off waits inside the stream of requests, which nobody polls while the
    /// connection is refused: without a pause here a member whose process is down would be dialled
    /// without end. Told once, not ten times a second.
    async fn pause_after(&mut self, status: &Status) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(member = self.address, error = status.message(), "a member takes no entries");
        }
        tokio::time::sleep(RETRY).await;
    }

    /// Runs a call for at most `limit`.
    async fn within<T>(&self, limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let late = |_| Status::unavailable(format!("member at {} did not answer within {limit:?}", self.address));
        tokio::time::timeout(limit, call).await.map_err(late)?
    }
}

impl NetBackoff<TypeConfig> for Link {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY)))
    }
}

impl NetStreamAppend<TypeConfig> for Link {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let sent = Arc::new(AtomicU64::new(0));
            let counter = sent.clone();
            let requests = notices::joined(input, &self.peers.wanted, notices::HOLD).filter_map(move |request| {
                counter.fetch_add(1, Ordering::Relaxed);
                // Cannot fail, see `wire::encode`; dropping it would stall, not corrupt.
                std::future::ready(wire::message(&request).ok())
            });
            let call = async { self.client()?.append(Request::new(requests)).await };
            let opened = self.within(option.soft_ttl(), call).await;
            let replies = match opened {
                Ok(replies) => replies,
                Err(status) => {
                    self.pause_after(&status).await;
                    return Err(rpc_error(&status));
                }
            };
            if std::mem::take(&mut self.failing) {
                tracing::info!(member = self.address, "a member takes entries again");
            }
            let results: BoxStream<'s, _> = Box::pin(results(replies.into_inner(), sent));
            Ok(results)
        })
    }
}

/// Decodes replies. A stream that ends before every request is answered is an error: openraft
/// would take it for success without progress, and never purge what that follower lacks.
fn results(
    replies: Streaming<RaftMessage>,
    sent: Arc<AtomicU64>,
) -> impl Stream<Item = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
    futures::stream::unfold(Some((replies, 0)), move |state| {
        let sent = sent.clone();
        async move {
            let (mut replies, received) = state?;
            let reply = match replies.message().await {
                Ok(Some(reply)) => wire::decode::<StreamAppendResult<TypeConfig>>(&reply.payload),
                Ok(None) if received >= sent.load(Ordering::Relaxed) => return None,
                Ok(None) => Err(Status::unavailable("the follower ended the stream")),
                Err(status) => Err(status),
            };
            match reply {
                Ok(result) => {
                    // After a refusal the follower ends the stream, whatever else was sent.
                    let next = result.is_ok().then_some((replies, received + 1));
                    Some((Ok(result), next))
                }
                Err(status) => Some((Err(rpc_error(&status)), None)),
            }
        }
    })
}

impl NetVote<TypeConfig> for Link {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = async {
            let reply = self.client()?.vote(wire::message(&rpc)?).await?;
            wire::decode(&reply.into_inner().payload)
        };
        self.within(option.soft_ttl(), call).await.map_err(|s| rpc_error(&s))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = async {
            let reply = self.client()?.pre_vote(wire::message(&rpc)?).await?;
            wire::decode(&reply.into_inner().payload)
        };
        self.within(option.soft_ttl(), call).await.map_err(|s| rpc_error(&s))
    }
}

impl NetTransferLeader<TypeConfig> for Link {
    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = async {
            let reply = self.client()?.transfer_leader(wire::message(&rpc)?).await?;
            wire::decode(&reply.into_inner().payload)
        };
        self.within(option.soft_ttl(), call).await.map_err(|s| rpc_error(&s))
    }
}

impl NetSnapshot<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Snapshot { meta, snapshot } = snapshot;
        let first = wire::message(&(vote, meta)).map_err(|s| streaming_error(&s))?;
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        let reading = tokio::task::spawn_blocking(move || send_chunks(snapshot, first, &chunks));
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let call = async {
            let reply = self.client()?.snapshot(Request::new(stream)).await?;
            wire::decode(&reply.into_inner().payload)
        };
        let result = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            result = self.within(option.soft_ttl(), call) => result,
        };
        // A failed read ended the stream early, and the receiver refused it; its cause is here.
        if let Ok(Err(error)) = reading.await {
            tracing::warn!(%error, "a snapshot could not be read to its end for a follower");
        }
        result.map_err(|s| streaming_error(&s))
    }
}

fn send_chunks(
    mut snapshot: SnapshotFile,
    first: RaftMessage,
    chunks: &mpsc::Sender<RaftMessage>,
) -> std::io::Result<()> {
    if chunks.blocking_send(first).is_err() {
        return Ok(());
    }
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = snapshot.reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
        // An empty message ends it: a stream that just breaks off is no snapshot.
        let message = RaftMessage { payload: chunk.into() };
        if chunks.blocking_send(message).is_err() || read == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use std::time::Instant;
    use tonic::transport::Endpoint;

    #[derive(Debug)]
    struct Plain;

    impl Dialer for Plain {
        fn channel(&self, peer_address: &str) -> Result<Channel, String> {
            Ok(Endpoint::from_shared(format!("http://{peer_address}")).unwrap().connect_lazy())
        }
    }

    #[tokio::test]
    async fn a_member_that_refuses_connections_is_not_dialled_without_end() {
        // A port that nobody listens on any more.
        let peer_address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let network = Network { peers: Peers::new(Arc::new(Plain)) };
        let mut link = network.link(&Member { peer_address, ..Member::default() }, Purpose::Append);
        let begun = Instant::now();
        for _ in 0..3 {
            let requests = futures::stream::pending::<AppendEntriesRequest<TypeConfig>>();
            let option = RPCOption::new(Duration::from_millis(100));
            assert!(link.stream_append(requests, option).await.is_err());
        }
        assert!(begun.elapsed() >= RETRY * 3, "{:?}", begun.elapsed());
    }
}
