//! Sealing what must not lie about in clear: Secrets and the CA's key.
//!
//! The envelope is `version (1) | key id (4) | nonce (24) | XChaCha20-Poly1305`; the key id finds
//! the key after a rotation, and both are authenticated together with the caller's context, so
//! that a sealed object cannot be passed off as another one.

use base64::Engine as _;
use chacha20poly1305::aead::{Aead, AeadCore, KeyInit, OsRng, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{PkiError, malformed};

pub(super) const ENVELOPE_VERSION: u8 = 1;
const KEY_ID_LEN: usize = 4;
const NONCE_LEN: usize = 24;
const HEADER_LEN: usize = 1 + KEY_ID_LEN + NONCE_LEN;

/// A symmetric key of 32 bytes: the key-encryption key, or gossip's. Wiped when dropped.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", hex(&self.id()))
    }
}

impl Key {
    /// A fresh key from the system's randomness.
    pub fn generate() -> Self {
        Self(Zeroizing::new(XChaCha20Poly1305::generate_key(&mut OsRng).into()))
    }

    /// Takes 32 raw bytes.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] when there are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PkiError> {
        let key = bytes.try_into().map_err(|_| malformed("a key", format!("it has {} bytes, not 32", bytes.len())))?;
        Ok(Self(Zeroizing::new(key)))
    }

    /// Reads the text of a key file: 64 hex digits, white space around them ignored.
    ///
    /// # Errors
    /// [`PkiError::Malformed`].
    pub fn from_hex(text: &str) -> Result<Self, PkiError> {
        let text = text.trim();
        let digit = |at: usize| text.get(at..at + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
        let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(digit).collect();
        let mut bytes = bytes.ok_or_else(|| malformed("a key", "it is not hexadecimal"))?;
        let key = Self::from_bytes(&bytes);
        bytes.zeroize();
        key
    }

    /// The text for a key file.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(self.0.as_slice()))
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Names the key without telling anything about it.
    fn id(&self) -> [u8; KEY_ID_LEN] {
        let digest = Sha256::new().chain_update(b"trellis key id").chain_update(*self.0).finalize();
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&digest[..KEY_ID_LEN]);
        id
    }
}

fn authenticated(header: &[u8], context: &[u8]) -> Vec<u8> {
    [header, context].concat()
}

/// Encrypts and authenticates `plain`; `context` (an object's key, a purpose) must be given
/// again to open it.
pub fn seal(key: &Key, context: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
    let mut out = Vec::with_capacity(HEADER_LEN + plain.len() + 16);
    out.push(ENVELOPE_VERSION);
    out.extend_from_slice(&key.id());
    let aad = authenticated(&out, context);
    out.extend_from_slice(&nonce);
    let cipher = XChaCha20Poly1305::new(key.as_bytes().into());
    // Fails only for plaintexts beyond 256 GiB, which do not fit in memory here; an object is
    // at most 1.5 MB.
    if let Ok(body) = cipher.encrypt(&nonce, Payload { msg: plain, aad: &aad }) {
        out.extend_from_slice(&body);
    }
    out
}

/// Opens what [`seal`] made with the same key and context.
///
/// # Errors
/// [`PkiError::Version`], [`PkiError::WrongKey`], [`PkiError::Broken`].
pub fn open(key: &Key, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    let what = || String::from_utf8_lossy(context).into_owned();
    match sealed.first() {
        Some(&ENVELOPE_VERSION) if sealed.len() >= HEADER_LEN => {}
        Some(&ENVELOPE_VERSION) | None => return Err(PkiError::Broken(what())),
        Some(&version) => return Err(PkiError::Version(version)),
    }
    let (header, rest) = sealed.split_at(1 + KEY_ID_LEN);
    if header[1..] != key.id() {
        let (found, expected) = (hex(&header[1..]), hex(&key.id()));
        return Err(PkiError::WrongKey { found, expected });
    }
    let (nonce, body) = rest.split_at(NONCE_LEN);
    let aad = authenticated(header, context);
    XChaCha20Poly1305::new(key.as_bytes().into())
        .decrypt(XNonce::from_slice(nonce), Payload { msg: body, aad: &aad })
        .map(Zeroizing::new)
        .map_err(|_| PkiError::Broken(what()))
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Standard base64, as the bootstrap file carries sealed bytes.
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Reads [`base64()`] text.
///
/// # Errors
/// [`PkiError::Malformed`].
pub fn from_base64(text: &str) -> Result<Vec<u8>, PkiError> {
    base64::engine::general_purpose::STANDARD.decode(text.trim()).map_err(|e| malformed("base64 text", e))
}
