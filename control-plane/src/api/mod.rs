//! The API: gRPC services over the operations in [`ops`]. A handler decodes, calls and maps the
//! error; what an operation does is not decided here.

pub mod cluster;
pub mod names;
pub mod ops;
