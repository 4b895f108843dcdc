//! Containers' output, written in CRI format with rotation.
//!
//! A line longer than 16 KiB is cut into parts tagged `P`, the last one `F`; a last line without
//! newline is written when the stream ends. A full disk never blocks a container: what cannot
//! be written is counted and dropped.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use trellis_shim_protocol::LogConfig;

use crate::clock;

/// The longest part of a line (as containerd and CRI-O cut).
const MAX_PART: usize = 16 * 1024;

/// What one read takes at most: bounds how long one noisy container keeps the others waiting.
pub const READ_BYTES: usize = 32 * 1024;

/// One of a container's output streams.
pub struct Stream {
    /// The pipe's reading end, or a terminal's master; non-blocking.
    pub fd: OwnedFd,
    name: &'static str,
    pending: Vec<u8>,
    partial: bool,
}

impl Stream {
    /// `name` is `stdout` or `stderr`.
    pub fn new(fd: OwnedFd, name: &'static str) -> Self {
        Self { fd, name, pending: Vec::new(), partial: false }
    }

    /// Adds what was read; writes to `out` the log lines that are complete.
    pub fn push(&mut self, bytes: &[u8], wall_nanos: u64, out: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, tail) = rest.split_at(end);
            self.take(line, wall_nanos, out);
            self.line(wall_nanos, "F", out);
            self.partial = false;
            rest = &tail[1..];
        }
        self.take(rest, wall_nanos, out);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// The stream has ended: a last line without newline is whole now.
    pub fn end(&mut self, wall_nanos: u64, out: &mut Vec<u8>) {
        if !self.pending.is_empty() || self.partial {
            self.line(wall_nanos, "F", out);
            self.partial = false;
        }
    }

    fn take(&mut self, mut bytes: &[u8], wall_nanos: u64, out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > MAX_PART {
            let (part, tail) = bytes.split_at(MAX_PART - self.pending.len());
            self.pending.extend_from_slice(part);
            self.line(wall_nanos, "P", out);
            self.partial = true;
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn line(&mut self, wall_nanos: u64, tag: &str, out: &mut Vec<u8>) {
        clock::write_rfc3339(out, wall_nanos);
        for part in [b" ".as_slice(), self.name.as_bytes(), b" ", tag.as_bytes(), b" ", &self.pending, b"\n"] {
            out.extend_from_slice(part);
        }
        self.pending.clear();
    }
}

/// A container's log file.
pub struct Sink {
    config: LogConfig,
    file: Option<File>,
    size: u64,
    /// Bytes that could not be written.
    pub lost: u64,
}

impl Sink {
    /// Opens the file, appending.
    pub fn open(config: LogConfig) -> io::Result<Self> {
        let mut sink = Self { config, file: None, size: 0, lost: 0 };
        sink.reopen()?;
        Ok(sink)
    }

    /// Opens the file by its path again.
    pub fn reopen(&mut self) -> io::Result<()> {
        let Some(path) = &self.config.path else { return Ok(()) };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).mode(0o640).open(path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Writes whole lines; rotates before one that would not fit.
    pub fn write(&mut self, mut lines: &[u8]) {
        let Some(path) = self.config.path.clone() else { return };
        while !lines.is_empty() {
            let fits = fitting(lines, self.config.max_bytes.saturating_sub(self.size));
            // On failure the file grows on: losing lines would be worse than a late rotation.
            let rotated = fits == 0 && self.size > 0 && rotate(&path, self.config.max_files).is_ok();
            if rotated && self.reopen().is_ok() {
                continue;
            }
            let (now, later) = lines.split_at(if fits > 0 { fits } else { first_line(lines) });
            match self.file.as_mut().map(|f| f.write_all(now)) {
                Some(Ok(())) => self.size += now.len() as u64,
                _ => self.lost += now.len() as u64,
            }
            lines = later;
        }
    }
}

/// How many bytes of whole lines fit into `room`.
fn fitting(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines.len();
    }
    lines[..room].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|b| *b == b'\n').map_or(lines.len(), |at| at + 1)
}

/// `0.log` → `0.log.1` → … ; the oldest beyond `max_files` is removed.
fn rotate(path: &Path, max_files: u32) -> io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let rotated = max_files.clamp(2, 1000) - 1;
    for n in (1..rotated).rev() {
        match fs::rename(numbered(n), numbered(n + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stream() -> Stream {
        Stream::new(File::open("/dev/null").unwrap().into(), "stdout")
    }

    fn pushed(parts: &[&[u8]]) -> Vec<String> {
        let (mut stream, mut out) = (stream(), Vec::new());
        for part in parts {
            stream.push(part, 0, &mut out);
        }
        stream.end(0, &mut out);
        String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|l| l.strip_prefix("1970-01-01T00:00:00.000000000Z stdout ").unwrap().to_owned())
            .collect()
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        assert_eq!(pushed(&[b"a\nb", b"c\n\n", b"end"]), ["F a", "F bc", "F ", "F end"]);
        assert_eq!(pushed(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_long_line_comes_in_parts() {
        let long = vec![b'x'; 2 * MAX_PART + 5];
        let lines = pushed(&[&long, b"\nshort\n"]);
        let shape: Vec<(char, usize)> = lines.iter().map(|l| (l.chars().next().unwrap(), l.len() - 2)).collect();
        assert_eq!(shape, [('P', MAX_PART), ('P', MAX_PART), ('F', 5), ('F', 5)]);
    }

    #[test]
    fn rotation_bounds_files_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let config = LogConfig { path: Some(path.clone()), max_bytes: 100, max_files: 3 };
        let mut sink = Sink::open(config).unwrap();
        let text: String = (0..100).map(|i| format!("line {i:03}\n")).collect();
        sink.write(&text.as_bytes()[..450]);
        sink.write(&text.as_bytes()[450..]);
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let all: String =
            ["0.log.2", "0.log.1", "0.log"].map(|n| fs::read_to_string(dir.path().join(n)).unwrap()).concat();
        assert!(all.ends_with("line 099\n") && all.len() <= 300);
        let first: usize = all.lines().next().unwrap()[5..].parse().unwrap();
        assert_eq!(all.lines().count(), 100 - first, "no line is missing from the middle");
        assert_eq!(sink.lost, 0);
    }
}
