//! Told when links, addresses, routes or nftables change, by whomever.
//!
//! What changed is not read: an event means "look again" (level, not edge). A full buffer
//! (ENOBUFS) means the same.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::SockProtocol;

use super::KernelError;
use super::socket::NetlinkSocket;

/// linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_NEIGH is left out (too chatty), RTMGRP_IPV4_IFADDR,
/// RTMGRP_IPV4_ROUTE.
const ROUTE_GROUPS: u32 = 0x1 | 0x10 | 0x40;
/// linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES is group 7, hence bit 6.
const NFTABLES_GROUP: u32 = 1 << 6;

/// Which part of the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Links, addresses, routes.
    Route,
    /// nftables.
    Nftables,
}

/// A subscription.
#[derive(Debug)]
pub struct Events {
    socket: NetlinkSocket,
}

impl Events {
    /// Subscribes, in the calling thread's network namespace.
    pub fn open(source: Source) -> Result<Self, KernelError> {
        let (protocol, groups) = match source {
            Source::Route => (SockProtocol::NetlinkRoute, ROUTE_GROUPS),
            Source::Nftables => (SockProtocol::NetlinkNetFilter, NFTABLES_GROUP),
        };
        Ok(Self { socket: NetlinkSocket::open(protocol, groups)? })
    }

    /// Forgets what was told so far.
    pub fn drain(&mut self) -> bool {
        self.socket.drain()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}
