//! Connections that the kernel tracks: listing them, and forgetting single ones.

use std::io;
use std::net::Ipv4Addr;

use netlink_bindings::conntrack::{IterableTupleAttrs, Nfgenmsg, OpGetDump, Request};
use netlink_bindings::traits::NetlinkRequest;
use nix::sys::socket::SockProtocol;

use super::KernelError;
use super::socket::{NetlinkSocket, frame};
use crate::policy::Connection;

const NFPROTO_IPV4: u8 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// nfnetlink: subsystem 1 (ctnetlink), IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE.
const CT_GET: u16 = (1 << 8) | 1;
const CT_DELETE: u16 = (1 << 8) | 2;
/// linux/netfilter/nfnetlink_conntrack.h: CTA_TUPLE_ORIG, a nested attribute.
const CTA_TUPLE_ORIG: u16 = 1 | (1 << 15);
const CTA_ID: u16 = 12;

/// One tracked connection.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// Who opened it, to whom: the destination is the real one, behind any translation.
    pub connection: Connection,
    /// The original tuple as the kernel encodes it, to name the entry with.
    tuple: Vec<u8>,
    id: Option<u32>,
}

/// The door to conntrack.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// Opens it, in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { socket: NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)? })
    }

    /// All IPv4 connections.
    pub fn list(&mut self) -> Result<Vec<Tracked>, KernelError> {
        let header = Nfgenmsg { nfgen_family: NFPROTO_IPV4, ..Nfgenmsg::default() };
        let request = Request::new().op_get_dump(&header);
        let mut message = frame(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, request.payload());
        let replies = self.socket.request(&mut message, true).map_err(|source| KernelError::Refused {
            verb: "list",
            object: "tracked connections".into(),
            source,
        })?;
        Ok(replies.iter().filter_map(|reply| tracked(&reply.payload)).collect())
    }

    /// Forgets one; one that is gone already is fine.
    pub fn delete(&mut self, tracked: &Tracked) -> Result<(), KernelError> {
        let header = Nfgenmsg { nfgen_family: NFPROTO_IPV4, ..Nfgenmsg::default() };
        let mut payload = header.as_slice().to_vec();
        attribute(&mut payload, CTA_TUPLE_ORIG, &tracked.tuple);
        if let Some(id) = tracked.id {
            attribute(&mut payload, CTA_ID, &id.to_be_bytes());
        }
        let mut message = frame(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, &payload);
        match self.socket.request(&mut message, false) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => Ok(()),
            Err(source) => Err(refused(&tracked.connection, source)),
        }
    }
}

fn refused(connection: &Connection, source: io::Error) -> KernelError {
    KernelError::Refused {
        verb: "delete",
        object: format!("tracked connection {} -> {}", connection.source, connection.destination),
        source,
    }
}

fn attribute(payload: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    payload.extend_from_slice(&length.to_ne_bytes());
    payload.extend_from_slice(&kind.to_ne_bytes());
    payload.extend_from_slice(value);
    payload.resize(payload.len().next_multiple_of(4), 0);
}

fn tracked(payload: &[u8]) -> Option<Tracked> {
    let (_, attributes) = OpGetDump::decode_reply(payload);
    let original = attributes.get_tuple_orig().ok()?;
    let reply = attributes.get_tuple_reply().ok()?;
    let (source, _) = ends(&original)?;
    // What answers is whom it really goes to.
    let (destination, _) = ends(&reply)?;
    let protocol = original.get_tuple_proto().ok()?;
    let connection = Connection {
        source,
        destination,
        protocol: protocol.get_proto_num().ok()?,
        port: reply.get_tuple_proto().ok()?.get_proto_src_port().unwrap_or(0),
    };
    Some(Tracked { connection, tuple: original.get_buf().to_vec(), id: attributes.get_id().ok() })
}

fn ends(tuple: &IterableTupleAttrs<'_>) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let ip = tuple.get_tuple_ip().ok()?;
    Some((ip.get_ip_v4_src().ok()?, ip.get_ip_v4_dst().ok()?))
}
