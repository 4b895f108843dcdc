//! What members say to each other: openraft's requests in postcard, behind a format byte.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tonic::Status;
use trellis_proto::peer::{RaftMessage, ReportNetworkRequest, UnroutedPeer};

use super::types::{MemberError, NetworkReport};

const FORMAT: u8 = 1;
/// Largest message accepted from a member: a transaction at its limit, and room.
pub(super) const MAX_MESSAGE: usize = 32 * 1024 * 1024;

/// Encodes a message. Refuses only what postcard cannot express, which none of ours is.
pub(super) fn encode(message: &impl Serialize) -> Result<Bytes, Status> {
    let out = postcard::to_extend(message, vec![FORMAT])
        .map_err(|e| Status::internal(format!("a message to a member cannot be encoded: {e}")))?;
    Ok(Bytes::from(out))
}

/// Decodes a message.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest)
            .map_err(|e| Status::invalid_argument(format!("a member's message does not decode: {e}"))),
        Some((other, _)) => Err(Status::unimplemented(format!(
            "a member's message has format {other}, this member reads {FORMAT}: update it"
        ))),
        None => Err(Status::invalid_argument("a member's message is empty")),
    }
}

pub(super) fn network_report(node: &str, report: &NetworkReport) -> ReportNetworkRequest {
    let peers = report.unrouted.iter().cloned();
    ReportNetworkRequest {
        node: node.to_owned(),
        applied_revision: report.applied_revision,
        network: report.network.clone(),
        unrouted_peers: peers.map(|(node, address)| UnroutedPeer { node, address }).collect(),
    }
}

impl From<ReportNetworkRequest> for NetworkReport {
    fn from(r: ReportNetworkRequest) -> Self {
        let unrouted = r.unrouted_peers.into_iter().map(|p| (p.node, p.address)).collect();
        Self { applied_revision: r.applied_revision, network: r.network, unrouted }
    }
}

pub(super) fn message(payload: &impl Serialize) -> Result<RaftMessage, Status> {
    Ok(RaftMessage { payload: encode(payload)? })
}

/// Marks "I am not the leader, nothing was done": the one refusal after which any call may be
/// repeated elsewhere.
pub(super) fn not_leader(why: impl std::fmt::Display) -> Status {
    Status::failed_precondition(format!("not the leader: {why}"))
}

pub(super) fn is_not_leader(status: &Status) -> bool {
    status.code() == tonic::Code::FailedPrecondition && status.details().is_empty()
}

/// Puts a refused membership change into a status, whole.
pub(super) fn member_status(error: &MemberError) -> Status {
    let details = encode(error).unwrap_or_default();
    Status::with_details(tonic::Code::FailedPrecondition, error.to_string(), details)
}

pub(super) fn member_error(status: &Status) -> Option<MemberError> {
    if status.details().is_empty() {
        return None;
    }
    decode(status.details()).ok()
}
