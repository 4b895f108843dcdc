//! Frames: a 4-byte big-endian length, then that many bytes of JSON.
//!
//! [`Decoder`] holds no socket, so that an async agent and the shim's poll loop use the same one.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::MAX_FRAME_BYTES;

/// Why a frame could not be written or read. A connection that gave one is closed.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Larger than [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLarge(usize),
    /// Not the JSON that was expected.
    #[error("a frame is not valid JSON for its kind: {0}")]
    Json(#[from] serde_json::Error),
}

/// One message as the bytes of a frame.
///
/// # Errors
/// When it is larger than [`MAX_FRAME_BYTES`] or cannot be serialised.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(CodecError::TooLarge(length));
    }
    let prefix = u32::try_from(length).map_err(|_| CodecError::TooLarge(length))?;
    bytes[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(bytes)
}

/// Collects bytes and gives whole messages.
#[derive(Debug)]
pub struct Decoder<T> {
    bytes: Vec<u8>,
    of: PhantomData<fn() -> T>,
}

impl<T> Default for Decoder<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), of: PhantomData }
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// Adds what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, if its bytes are all there.
    ///
    /// # Errors
    /// When the frame is too large or not valid.
    pub fn next_frame(&mut self) -> Result<Option<T>, CodecError> {
        let Some(prefix) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(CodecError::TooLarge(length));
        }
        let Some(body) = self.bytes.get(4..4 + length) else { return Ok(None) };
        let message = serde_json::from_slice(body);
        self.bytes.drain(..4 + length);
        if self.bytes.is_empty() {
            // A spec is large and rare: do not keep its buffer for the connection's life.
            self.bytes = Vec::new();
        }
        Ok(Some(message?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{ErrorCode, Reply, Request};

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let all = [Request::Hello { versions: vec![1] }, Request::State, Request::Wait { id: "a".into() }];
        let bytes: Vec<u8> = all.iter().flat_map(|r| encode(r).unwrap()).collect();
        for cut in 0..bytes.len() {
            let mut decoder = Decoder::<Request>::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.feed(part);
                while let Some(message) = decoder.next_frame().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn oversized_and_foreign_frames_are_refused() {
        let mut decoder = Decoder::<Request>::default();
        decoder.feed(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next_frame(), Err(CodecError::TooLarge(_))));
        let mut decoder = Decoder::<Request>::default();
        decoder.feed(&encode(&Reply::Error { code: ErrorCode::Failed, message: "x".into() }).unwrap());
        assert!(matches!(decoder.next_frame(), Err(CodecError::Json(_))));
        // The frame itself was whole, so the stream is still in step.
        decoder.feed(&encode(&Request::State).unwrap());
        assert_eq!(decoder.next_frame().unwrap(), Some(Request::State));
    }
}
