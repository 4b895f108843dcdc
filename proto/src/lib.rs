//! The wire: generated gRPC code, and what every program that speaks it needs: mutual TLS,
//! identities in certificates, contexts, and a client that fails over between members.
#![forbid(unsafe_code)]

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
