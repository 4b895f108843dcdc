//! The server side of what members say to each other. The listener has verified already that
//! the peer is a member; serve it on 2380 only.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{Stream, StreamExt};
use openraft::Snapshot;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::peer::leader_server::{Leader, LeaderServer};
use trellis_proto::peer::raft_server::{Raft, RaftServer};
use trellis_proto::peer::{
    ChangeMembersReply, ChangeMembersRequest, MembersRequest, ProposeReply, ProposeRequest, RaftMessage,
    ReadIndexReply, ReadIndexRequest, RenewLeaseReply, RenewLeaseRequest, ReportNetworkReply, ReportNetworkRequest,
    change_members_request::Change,
};

use super::config::{SnapshotMeta, TypeConfig, Vote};
use super::consensus::{Inner, RaftHandle};
use super::membership;
use super::snapshots::{Draft, Snapshots};
use super::types::MemberError;
use super::wire;

/// The services for port 2380.
#[derive(Debug, Clone)]
pub struct PeerServices {
    /// Raft's own messages.
    pub raft: RaftServer<RaftService>,
    /// What any member asks of the leader.
    pub leader: LeaderServer<LeaderService>,
}

impl PeerServices {
    pub(super) fn new(raft: RaftHandle, snapshots: Arc<Snapshots>, inner: Arc<Inner>, blank: bool) -> Self {
        let blank = Arc::new(AtomicBool::new(blank));
        let service = RaftService { raft, inner: inner.clone(), snapshots, blank };
        Self {
            raft: RaftServer::new(service)
                .max_decoding_message_size(wire::MAX_MESSAGE)
                .max_encoding_message_size(wire::MAX_MESSAGE),
            leader: LeaderServer::new(LeaderService { inner })
                .max_decoding_message_size(wire::MAX_MESSAGE)
                .max_encoding_message_size(wire::MAX_MESSAGE),
        }
    }
}

/// Serves Raft's own messages.
#[derive(Debug, Clone)]
pub struct RaftService {
    raft: RaftHandle,
    inner: Arc<Inner>,
    snapshots: Arc<Snapshots>,
    /// It started with an empty folder and has not caught up yet. It may be a voter that lost
    /// its disk, and with it what it promised: its vote could make a leader of a member that
    /// lacks acknowledged writes, so it gives none.
    blank: Arc<AtomicBool>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<RaftMessage, Status>> + Send>>;

fn stopped(e: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this member has stopped: {e}"))
}

#[tonic::async_trait]
impl Raft for RaftService {
    type AppendStream = Replies;

    async fn append(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<Replies>, Status> {
        // Ends at the first broken message: the leader starts another stream then.
        let inner = self.inner.clone();
        let requests = request.into_inner().map_while_ok().inspect(move |_| inner.hear());
        let results = self.raft.stream_append(requests);
        let replies = results.map(|result| wire::message(&result.map_err(stopped)?));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: VoteRequest<TypeConfig> = wire::decode(&request.into_inner().payload)?;
        if let Some(refusal) = self.refuse_blank() {
            return wire::message(&refusal).map(Response::new);
        }
        let reply = self.raft.vote(request).await.map_err(stopped)?;
        wire::message(&reply).map(Response::new)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: VoteRequest<TypeConfig> = wire::decode(&request.into_inner().payload)?;
        if let Some(refusal) = self.refuse_blank() {
            return wire::message(&refusal).map(Response::new);
        }
        let reply = self.raft.pre_vote(request).await.map_err(stopped)?;
        wire::message(&reply).map(Response::new)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: TransferLeaderRequest<TypeConfig> = wire::decode(&request.into_inner().payload)?;
        let reply = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
        wire::message(&reply).map(Response::new)
    }

    async fn snapshot(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<RaftMessage>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("an empty snapshot stream"))?;
        let (vote, meta): (Vote, SnapshotMeta) = wire::decode(&first.payload)?;
        tracing::info!(snapshot = ?meta.last_log_id, "receiving a snapshot from the leader");
        let draft = self.receive(chunks).await?;
        let snapshot = self.snapshots.reopen(&draft).map_err(disk)?;
        // From here on the state machine owns the file: it adopts or removes it.
        draft.hand_over();
        let path = snapshot.path.clone();
        let reply = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await.map_err(stopped)?;
        // A refused one reaches no state machine.
        self.snapshots.discard(&path);
        wire::message(&reply).map(Response::new)
    }
}

fn disk(e: std::io::Error) -> Status {
    Status::internal(format!("the snapshot cannot be written here: {e}"))
}

impl RaftService {
    /// No vote while blank. It ends when all is applied that a leader has called committed.
    fn refuse_blank(&self) -> Option<VoteResponse<TypeConfig>> {
        if !self.blank.load(Ordering::Relaxed) {
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.cluster_committed.is_some() && metrics.last_applied >= metrics.cluster_committed {
            self.blank.store(false, Ordering::Relaxed);
            return None;
        }
        tracing::info!("no vote from here: this member began empty and has not caught up yet");
        Some(VoteResponse::new(metrics.vote, metrics.last_applied, false))
    }

    async fn receive(&self, mut chunks: Streaming<RaftMessage>) -> Result<Draft, Status> {
        let mut draft = self.snapshots.draft().map_err(disk)?;
        while let Some(chunk) = chunks.message().await? {
            if chunk.payload.is_empty() {
                return Ok(draft);
            }
            draft = tokio::task::spawn_blocking(move || {
                std::io::Write::write_all(&mut draft, &chunk.payload).map(|()| draft)
            })
            .await
            .map_err(stopped)?
            .map_err(disk)?;
        }
        Err(Status::aborted("the snapshot broke off"))
    }
}

/// Ends a stream of messages at its first flaw.
trait MapWhileOk {
    fn map_while_ok(self) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static;
}

impl MapWhileOk for Streaming<RaftMessage> {
    fn map_while_ok(self) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
        futures::stream::unfold(self, |mut messages| async move {
            let message = match messages.message().await {
                Ok(message) => message?,
                Err(status) => {
                    tracing::debug!(%status, "a leader's stream ended");
                    return None;
                }
            };
            match wire::decode(&message.payload) {
                Ok(request) => Some((request, messages)),
                Err(status) => {
                    tracing::warn!(%status, "a leader's message is not understood");
                    None
                }
            }
        })
    }
}

/// Serves what any member asks of the leader.
#[derive(Debug, Clone)]
pub struct LeaderService {
    inner: Arc<Inner>,
}

#[tonic::async_trait]
impl Leader for LeaderService {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let call = self.inner.peers.wanted.call();
        let written = self.inner.write_as_leader(request.into_inner().commands).await?;
        call.done(written.next_index);
        // One answer a command: Ok(outcome), or why there is none.
        let outcomes = written.answers.iter().map(wire::encode).collect::<Result<_, _>>()?;
        Ok(Response::new(ProposeReply { outcomes, log_index: written.next_index }))
    }

    async fn read_index(&self, _: Request<ReadIndexRequest>) -> Result<Response<ReadIndexReply>, Status> {
        let call = self.inner.peers.wanted.call();
        let log_index = self.inner.read_index_as_leader().await?;
        call.done(log_index);
        Ok(Response::new(ReadIndexReply { log_index }))
    }

    async fn renew_lease(&self, request: Request<RenewLeaseRequest>) -> Result<Response<RenewLeaseReply>, Status> {
        let request = request.into_inner();
        self.inner.must_lead()?;
        let grant = self.inner.hooks.renew_lease(&request.node, &request.instance);
        Ok(Response::new(RenewLeaseReply { ttl_millis: grant.ttl_millis, term: grant.term }))
    }

    async fn report_network(
        &self,
        request: Request<ReportNetworkRequest>,
    ) -> Result<Response<ReportNetworkReply>, Status> {
        let request = request.into_inner();
        self.inner.must_lead()?;
        let min_applied_revision = self.inner.hooks.report_network(&request.node.clone(), request.into());
        Ok(Response::new(ReportNetworkReply { min_applied_revision }))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersReply>, Status> {
        let change = request.into_inner().change.ok_or_else(|| Status::invalid_argument("no change is named"))?;
        self.inner.must_lead()?;
        let result = match change {
            Change::Add(m) => membership::add(&self.inner, m.into()).await,
            Change::Remove(id) => membership::remove(&self.inner, id).await,
            Change::TransferTo(id) => membership::transfer(&self.inner, id).await,
        };
        match result {
            Ok(()) => Ok(Response::new(ChangeMembersReply {})),
            // Nothing was done: the asker looks for the leader again.
            Err(MemberError::Leader(e)) => Err(wire::not_leader(e)),
            Err(e) => Err(wire::member_status(&e)),
        }
    }
    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<RaftMessage>, Status> {
        // Who still is the leader says so: one that was replaced unseen cannot pass this.
        self.inner.read_index_as_leader().await?;
        wire::message(&self.inner.members()).map(Response::new)
    }
}
