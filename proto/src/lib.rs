//! The wire: generated gRPC code, and what every program that speaks it needs: mutual TLS,
//! identities in certificates, contexts, and a client that fails over between members.
#![forbid(unsafe_code)]

pub mod pki;

/// The control plane's API (`trellis.api.v1`).
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod api {
    tonic::include_proto!("trellis.api.v1");
}
/// netd's unix sockets (`trellis.netd.v1`).
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod netd {
    tonic::include_proto!("trellis.netd.v1");
}
/// Between members of the control plane (`trellis.peer.v1`).
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod peer {
    tonic::include_proto!("trellis.peer.v1");
}

/// The encoded descriptors of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod client;
pub mod file;
pub mod identity;
pub mod node_config;
pub mod patience;
mod quota;
pub mod renewal;
pub mod server;
pub mod service;
pub mod status;
pub mod tls;

/// Ports of the cluster.
pub mod ports {
    /// The API, every control-plane member.
    pub const API: u16 = 6443;
    /// Raft peers, every control-plane member.
    pub const PEER: u16 = 2380;
    /// The node agent, members only.
    pub const AGENT: u16 = 10250;
    /// Gossip, UDP.
    pub const GOSSIP: u16 = 7946;
}
