//! A container's log as the shim writes it: CRI lines
//! (`2026-01-01T00:00:00.123Z stdout F text`), rotated to `.1`, `.2` … Pure parsing, and the
//! search for where to begin.
use jiff::Timestamp;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Read at once when looking for the beginning of the tail.
const BLOCK_BYTES: u64 = 64 * 1024;

/// One line's parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339, as written.
    pub time: &'a str,
    /// The text was cut: the next line goes on with it.
    pub partial: bool,
    /// The text.
    pub text: &'a [u8],
}

/// Takes a line (without newline) apart; `None` for what is no log line.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    parts.next()?;
    let flag = parts.next()?;
    Some(Line { time, partial: flag == b"P", text: parts.next().unwrap_or_default() })
}

/// A line as the caller wants it, appended to `out`; false when it is older than `since`.
pub fn format(line: &Line<'_>, timestamps: bool, since: Option<Timestamp>, mid_line: bool, out: &mut Vec<u8>) -> bool {
    if since.is_some_and(|since| line.time.parse::<Timestamp>().is_ok_and(|at| at < since)) {
        return false;
    }
    if timestamps && !mid_line {
        out.extend_from_slice(line.time.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(line.text);
    if !line.partial {
        out.push(b'\n');
    }
    true
}

/// The log's files, oldest first, the one being written last.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        let number = found.strip_prefix(&name).and_then(|r| r.strip_prefix('.')).and_then(|n| n.parse::<u32>().ok());
        all.extend(number.map(|n| (n, entry.path())));
    }
    all.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let mut out: Vec<PathBuf> = all.into_iter().map(|(_, p)| p).collect();
    out.push(path.to_owned());
    out
}

/// Which of `files` (oldest first) the last `lines` lines begin in; it is set to that place.
pub fn tail<'a>(
    files: impl DoubleEndedIterator<Item = &'a mut File> + ExactSizeIterator,
    lines: u32,
) -> io::Result<usize> {
    let mut left = u64::from(lines);
    for (index, file) in files.enumerate().rev() {
        let length = file.metadata()?.len();
        let begin = if left == 0 { Some(length) } else { last_lines(file, length, &mut left)? };
        // All of the oldest, if there are not that many.
        if begin.is_some() || index == 0 {
            file.seek(SeekFrom::Start(begin.unwrap_or(0)))?;
            return Ok(index);
        }
        file.rewind()?;
    }
    Ok(0)
}

/// The offset where the last `left` lines begin, or `None` with `left` reduced by those there are.
fn last_lines(file: &mut File, length: u64, left: &mut u64) -> io::Result<Option<u64>> {
    let mut end = length;
    // A newline at the very end closes the last line; it begins no further one.
    let mut seen_end = false;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for at in (0..block.len()).rev().filter(|at| block[*at] == b'\n') {
            let offset = start + at as u64;
            if offset + 1 == length && !seen_end {
                seen_end = true;
                continue;
            }
            *left -= 1;
            if *left == 0 {
                return Ok(Some(offset + 1));
            }
        }
        end = start;
    }
    if length > 0 {
        // The first line of a file begins with the file.
        *left -= 1;
        if *left == 0 {
            return Ok(Some(0));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lines_come_apart_and_together_again() {
        let mut out = Vec::new();
        let full = parse(b"2026-01-01T00:00:00.5Z stdout F hello  world").unwrap();
        assert!(format(&full, false, None, false, &mut out));
        let partial = parse(b"2026-01-01T00:00:01Z stdout P half").unwrap();
        assert!(format(&partial, true, None, false, &mut out));
        let rest = parse(b"2026-01-01T00:00:01Z stdout F  done").unwrap();
        assert!(format(&rest, true, None, true, &mut out));
        assert_eq!(out, b"hello  world\n2026-01-01T00:00:01Z half done\n");
        assert_eq!(parse(b"2026-01-01T00:00:01Z stdout F").unwrap().text, b"");
        assert_eq!(parse(b"nonsense"), None);
        let since: Timestamp = "2026-01-01T00:00:01Z".parse().unwrap();
        assert!(!format(&full, false, Some(since), false, &mut out));
    }

    #[test]
    fn the_tail_reaches_into_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.2"), "a\nb\n").unwrap();
        fs::write(dir.path().join("0.log.1"), "c\nd\n").unwrap();
        fs::write(&path, "e\nf\n").unwrap();
        let all = files(&path);
        assert_eq!(all.len(), 3);
        let begin = |lines| {
            let mut open: Vec<File> = all.iter().map(|p| File::open(p).unwrap()).collect();
            let index = tail(open.iter_mut(), lines).unwrap();
            // Those after it are read from their beginnings.
            for later in &mut open[index + 1..] {
                assert_eq!(later.stream_position().unwrap(), 0);
            }
            (index, open[index].stream_position().unwrap())
        };
        for (lines, want) in
            [(0, (2, 4)), (1, (2, 2)), (2, (2, 0)), (3, (1, 2)), (4, (1, 0)), (5, (0, 2)), (6, (0, 0)), (9, (0, 0))]
        {
            assert_eq!(begin(lines), want, "{lines} lines");
        }
        fs::write(&path, "").unwrap();
        assert_eq!(begin(1), (1, 2));
        assert_eq!(tail([].into_iter(), 1).unwrap(), 0);
    }
}
