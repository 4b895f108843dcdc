//! The node agent: makes the Pods that the control plane bound to this node, and reports them.
//!
//! | room | what it does |
//! |---|---|
//! | [`pod`] | the lifecycle machine of one Pod, its driver, the set of all Pods |
//! | [`probe`] | startup, readiness, liveness: thresholds (pure) and tries |
//! | [`runtime`] | the shim's client, the OCI spec, netd's client |
//! | [`volume`] | emptyDir, hostPath, configMap, secret, projected; subPath |
//! | [`image`] | pull policy, pull secrets, one pull of an image at a time |
//! | [`api`] | watch, Node and Pod status, lease, Events: all that is said to the control plane |
//! | [`server`] | port 10250: logs, exec, port-forward, images, for members only |
//!
//! What it needs and does not have yet (certificate, netd, control plane) it waits for; Pods that
//! run are left alone meanwhile, and when the agent ends. Nothing here decides about addresses,
//! policy or scheduling.
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod end;
pub mod image;
pub mod pod;
pub mod probe;
pub mod runtime;
pub mod server;
pub mod volume;
