//! Netlink messages that no crate in use here can write: nfnetlink batches and queueing
//! disciplines. A message is a header, fixed fields, and attributes that may hold attributes.

use std::{io, os::fd::AsRawFd};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};

use crate::{Error, Result};

pub(super) const REQUEST: u16 = 0x01;
pub(super) const ACK: u16 = 0x04;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
/// linux/netlink.h: NLMSG_ERROR; an acknowledgement is an error 0.
const ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
/// linux/netlink.h: NLA_F_NESTED
const NESTED: u16 = 1 << 15;
/// The kernel answers at once.
const ANSWER_SECONDS: i64 = 5;
const DATAGRAM_BYTES: usize = 64 << 10;

/// Attributes, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// netfilter's numbers are big-endian.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Ended by a zero byte.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    /// Messages are numbered from 1 on.
    pub(super) fn push(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: Attributes) {
        self.messages += 1;
        let length = u32::try_from(HEADER_BYTES + fixed.len() + attributes.0.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.messages.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.bytes.extend_from_slice(&attributes.0);
    }

    /// Sends all in the calling thread's network namespace and waits for the answer to message
    /// `last`, which must ask for one; the first refusal is the result.
    pub(super) fn send(&self, protocol: SockProtocol, last: u32) -> io::Result<()> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        send(fd.as_raw_fd(), &self.bytes, MsgFlags::empty())?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (sequence, code) in answers(&buffer[..length]) {
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(code));
                }
                if sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// How many messages there are.
    pub(super) fn len(&self) -> u32 {
        self.messages
    }
}

/// Sequence number and errno of each acknowledgement or refusal in a datagram.
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let word =
        |bytes: &[u8], at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let mut found = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let length = (word(bytes, 0) as usize).clamp(HEADER_BYTES, bytes.len());
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        if kind == ERROR {
            found.push((word(bytes, 8), -word(bytes, HEADER_BYTES).cast_signed()));
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

/// An error about `what`.
pub(super) fn refused(what: &str) -> impl FnOnce(io::Error) -> Error {
    Error::io(what.to_owned())
}

/// Used where a lack has advice of its own.
pub(super) fn lacking<T>(what: String, how: &str) -> Result<T> {
    Err(Error::Lacking { what, how: how.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let bytes = Attributes::default().text(1, "ab").nest(2, Attributes::default().number(3, 7)).0;
        let le = cfg!(target_endian = "little");
        assert!(le, "the bytes below are a little-endian machine's");
        assert_eq!(bytes, [7, 0, 1, 0, b'a', b'b', 0, 0, 12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn an_acknowledgement_and_a_refusal_are_told_apart() {
        let mut batch = Batch::default();
        batch.push(ERROR, 0, &0_i32.to_ne_bytes(), Attributes::default());
        batch.push(ERROR, 0, &(-2_i32).to_ne_bytes(), Attributes::default());
        assert_eq!(answers(&batch.bytes), [(1, 0), (2, 2)]);
    }
}
