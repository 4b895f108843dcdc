//! What makes Pods: the shim's client, the OCI spec, netd's client, what a container finds in
//! `/etc`, and the image's user database.
pub mod etc;
pub mod exec;
#[cfg(test)]
pub mod fake_shim;
pub mod netd;
pub mod program;
pub mod shim;
pub mod spec;
pub mod warmth;
