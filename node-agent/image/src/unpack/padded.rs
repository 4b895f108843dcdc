//! Archives whose writer forgot to fill the last block: `umoci insert` leaves out the padding and
//! the two empty blocks at the end, and what runs images elsewhere (Go's archive/tar) takes that.
//!
//! Not a way around truncation: fewer bytes than one block are filled in, and the digest of the
//! whole layer is compared by who reads it.

use std::io::{self, Read};

/// A tar archive is made of blocks of this size.
const BLOCK_BYTES: usize = 512;

/// Reads as `inner` does, then zeros up to the end of the block.
pub(super) struct Padded<R> {
    inner: R,
    /// Bytes read since the last block began.
    in_block: usize,
    ended: bool,
}

impl<R: Read> Padded<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, in_block: 0, ended: false }
    }
}

impl<R: Read> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut n = if self.ended { 0 } else { self.inner.read(buffer)? };
        if n == 0 {
            self.ended = true;
            n = ((BLOCK_BYTES - self.in_block) % BLOCK_BYTES).min(buffer.len());
            buffer[..n].fill(0);
        }
        self.in_block = (self.in_block + n) % BLOCK_BYTES;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_last_block_is_filled_and_no_other_made() {
        for (given, expected) in [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024)] {
            let mut all = Vec::new();
            Padded::new(&vec![7_u8; given][..]).read_to_end(&mut all).unwrap();
            assert_eq!(all.len(), expected);
            assert!(all[..given].iter().all(|b| *b == 7) && all[given..].iter().all(|b| *b == 0));
        }
    }
}
