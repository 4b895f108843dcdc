//! Join: one token is redeemed for the certificates of all daemons of a machine.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::Status;
use trellis_model::{Kind, names as rules};
use trellis_proto::api;
use trellis_proto::identity::Identity;
use trellis_proto::pki::CertificateAuthority;

use super::ClusterService;
use super::config::{ClusterConfig, MemberRecord, to_json};
use super::token::{self, Presented, TokenError, TokenRecord, Use};
use crate::api::names;
use crate::api::ops::encode::key_of;
use crate::api::ops::{ApiError, now_millis};
use crate::api::status::status;
use crate::raft::MAX_VOTERS;
use crate::store::{Command, Op, OpError, Outcome, SysValue, SysWhen, When};

/// Tries when another join was faster with the next member id.
const ATTEMPTS: usize = 8;

/// What is signed for a machine.
struct Certificates {
    agent: String,
    netd: String,
    member: String,
}

impl ClusterService {
    /// Checks the token, signs, and records the use, in this order: a request that cannot be
    /// signed does not cost the token.
    pub(super) async fn redeem(&self, r: api::JoinRequest, address: &str) -> Result<api::JoinReply, Status> {
        let node = &r.node_name;
        let refused = |why: TokenError| {
            tracing::warn!(address, node, %why, cause = ?why, "refused to join");
            status(ApiError::Unauthenticated(why.to_string()))
        };
        let presented = Presented::parse(&r.token).ok_or_else(|| refused(TokenError::Unknown))?;
        self.ops.backend().read_barrier().await.map_err(status)?;
        let pin = trellis_proto::pki::fingerprint(self.credentials.ca_pem())
            .map_err(|e| status(ApiError::Internal(e.to_string())))?;
        let purpose = purpose_of(&r);
        let member = !r.member_csr.is_empty();
        for _ in 0..ATTEMPTS {
            let found = self.token_record(presented.id);
            let record = found.as_ref().map(|(record, _)| record);
            token::check(record, &presented, &pin, &purpose, member, now_millis()).map_err(refused)?;
            // The check refuses when there is none.
            let Some((record, at)) = found else { return Err(refused(TokenError::Unknown)) };
            check_request(&r).map_err(status)?;
            let ca = self.authority().map_err(status)?;
            let signed = sign(&ca, ClusterConfig::certificate_lifetime(self.ops.store()), &r).map_err(status)?;
            let known = record.used.is_some();
            let id = match self.admit(&r, presented.id, record, &at, &purpose, known).await {
                Ok(Some(id)) => id,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(address, node, %error, "refused to join");
                    return Err(status(error));
                }
            };
            tracing::info!(address, node, member, "joined");
            return self.bundle(&r, signed, id).map_err(status);
        }
        Err(status(ApiError::Unavailable { why: "many machines are joining at once; try again".into(), leader: None }))
    }

    /// Refuses a machine that was removed: its certificate ends, and it gets no other one. Whoever
    /// joined under its name since looks the same from here.
    pub(super) async fn still_joined(&self, identity: &Identity) -> Result<(), ApiError> {
        let (key, name) = match identity {
            Identity::Admin(_) => return Ok(()),
            Identity::Agent(name) | Identity::Netd(name) => (names::registration(name), name),
            Identity::Member(name) => (names::member(name), name),
        };
        self.ops.backend().read_barrier().await?;
        if self.ops.store().sys_get(&key).is_some() {
            return Ok(());
        }
        Err(ApiError::Forbidden {
            what: "renewing a certificate".into(),
            why: format!(
                "machine {name:?} was removed from the cluster: join it anew with `trellis cluster join` and a new \
                 token"
            ),
        })
    }

    fn token_record(&self, id: &str) -> Option<(TokenRecord, SysValue)> {
        let found = self.ops.store().sys_get(&names::token(id))?;
        let record = serde_json::from_slice(&found.value).ok()?;
        Some((record, found))
    }

    /// Records the use of the token, the name, and the member. `None`: somebody was faster.
    async fn admit(
        &self,
        r: &api::JoinRequest,
        token_id: &str,
        record: TokenRecord,
        at: &SysValue,
        purpose: &str,
        known: bool,
    ) -> Result<Option<u64>, ApiError> {
        let store = self.ops.store();
        let member = !r.member_csr.is_empty();
        if known {
            let id = self.member_record(&r.node_name).map_or(0, |(m, _)| m.id);
            return Ok(Some(id));
        }
        let used = Use { purpose: purpose.to_owned(), at_millis: now_millis() };
        let used = TokenRecord { used: Some(used), ..record };
        let mut all = vec![
            Op::SysPut {
                key: names::registration(&r.node_name),
                when: SysWhen::Absent,
                value: bytes::Bytes::from_static(b"{}"),
            },
            Op::Check { key: key_of(Kind::Node, "", &r.node_name), when: When::Absent },
            Op::SysPut { key: names::token(token_id), when: SysWhen::Revision(at.revision), value: to_json(&used)? },
        ];
        let mut id = 0;
        if member {
            let members = store.sys_list(&names::member("")).len();
            if members >= MAX_VOTERS {
                return Err(ApiError::Precondition(format!(
                    "{:?} cannot join the control plane: {members} machines have, and {MAX_VOTERS} may; remove one \
                     first (`trellis cluster remove`), or join it as a worker",
                    r.node_name
                )));
            }
            let (next, op) = next_member_id(store)?;
            id = next;
            all.push(op);
            let record = MemberRecord {
                id,
                api_address: r.api_address.clone(),
                peer_address: r.peer_address.clone(),
                used: false,
            };
            let key = names::member(&r.node_name);
            all.push(Op::SysPut { key, when: SysWhen::Absent, value: to_json(&record)? });
        }
        match self.ops.backend().propose(Command::new(now_millis(), all)).await? {
            Outcome::Done { .. } => Ok(Some(id)),
            Outcome::Failed { op: 0 | 1 | 4, why: OpError::AlreadyExists, .. } => {
                let node = &r.node_name;
                Err(ApiError::Conflict {
                    plural: "nodes".into(),
                    name: node.clone(),
                    why: format!(
                        "a machine has joined as {node:?} already: join under another name, or \
                         remove it first (`trellis delete node {node}`, and `trellis cluster \
                         remove {node}` if it is a member)"
                    ),
                })
            }
            Outcome::Failed { .. } => Ok(None),
            other => Err(ApiError::Internal(format!("joining: {other:?}"))),
        }
    }

    fn bundle(&self, r: &api::JoinRequest, signed: Certificates, member_id: u64) -> Result<api::JoinReply, ApiError> {
        let config = ClusterConfig::read(self.ops.store())
            .ok_or_else(|| ApiError::Precondition("the cluster is not seeded yet".into()))?;
        let member = !r.member_csr.is_empty();
        let mut members = self.members();
        if member && members.iter().all(|m| m.id != member_id) {
            members.push(api::Member {
                id: member_id,
                name: r.node_name.clone(),
                api_address: r.api_address.clone(),
                peer_address: r.peer_address.clone(),
                role: "joining".into(),
                reachable: None,
                matched_log_index: None,
            });
        }
        let kek = self.ops.admission().sealer().key().as_bytes();
        Ok(api::JoinReply {
            ca_certificate: self.credentials.ca_pem().to_owned(),
            agent_certificate: signed.agent,
            netd_certificate: signed.netd,
            member_certificate: signed.member,
            cluster_name: config.cluster_name,
            members,
            gossip_key: bytes::Bytes::copy_from_slice(self.gossip_key.as_bytes()),
            key_encryption_key: if member { bytes::Bytes::copy_from_slice(kek) } else { bytes::Bytes::new() },
            member_id,
        })
    }
}

/// The next member id, and the op that takes it.
pub(super) fn next_member_id(store: &crate::store::Store) -> Result<(u64, Op), ApiError> {
    let found = store.sys_get(names::NEXT_MEMBER_ID);
    let broken = || ApiError::Internal("the counter of member ids is broken".into());
    let (next, when) = match &found {
        None => (1, SysWhen::Absent),
        Some(found) => {
            let text = std::str::from_utf8(&found.value).map_err(|_| broken())?;
            (text.parse().map_err(|_| broken())?, SysWhen::Revision(found.revision))
        }
    };
    let value = (next + 1).to_string().into();
    Ok((next, Op::SysPut { key: names::NEXT_MEMBER_ID.into(), when, value }))
}

fn check_request(r: &api::JoinRequest) -> Result<(), ApiError> {
    let bad = |why: String| Err(ApiError::BadRequest(why));
    if let Some(why) = rules::check_dns1123_subdomain(&r.node_name).into_iter().next() {
        return bad(format!("node name {:?}: {why}", r.node_name));
    }
    if r.agent_csr.is_empty() && r.netd_csr.is_empty() && r.member_csr.is_empty() {
        return bad("the join asks for no certificate".into());
    }
    if !r.member_csr.is_empty() {
        for (what, text) in [("API", &r.api_address), ("peer", &r.peer_address)] {
            if text.parse::<SocketAddr>().is_err() {
                return bad(format!("the {what} address {text:?} is not IP:PORT"));
            }
        }
    }
    Ok(())
}

fn sign(ca: &CertificateAuthority, lifetime: Duration, r: &api::JoinRequest) -> Result<Certificates, ApiError> {
    let sign = |csr: &str, identity: Identity| match csr {
        "" => Ok(String::new()),
        csr => ca.sign(csr, &identity, lifetime).map_err(|e| ApiError::BadRequest(e.to_string())),
    };
    Ok(Certificates {
        agent: sign(&r.agent_csr, Identity::Agent(r.node_name.clone()))?,
        netd: sign(&r.netd_csr, Identity::Netd(r.node_name.clone()))?,
        member: sign(&r.member_csr, Identity::Member(r.node_name.clone()))?,
    })
}

/// What a token is used for: the name and the keys.
fn purpose_of(r: &api::JoinRequest) -> String {
    token::hash(&[&*r.node_name, &r.agent_csr, &r.netd_csr, &r.member_csr].join("\n"))
}
