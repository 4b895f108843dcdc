//! Reading a tar archive member by member, with everything that describes one bounded before it
//! is read: the `tar` crate takes long names and PAX headers into memory whole, of whatever size
//! the archive says, and makes up the holes of sparse files, which no limit on the stream sees.
//!
//! The headers themselves are parsed by the `tar` crate.

use std::io::{self, Read, Seek, SeekFrom};

use tar::{EntryType, Header};

use crate::unpack::UnpackError;

const BLOCK_BYTES: u64 = 512;

/// A header, with what the extension headers before it say.
pub(crate) struct Member {
    pub header: Header,
    /// Bytes of content.
    pub size: u64,
    /// Where the content begins, in bytes from the archive's beginning.
    pub offset: u64,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl Member {
    /// GNU's long name, PAX' path or the header's, in this order.
    pub fn path(&self) -> Vec<u8> {
        self.long_name
            .clone()
            .or_else(|| self.pax_value(b"path"))
            .unwrap_or_else(|| self.header.path_bytes().into_owned())
    }

    /// Likewise a link's target.
    pub fn link_name(&self) -> Option<Vec<u8>> {
        self.long_link
            .clone()
            .or_else(|| self.pax_value(b"linkpath"))
            .or_else(|| self.header.link_name_bytes().map(std::borrow::Cow::into_owned))
    }

    /// What its PAX header says; nothing without one.
    pub fn pax(&self) -> Records<'_> {
        Records(self.pax.as_deref().unwrap_or_default())
    }

    /// The last of a key counts, as POSIX has it.
    fn pax_value(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.pax().filter_map(Result::ok).filter(|(k, _)| *k == key).last().map(|(_, value)| value.to_vec())
    }
}

/// `<length> <key>=<value>\n`, one after the other; the length counts itself and the newline, so a
/// value may hold any bytes.
pub(crate) struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = io::Result<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        // Some writers fill up with zeros.
        if self.0.iter().all(|b| *b == 0) {
            return None;
        }
        let record = record(self.0);
        self.0 = record.as_ref().map_or(&[][..], |(_, _, rest)| *rest);
        Some(record.map(|(key, value, _)| (key, value)).ok_or_else(|| io::Error::other("a malformed PAX record")))
    }
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(21).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let text = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|b| *b == b'=')?;
    Some((&text[..equals], &text[equals + 1..], &bytes[length..]))
}

/// The members of an archive. Reading from it gives the present member's content.
pub(crate) struct Members<R> {
    source: R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    extension_bytes: u64,
    /// Of the source.
    position: u64,
    /// Content of the present member that was not read yet, and what fills its last block.
    left: u64,
    padding: u64,
}

impl<R: Read> Members<R> {
    /// Reads one that comes as a stream. No extension header may be larger than `extension_bytes`.
    pub fn new(source: R, extension_bytes: u64) -> Self {
        let skip = |source: &mut R, bytes: u64| {
            if io::copy(&mut source.take(bytes), &mut io::sink())? == bytes { Ok(()) } else { Err(cut()) }
        };
        Self { source, skip, extension_bytes, position: 0, left: 0, padding: 0 }
    }

    /// Passes over contents by seeking.
    pub fn seeking(source: R, extension_bytes: u64) -> Self
    where
        R: Seek,
    {
        let skip = |source: &mut R, bytes: u64| {
            let bytes = i64::try_from(bytes).map_err(io::Error::other)?;
            source.seek(SeekFrom::Current(bytes)).map(drop)
        };
        Self { skip, ..Self::new(source, extension_bytes) }
    }

    /// The next member; `None` at the archive's end. What was not read of the one before is passed over.
    pub fn next(&mut self) -> Result<Option<Member>, UnpackError> {
        let (mut long_name, mut long_link, mut pax) = (None, None, None);
        loop {
            let Some(header) = self.header().map_err(UnpackError::Stream)? else {
                if long_name.is_some() || long_link.is_some() || pax.is_some() {
                    let reason = io::Error::other("the archive ends where an extension header announces an entry");
                    return Err(UnpackError::Stream(reason));
                }
                return Ok(None);
            };
            let known = header.as_gnu().is_some() || header.as_ustar().is_some();
            let kept = match header.entry_type() {
                EntryType::GNULongName if known => &mut long_name,
                EntryType::GNULongLink if known => &mut long_link,
                EntryType::XHeader if known => &mut pax,
                _ => return self.member(header, long_name, long_link, pax).map(Some),
            };
            if kept.is_some() {
                let what = "two extension headers of one kind for one entry".to_owned();
                return Err(UnpackError::Conflict { entry: shown(&header.path_bytes()), what });
            }
            *kept = Some(self.extension(&header)?);
        }
    }

    /// One block; `None` at the end, which is an empty block or the source's own.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let rest = self.left + self.padding;
        if rest > 0 {
            (self.skip)(&mut self.source, rest)?;
            self.position += rest;
            (self.left, self.padding) = (0, 0);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut read = 0;
        while read < block.len() {
            match self.source.read(&mut block[read..]) {
                Ok(0) if read == 0 => return Ok(None),
                Ok(0) => return Err(cut()),
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.position += BLOCK_BYTES;
        if header.as_bytes().iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
        let bytes = header.as_bytes();
        // The checksum's own field counts as blanks.
        if sum(&bytes[..148]) + sum(&bytes[156..]) + 8 * u32::from(b' ') != header.cksum()? {
            return Err(io::Error::other("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The content of an extension header, if it is not too large.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, UnpackError> {
        let size = header.entry_size().map_err(UnpackError::Stream)?;
        if size > self.extension_bytes {
            return Err(UnpackError::TooMany {
                entry: shown(&header.path_bytes()),
                what: "bytes in an extension header",
                limit: self.extension_bytes,
            });
        }
        self.content(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(UnpackError::Stream)?;
        if !header.entry_type().is_pax_local_extensions() && bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(bytes)
    }

    fn member(
        &mut self,
        header: Header,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: Option<Vec<u8>>,
    ) -> Result<Member, UnpackError> {
        let mut member = Member { header, size: 0, offset: self.position, long_name, long_link, pax };
        let entry = || shown(&member.path());
        if member.header.entry_type() == EntryType::GNUSparse {
            return Err(UnpackError::Sparse { entry: entry() });
        }
        let stated = member.header.entry_size().map_err(UnpackError::Stream)?;
        let mut size = None;
        for record in member.pax() {
            let (key, value) = record.map_err(UnpackError::Stream)?;
            if key.starts_with(b"GNU.sparse.") {
                return Err(UnpackError::Sparse { entry: entry() });
            }
            // What an extension header says is for the entry itself.
            if key != b"size" || member.header.entry_type() == EntryType::XGlobalHeader {
                continue;
            }
            let text = String::from_utf8_lossy(value);
            let what = match (text.parse::<u64>(), size) {
                (Err(_), _) => format!("PAX size {text:?} is no number"),
                (Ok(now), Some(before)) if now != before => "two PAX sizes".to_owned(),
                // A PAX size is for what the old field cannot hold. When both are given and differ, two
                // readers would see two different archives (CVE-2025-62518).
                (Ok(now), _) if stated != 0 && stated != now => {
                    format!("size {stated} in the header, {now} in its PAX extension")
                }
                (Ok(now), _) => {
                    size = Some(now);
                    continue;
                }
            };
            return Err(UnpackError::Conflict { entry: entry(), what });
        }
        member.size = size.unwrap_or(stated);
        self.content(member.size)?;
        Ok(member)
    }

    /// `size` bytes of content lie ahead.
    fn content(&mut self, size: u64) -> Result<(), UnpackError> {
        let blocks = size.checked_next_multiple_of(BLOCK_BYTES);
        if blocks.and_then(|b| self.position.checked_add(b)).is_none() {
            return Err(UnpackError::Stream(io::Error::other(format!("an entry of {size} bytes"))));
        }
        (self.left, self.padding) = (size, size.next_multiple_of(BLOCK_BYTES) - size);
        Ok(())
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut buffer[..wanted])?;
        if n == 0 {
            return Err(cut());
        }
        self.left -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within an entry")
}

/// A path for an error message.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pax_records_go_by_their_length() {
        let all = |bytes: &[u8]| -> Vec<Option<(Vec<u8>, Vec<u8>)>> {
            Records(bytes).map(|r| r.ok().map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
        };
        let pair = |k: &str, v: &[u8]| Some((k.as_bytes().to_vec(), v.to_vec()));
        assert_eq!(all(b"6 a=b\n8 c=\n\n=\n\0\0"), [pair("a", b"b"), pair("c", b"\n\n=")]);
        assert_eq!(all(b""), []);
        // Whatever is wrong with one, it is told, and no other follows.
        for broken in [&b"7 a=b\n6 a=b\n"[..], b"99 a=b\n", b"0 a=b\n", b"x a=b\n", b"6a=b\n", b"5 ab\n", b"-1 a=b\n"] {
            assert_eq!(all(broken), [None], "{broken:?}");
        }
    }
}
