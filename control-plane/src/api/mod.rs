//! The API: gRPC services over the operations in [`ops`]. A handler decodes, calls and maps the
//! error; what an operation does is not decided here.

pub mod agents;
pub mod backend;
pub mod cluster;
pub mod images;
pub mod names;
pub mod nodes;
mod onward;
pub mod ops;
pub mod oversize;
pub mod pods;
pub mod resources;
pub mod session;
pub mod status;
mod writes;
