//! Namespaces, cgroups, mounts and processes: what the node agent, the shim and the lab ask of
//! the kernel beyond the standard library.
//!
//! This is the only crate of the workspace with `unsafe` code; each block says why it holds. One
//! function per kernel verb, our types in and out, and an error that names the object.
//!
//! A namespace is never entered on a thread that lives on ([`netns::inside`] makes one that
//! ends); `fork` is refused in a process with more than one thread ([`process::fork_child`]); a
//! program with many threads starts others in new namespaces with [`spawn::NsCommand`], whose child
//! does nothing but a few system calls before its `execve`.
//!
//! Left out on purpose: running containers (the shim, by libcontainer) and the pod network (netd).

pub mod cgroup;
pub mod cleanup;
pub mod devices;
pub mod error;
pub mod fds;
pub mod mounts;
pub mod netns;
pub mod pause;
pub mod process;
pub mod sealed;
pub mod seccomp;
pub mod spawn;
pub mod subpath;

pub use cleanup::{Cleanup, cleanup};
pub use error::SandboxError;
