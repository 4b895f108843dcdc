//! Sealed packets: XChaCha20-Poly1305 under the cluster's gossip key, accepted once.
//!
//! ```text
//! | version 1 | nonce 24 = instance 8, epoch 8, counter 8 | sealed envelope and payload, tag 16 |
//! ```
//! `instance` is random per start, so that a nonce never repeats even when a machine whose clock
//! and disk went back starts with an epoch that it had before. The envelope names source,
//! destination and kind; it is inside the seal.
//!
//! Replay: per source the receiver keeps the highest epoch and, for it, a window over the
//! counters (as IPsec does, RFC 4303 section 3.4.3). No clock is compared. A source whose epoch
//! is *lower* than the known one is either a replay or a node that went back in time (a restored
//! snapshot); it is told the known epoch ([`Kind::StaleEpoch`]). The real node jumps above it; for
//! a replay the real node gets a notice that tells it nothing new: its packets and its identity
//! always carry the same epoch.
//!
//! What was heard outlives the receiver as far as its driver keeps it ([`Heard`]): of a source that
//! is remembered, nothing is accepted that is not newer than what was heard when it was last kept.
//! What was recorded between that moment and a death of the process, or came from a source that was
//! never heard, opens once more, until the source itself is heard. Inside, SWIM takes then only
//! announcements: everything else is addressed to an identity, and ours has another epoch by then.
//!
//! Left out on purpose: key rotation (the version byte leaves room for a key id).

use std::collections::HashMap;
use std::net::SocketAddr;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of a UDP payload at most: below every underlay's MTU of 1,500 minus headers.
pub const MAX_PACKET_BYTES: usize = 1400;
/// Format version of a packet.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// Two socket addresses (at most 1 + 16 + 3 bytes each in postcard) and the kind.
const MAX_ENVELOPE_BYTES: usize = 48;
/// What remains for the protocol inside.
pub(crate) const MAX_PAYLOAD_BYTES: usize = MAX_PACKET_BYTES - 1 - NONCE_BYTES - TAG_BYTES - MAX_ENVELOPE_BYTES;
/// Peers whose counters are remembered; above it the one unheard for longest is forgotten.
/// Four times the nodes that the default pod CIDR has room for, and some restarts.
const MAX_PEERS: usize = 4096;
/// Counters behind the highest that are still accepted once. A sender's counter runs over all
/// its receivers (about 10 packets a second), so this is seconds of reordering.
const WINDOW: u64 = 128;

/// The cluster's 32-byte gossip key.
#[derive(Clone)]
pub struct GossipKey(Zeroizing<[u8; 32]>);

impl GossipKey {
    /// Takes the raw key.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GossipKey(hidden)")
    }
}

/// Why a packet was not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SealError {
    /// Too short, too long, or of another version.
    #[error("not a gossip packet of version {VERSION} ({bytes} bytes)")]
    Malformed {
        /// Size of what arrived.
        bytes: usize,
    },
    /// Sealed with another key, or changed on the way.
    #[error("gossip packet from {from} fails authentication: wrong cluster key, or tampered with")]
    Forged {
        /// The UDP source.
        from: SocketAddr,
    },
    /// Seen before, or too old to tell.
    #[error("gossip packet of {source_address} was seen before")]
    Replayed {
        /// The authenticated source.
        source_address: SocketAddr,
    },
    /// The source's epoch is behind the known one.
    #[error("gossip packet of {source_address} has an epoch below the known {known}")]
    Stale {
        /// The authenticated source.
        source_address: SocketAddr,
        /// The epoch known for it.
        known: u64,
    },
    /// Addressed to another node.
    #[error("gossip packet of {source_address} is addressed to {destination}")]
    Misdirected {
        /// The authenticated source.
        source_address: SocketAddr,
        /// Whom it was for.
        destination: SocketAddr,
    },
    /// The payload does not fit.
    #[error("gossip payload of {bytes} bytes exceeds the limit of {MAX_PAYLOAD_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Encryption failed (cannot happen within the size limits).
    #[error("gossip packet could not be sealed")]
    Seal,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// A packet of the SWIM protocol.
    Swim,
    /// "I know you with this epoch": the payload is a u64, little endian.
    StaleEpoch,
}

#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    source: SocketAddr,
    destination: SocketAddr,
    kind: Kind,
}

/// An opened packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub source: SocketAddr,
    pub kind: Kind,
    pub payload: Vec<u8>,
}

/// Seals what is sent, opens what arrives.
pub(crate) struct Seal {
    cipher: XChaCha20Poly1305,
    own: SocketAddr,
    instance: u64,
    epoch: u64,
    counter: u64,
    peers: HashMap<SocketAddr, Peer>,
    /// Counts accepted packets: the age by which a peer is forgotten when there are too many.
    accepted: u64,
}

struct Peer {
    epoch: u64,
    highest: u64,
    /// Bit i: counter `highest - i` was seen.
    seen: u128,
    last_accepted: u64,
}

/// How far a source was heard: what a receiver is to remember over its restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Who.
    pub source: SocketAddr,
    /// Its highest epoch.
    pub epoch: u64,
    /// The highest counter in that epoch.
    pub counter: u64,
}

impl Seal {
    pub fn new(key: &GossipKey, own: SocketAddr, instance: u64, epoch: u64) -> Self {
        Self {
            cipher: XChaCha20Poly1305::new(key.0.as_slice().into()),
            own,
            instance,
            epoch,
            counter: 0,
            peers: HashMap::new(),
            accepted: 0,
        }
    }

    /// The epoch packets are sealed with.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Goes on under a higher epoch; a lower one is ignored.
    pub fn raise_epoch(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.counter = 0;
        }
    }

    pub fn seal(&mut self, destination: SocketAddr, kind: Kind, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(SealError::TooLarge { bytes: payload.len() });
        }
        let envelope = Envelope { source: self.own, destination, kind };
        let mut plain = postcard::to_stdvec(&envelope).map_err(|_| SealError::Seal)?;
        plain.extend_from_slice(payload);
        self.counter += 1;
        let mut packet = Vec::with_capacity(1 + NONCE_BYTES + plain.len() + TAG_BYTES);
        packet.push(VERSION);
        packet.extend_from_slice(&self.instance.to_le_bytes());
        packet.extend_from_slice(&self.epoch.to_le_bytes());
        packet.extend_from_slice(&self.counter.to_le_bytes());
        let sealed = self
            .cipher
            .encrypt(XNonce::from_slice(&packet[1..1 + NONCE_BYTES]), Payload { msg: &plain, aad: &[VERSION] })
            .map_err(|_| SealError::Seal)?;
        packet.extend_from_slice(&sealed);
        Ok(packet)
    }

    /// Opens a packet, and accepts it at most once.
    pub fn open(&mut self, from: SocketAddr, packet: &[u8]) -> Result<Opened, SealError> {
        let malformed = SealError::Malformed { bytes: packet.len() };
        if packet.len() > MAX_PACKET_BYTES || packet.len() < 1 + NONCE_BYTES + TAG_BYTES || packet[0] != VERSION {
            return Err(malformed);
        }
        let (nonce, sealed) = packet[1..].split_at(NONCE_BYTES);
        let plain = self
            .cipher
            .decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &[VERSION] })
            .map_err(|_| SealError::Forged { from })?;
        let (envelope, payload) = postcard::take_from_bytes::<Envelope>(&plain).map_err(|_| malformed)?;
        if envelope.destination != self.own || envelope.source == self.own {
            return Err(SealError::Misdirected { source_address: envelope.source, destination: envelope.destination });
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&nonce[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        // A notice about our own epoch comes from whoever knows it and may be repeated: it can
        // only raise our epoch, so it needs no window of its own beyond the common one.
        self.accept(envelope.source, word(8), word(16))?;
        Ok(Opened { source: envelope.source, kind: envelope.kind, payload: payload.to_vec() })
    }

    fn accept(&mut self, source: SocketAddr, epoch: u64, counter: u64) -> Result<(), SealError> {
        self.accepted += 1;
        let now = self.accepted;
        if !self.peers.contains_key(&source) && self.peers.len() >= MAX_PEERS {
            self.forget_oldest();
        }
        let peer = self.peers.entry(source).or_insert(Peer { epoch, highest: 0, seen: 0, last_accepted: now });
        if epoch < peer.epoch {
            return Err(SealError::Stale { source_address: source, known: peer.epoch });
        }
        if epoch > peer.epoch {
            *peer = Peer { epoch, highest: 0, seen: 0, last_accepted: now };
        }
        if counter > peer.highest {
            let ahead = counter - peer.highest;
            peer.seen = if ahead >= WINDOW { 0 } else { peer.seen << ahead };
            peer.seen |= 1;
            peer.highest = counter;
        } else {
            let behind = peer.highest - counter;
            if behind >= WINDOW || peer.seen & (1 << behind) != 0 {
                return Err(SealError::Replayed { source_address: source });
            }
            peer.seen |= 1 << behind;
        }
        peer.last_accepted = now;
        Ok(())
    }

    /// How far every source was heard.
    pub fn heard(&self) -> Vec<Heard> {
        let heard =
            |(source, peer): (&SocketAddr, &Peer)| Heard { source: *source, epoch: peer.epoch, counter: peer.highest };
        self.peers.iter().map(heard).collect()
    }

    /// Everything up to there counts as seen. What is known better already stays.
    pub fn remember(&mut self, heard: impl IntoIterator<Item = Heard>) {
        for Heard { source, epoch, counter } in heard {
            let newer = self.peers.get(&source).is_none_or(|peer| (peer.epoch, peer.highest) < (epoch, counter));
            let room = self.peers.contains_key(&source) || self.peers.len() < MAX_PEERS;
            if newer && room && source != self.own {
                let last_accepted = self.accepted;
                self.peers.insert(source, Peer { epoch, highest: counter, seen: u128::MAX, last_accepted });
            }
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.peers.iter().min_by_key(|(_, peer)| peer.last_accepted).map(|(addr, _)| *addr);
        if let Some(oldest) = oldest {
            self.peers.remove(&oldest);
        }
    }
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
