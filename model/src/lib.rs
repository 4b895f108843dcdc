//! What the words of the API mean: object types, defaults, validation, selectors, quantities,
//! merging, and the NetworkPolicy decision.
//!
//! Nothing here does I/O, looks at a clock or runs a task: every function answers from its
//! arguments alone, so that the control plane, the daemons and the command line all decide the
//! same. Randomness and time are given by the caller.
//!
//! The rules followed are those of Kubernetes 1.35 for the kinds that [`Kind`] lists.
#![forbid(unsafe_code)]

pub mod apply;
pub mod conditions;
pub mod defaults;
pub mod field;
pub mod hash;
pub mod kind;
pub mod merge;
pub mod names;
pub mod object;
pub mod policy;
pub mod quantity;
pub mod resources;
pub mod selector;
pub mod strict;
pub mod taints;
pub mod validate;
pub mod warnings;

pub use field::FieldError;
pub use k8s_openapi;
pub use kind::{Kind, UnknownKind};
pub use names::{NodeName, PodUid, Revision};
pub use object::{DecodeError, Object};
pub use quantity::Quantity;
