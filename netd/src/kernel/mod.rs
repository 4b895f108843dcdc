//! The narrow door to the kernel: the only code that speaks netlink or nftables.
//!
//! One method per kernel verb, our types in and out. A socket remembers the network namespace
//! that it was opened in, so nothing here ever enters one: the Pod's side is configured through
//! the socket that the Pod's shim opened inside and handed over.

pub mod conntrack;
pub mod events;
pub mod nft;
mod nft_read;
mod nft_rule;
pub mod rtnl;
mod rtnl_read;
pub mod socket;
pub mod sysctl;

use std::io;

use thiserror::Error;

/// A kernel verb failed.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The kernel refused.
    #[error("{verb} {object}: {source}{}", advice(.source))]
    Refused {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        object: String,
        /// Why not.
        source: io::Error,
    },
    /// An answer could not be understood.
    #[error("{verb}: the kernel's answer cannot be decoded: {what}")]
    Decode {
        /// What was asked.
        verb: &'static str,
        /// What is wrong with the answer.
        what: String,
    },
    /// Something that was there a moment ago is gone.
    #[error("{verb}: there is no interface {name}")]
    NoInterface {
        /// What was asked.
        verb: &'static str,
        /// The interface.
        name: String,
    },
}

impl KernelError {
    /// The errno, when the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// What a known errno means here.
fn advice(error: &io::Error) -> &'static str {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => " (netd needs CAP_NET_ADMIN in this network namespace's user namespace)",
        Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => " (does the kernel have this feature, or its module?)",
        Some(Errno::ENETUNREACH) => " (is the gateway on a directly connected network?)",
        Some(Errno::ENOBUFS) => " (the socket buffer is too small for the answer)",
        _ => "",
    }
}
