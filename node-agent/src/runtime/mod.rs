//! What makes Pods: the shim's client, the OCI spec, netd's client, what a container finds in
//! `/etc`, and the image's user database.
pub mod etc;
pub mod exec;
pub mod netd;
pub mod shim;
pub mod spec;
pub mod warmth;
