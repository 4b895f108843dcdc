//! The Nodes service: what a node's daemons tell the leader's memory.

use tonic::{Request, Response, Status};
use trellis_proto::api;
use trellis_proto::api::nodes_server::Nodes;

use super::session::{Limits, forbidden};
use super::status::status;
use crate::auth::rules::{NodeRole, speaks_for};
use crate::raft::{Consensus, NetworkReport};

/// More unrouted peers than this are not taken from a netd; it tells of as many.
const MAX_UNROUTED: usize = 64;
/// Longest name or address that is taken: a node's name has as many characters at most.
const MAX_NAME_CHARS: usize = 253;

/// The service.
#[derive(Debug, Clone)]
pub struct NodesService {
    consensus: Consensus,
    limits: Limits,
}

impl NodesService {
    /// On this member.
    pub fn new(consensus: Consensus, limits: Limits) -> Self {
        Self { consensus, limits }
    }
}

#[tonic::async_trait]
impl Nodes for NodesService {
    async fn renew_lease(
        &self,
        request: Request<api::RenewLeaseRequest>,
    ) -> Result<Response<api::RenewLeaseReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        let r = request.into_inner();
        if !speaks_for(&caller, NodeRole::Agent, &r.node) {
            return Err(forbidden(&caller, &format!("renewing the lease of node {:?}", r.node)));
        }
        let grant = self.consensus.renew_lease(&r.node, &r.instance).await;
        let grant = grant.map_err(|e| status(e.into()))?;
        Ok(Response::new(api::RenewLeaseReply { ttl_millis: grant.ttl_millis, term: grant.term }))
    }

    async fn report_network(
        &self,
        request: Request<api::ReportNetworkRequest>,
    ) -> Result<Response<api::ReportNetworkReply>, Status> {
        let (caller, _permit) = self.limits.call(&request)?;
        let r = request.into_inner();
        if !speaks_for(&caller, NodeRole::Netd, &r.node) {
            let what = format!("reporting for the network of node {:?}", r.node);
            return Err(forbidden(&caller, &what));
        }
        let report = NetworkReport {
            applied_revision: r.applied_revision,
            network: clipped(r.network),
            unrouted: unrouted(r.unrouted_peers),
        };
        let least = self.consensus.report_network(&r.node, &report).await;
        let min_applied_revision = least.map_err(|e| status(e.into()))?;
        Ok(Response::new(api::ReportNetworkReply { min_applied_revision }))
    }
}

fn unrouted(peers: Vec<api::UnroutedPeer>) -> Vec<(String, String)> {
    peers.into_iter().take(MAX_UNROUTED).map(|p| (clipped(p.node), clipped(p.address))).collect()
}

fn clipped(text: String) -> String {
    if text.len() <= MAX_NAME_CHARS { text } else { text.chars().take(MAX_NAME_CHARS).collect() }
}
