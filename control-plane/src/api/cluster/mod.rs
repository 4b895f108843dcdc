//! The Cluster service: the control plane about itself.

mod config;
mod join;
mod members;
pub mod token;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use trellis_model::k8s_openapi::jiff::Timestamp;
use trellis_proto::api;
use trellis_proto::api::cluster_server::Cluster;
use trellis_proto::identity::Identity;
use trellis_proto::pki::{CertificateAuthority, Key};
use trellis_proto::tls::Credentials;

pub use config::{Bootstrap, ClusterConfig, MemberRecord, seed};

use super::names;
use super::ops::{ApiError, Ops};
use super::session::{Limits, address_of, forbidden};
use super::status::status;
use crate::auth::Caller;
use crate::raft::Consensus;

/// Members being added at once; a cluster has five at most.
const ADDING_AT_ONCE: usize = 8;

/// The service.
#[derive(Clone)]
pub struct ClusterService {
    ops: Ops,
    consensus: Consensus,
    limits: Limits,
    credentials: Arc<Credentials>,
    gossip_key: Key,
    adding: Arc<Semaphore>,
}

impl std::fmt::Debug for ClusterService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterService").finish_non_exhaustive()
    }
}

impl ClusterService {
    /// On this member; `gossip_key` is handed to machines that join.
    pub fn new(ops: Ops, consensus: Consensus, limits: Limits, credentials: Arc<Credentials>, gossip_key: Key) -> Self {
        let adding = Arc::new(Semaphore::new(ADDING_AT_ONCE));
        Self { ops, consensus, limits, credentials, gossip_key, adding }
    }

    /// The CA, its key opened.
    ///
    /// # Errors
    /// [`ApiError::Precondition`] before the cluster is seeded.
    pub fn authority(&self) -> Result<CertificateAuthority, ApiError> {
        authority(&self.ops, &self.credentials)
    }

    /// The membership as the leader knows it.
    async fn membership(&self) -> api::MembersReply {
        let told = self.consensus.overview().await;
        api::MembersReply {
            leader_id: told.leader_id.unwrap_or(0),
            note: told.note.unwrap_or_default(),
            members: told.members.into_iter().map(members::told).collect(),
            ..api::MembersReply::default()
        }
    }
}

/// The CA, its key opened with the key-encryption key.
///
/// # Errors
/// [`ApiError::Precondition`] before the cluster is seeded, [`ApiError::Internal`] when the key
/// cannot be opened.
pub fn authority(ops: &Ops, credentials: &Credentials) -> Result<CertificateAuthority, ApiError> {
    let sealed = ops
        .store()
        .sys_get(names::CA_KEY)
        .ok_or_else(|| ApiError::Precondition("the cluster has no CA key yet: its first leader seeds it".into()))?;
    let kek = ops.admission().sealer().key();
    CertificateAuthority::open(credentials.ca_pem(), &sealed.value, kek)
        .map_err(|e| ApiError::Internal(format!("the CA's key: {e}")))
}

/// Now, for what is stamped here.
fn now() -> Timestamp {
    let millis = i64::try_from(super::ops::now_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::StatusReply>, Status> {
        // Daemons of every role learn the members' addresses from it, to fail over to.
        let (_, _permit) = self.limits.call(&request)?;
        let api::MembersReply { members, leader_id, note, .. } = self.membership().await;
        let stats = self.consensus.stats();
        let config = ClusterConfig::read(self.ops.store());
        Ok(Response::new(api::StatusReply {
            cluster_name: config.map(|c| c.cluster_name).unwrap_or_default(),
            members,
            leader_id,
            note,
            term: stats.term,
            revision: self.ops.store().revision(),
            last_log_index: stats.last_log_index.unwrap_or(0),
            applied_log_index: stats.applied_index.unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn add_member(&self, request: Request<api::AddMemberRequest>) -> Result<Response<api::MembersReply>, Status> {
        let (caller, _permit) = self.limits.trusted(&request, "adding a member")?;
        let r = request.into_inner();
        let own = matches!(&caller, Caller::Peer(Identity::Member(n)) if *n == r.name);
        if matches!(caller, Caller::Peer(Identity::Member(_))) && !own {
            return Err(forbidden(&caller, &format!("adding member {:?}", r.name)));
        }
        if r.fresh && !own {
            let message = "only a member itself knows that it has lost its log".to_owned();
            return Err(status(ApiError::BadRequest(message)));
        }
        let slot = Arc::clone(&self.adding).try_acquire_owned().map_err(|_| {
            let why = format!("{ADDING_AT_ONCE} members are being added already; try again");
            status(ApiError::Unavailable { why, leader: None })
        })?;
        if !own && let Some(id) = self.is_member_already(&r).map_err(status)? {
            return Ok(Response::new(api::MembersReply { your_id: id, unchanged: true, ..self.membership().await }));
        }
        let (member, gone) = self.reserve(&r).await.map_err(status)?;
        let your_id = member.id;
        if own {
            // It listens only once it knows its id: the answer comes first.
            let consensus = self.consensus.clone();
            tokio::spawn(async move {
                let _slot = slot;
                members::add_soon(consensus, member, gone).await;
            });
        } else {
            self.consensus.add_member(member).await.map_err(|e| status(e.into()))?;
        }
        Ok(Response::new(api::MembersReply { your_id, ..self.membership().await }))
    }

    async fn remove_member(
        &self,
        request: Request<api::RemoveMemberRequest>,
    ) -> Result<Response<api::MembersReply>, Status> {
        let (caller, _permit) = self.limits.trusted(&request, "removing a member")?;
        let member = request.into_inner().member;
        self.forget(&member).await.map_err(status)?;
        tracing::info!(%caller, member, "removed a member");
        Ok(Response::new(self.membership().await))
    }

    async fn transfer_leader(
        &self,
        request: Request<api::TransferLeaderRequest>,
    ) -> Result<Response<api::MembersReply>, Status> {
        let (_, _permit) = self.limits.trusted(&request, "transferring leadership")?;
        let r = request.into_inner();
        let to = match r.member.as_str() {
            "" => self.best_follower().await,
            text => self.find_member(text).map(|m| m.member.id),
        };
        let to = to.map_err(status)?;
        self.consensus.transfer_leader(to).await.map_err(|e| status(e.into()))?;
        Ok(Response::new(self.membership().await))
    }

    async fn create_token(
        &self,
        request: Request<api::CreateTokenRequest>,
    ) -> Result<Response<api::CreateTokenReply>, Status> {
        let (caller, _permit) = self.limits.trusted(&request, "making a join token")?;
        let r = request.into_inner();
        let ca = self.credentials.ca_pem();
        let made = token::create(&self.ops, ca, r.ttl_seconds, r.control_plane).await;
        let (token, expires_unix_seconds) = made.map_err(status)?;
        tracing::info!(%caller, control_plane = r.control_plane, "made a join token");
        Ok(Response::new(api::CreateTokenReply { token, expires_unix_seconds }))
    }

    async fn join(&self, request: Request<api::JoinRequest>) -> Result<Response<api::JoinReply>, Status> {
        let _permit = self.limits.anonymous()?;
        let address = address_of(&request);
        self.redeem(request.into_inner(), &address).await.map(Response::new)
    }

    async fn renew_certificate(
        &self,
        request: Request<api::RenewCertificateRequest>,
    ) -> Result<Response<api::RenewCertificateReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        let Caller::Peer(identity) = &caller else { return Err(forbidden(&caller, "renewing a certificate")) };
        if let Err(error) = self.still_joined(identity).await {
            tracing::warn!(%caller, %error, "refused to renew a certificate");
            return Err(status(error));
        }
        let ca = self.authority().map_err(status)?;
        let lifetime = ClusterConfig::certificate_lifetime(self.ops.store());
        let signed = ca.sign(&request.into_inner().csr, identity, lifetime).map_err(|e| {
            tracing::warn!(%caller, error = %e, "refused to renew a certificate");
            let what = "renewing a certificate".to_owned();
            status(ApiError::Forbidden { what, why: e.to_string() })
        })?;
        tracing::info!(%caller, "renewed a certificate");
        let ca_certificate = self.credentials.ca_pem().to_owned();
        Ok(Response::new(api::RenewCertificateReply { certificate: signed, ca_certificate }))
    }
}
