//! Which lines of a log that is read a second time are new. Pure.
//!
//! A stream that broke is opened anew from the log's start, since no clock of ours can say where
//! it broke. Each line bears the time at which it was written, to the nanosecond: all is skipped up
//! to the last line that was printed; if that is gone (rotated away), up to the latest time printed.

/// What was printed last.
#[derive(Debug, Default)]
pub struct Resume {
    /// The last whole line, its time before it.
    last: Vec<u8>,
    /// The latest time of all that was printed: a clock may have been set back since.
    newest: Option<jiff::Timestamp>,
    /// How many like it came in a row.
    alike: usize,
    /// While skipping: how many of these are still to come.
    skip: usize,
    /// The line that is coming in.
    open: Vec<u8>,
    /// What of the line after `last` was printed.
    shown: Vec<u8>,
}

/// What of a piece is to be printed.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// With the line's time, if it begins one.
    pub bytes: Vec<u8>,
    /// It begins a line.
    pub begins: bool,
}

/// The time before a line: RFC 3339, so texts of one length sort as times do; fractions may lack
/// trailing zeros.
fn time(line: &[u8]) -> Option<jiff::Timestamp> {
    let end = line.iter().position(|b| *b == b' ')?;
    std::str::from_utf8(&line[..end]).ok()?.parse().ok()
}

/// The line without its time.
pub fn text(line: &[u8]) -> &[u8] {
    match line.iter().position(|b| *b == b' ') {
        Some(at) if time(line).is_some() => &line[at + 1..],
        _ => line,
    }
}

impl Resume {
    /// Something was printed already.
    pub fn begun(&self) -> bool {
        self.alike > 0
    }

    /// The log comes once more from its start.
    pub fn again(&mut self) {
        self.skip = self.alike;
        self.open.clear();
    }

    /// What is to be printed of this piece of a line; its last one ends with a newline.
    pub fn take(&mut self, piece: &[u8]) -> Option<Part> {
        self.open.extend_from_slice(piece);
        let whole = piece.ends_with(b"\n");
        if self.skip > 0 && !(whole && self.ends_skipping()) {
            if whole {
                self.open.clear();
            }
            return None;
        }
        let known = if self.open.starts_with(&self.shown) { self.shown.len() } else { 0 };
        // Shorter than what was shown of it: the rest comes.
        let new = if self.shown.starts_with(&self.open) { Vec::new() } else { self.open[known..].to_vec() };
        let part = (!new.is_empty()).then_some(Part { bytes: new, begins: known == 0 });
        if whole {
            self.newest = self.newest.max(time(&self.open));
            self.alike = if self.open == self.last { self.alike + 1 } else { 1 };
            self.last = std::mem::take(&mut self.open);
            self.shown.clear();
        } else if part.is_some() {
            self.shown.clone_from(&self.open);
        }
        part
    }

    /// Is the whole line at hand beyond all that was printed?
    fn ends_skipping(&mut self) -> bool {
        if self.open == self.last {
            self.skip -= 1;
            return false;
        }
        let passed = time(&self.open).zip(self.newest).is_some_and(|(now, then)| now > then);
        if passed {
            self.skip = 0;
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: [&str; 6] = [
        "2026-01-01T00:00:00.1Z a\n",
        "2026-01-01T00:00:00.2Z b\n",
        "2026-01-01T00:00:00.2Z b\n",
        "2026-01-01T00:00:00.15Z the clock was set back\n",
        "2026-01-01T00:00:00.3Z c\n",
        "2026-01-01T00:00:00.4Z d\n",
    ];

    fn printed(resume: &mut Resume, pieces: &[&str]) -> String {
        let parts = pieces.iter().filter_map(|p| resume.take(p.as_bytes()));
        parts.map(|p| String::from_utf8_lossy(&p.bytes).into_owned()).collect()
    }

    #[test]
    fn wherever_it_breaks_no_line_is_lost_or_doubled() {
        // Some lines come in two pieces, and it may break between them.
        let pieces: Vec<&str> = LOG
            .iter()
            .flat_map(|line| {
                let cut = if line.contains('c') { line.len() - 3 } else { line.len() };
                [&line[..cut], &line[cut..]]
            })
            .filter(|p| !p.is_empty())
            .collect();
        assert!(pieces.len() > LOG.len());
        for first in 0..=pieces.len() {
            for second in first..=pieces.len() {
                let mut resume = Resume::default();
                let mut all = printed(&mut resume, &pieces[..first]);
                resume.again();
                all.push_str(&printed(&mut resume, &pieces[..second]));
                resume.again();
                // Read again, what was written in pieces comes as a whole.
                all.push_str(&printed(&mut resume, &LOG));
                assert_eq!(all, LOG.concat(), "broken after {first} and {second}");
            }
        }
    }

    #[test]
    fn a_rotated_log_goes_on_after_the_last_lines_time() {
        let mut resume = Resume::default();
        assert_eq!(printed(&mut resume, &LOG[..3]), LOG[..3].concat());
        resume.again();
        assert_eq!(printed(&mut resume, &LOG[4..]), LOG[4..].concat());
    }

    #[test]
    fn the_time_is_taken_off_and_nothing_else() {
        assert_eq!(text(b"2026-01-01T00:00:00.123456789Z  two  words\n"), b" two  words\n");
        assert_eq!(text(b"no time here\n"), b"no time here\n");
    }
}
