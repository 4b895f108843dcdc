//! How far an import is, for people: one line on a terminal, rewritten; elsewhere a line now and
//! then. On stderr: stdout is for what was imported.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::size;

/// Between two looks.
pub const EVERY: Duration = Duration::from_millis(250);
/// Between two lines where lines stay.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
/// Back to the line's beginning, and what is there wiped out.
const WIPE: &str = "\r\x1b[K";

/// Bytes sent, to all nodes together.
pub type Sent = Arc<AtomicU64>;

/// What is shown of an import.
pub struct Progress {
    pub sent: Sent,
    /// For all nodes; `None` where the archive's size is not known.
    total: Option<u64>,
    terminal: bool,
    shown: u64,
    /// A line stands on the terminal.
    open: bool,
    next: Instant,
}

impl Progress {
    /// Of an archive of this size to so many nodes.
    pub fn new(archive: Option<u64>, nodes: usize) -> Self {
        let total = archive.and_then(|bytes| bytes.checked_mul(nodes as u64));
        Self::on(total, std::io::stderr().is_terminal(), Instant::now())
    }

    fn on(total: Option<u64>, terminal: bool, now: Instant) -> Self {
        let next = if terminal { now } else { now + PLAIN_EVERY };
        Self { sent: Sent::default(), total, terminal, shown: 0, open: false, next }
    }

    /// Shows what is new.
    pub fn show(&mut self) {
        write(&self.tick(Instant::now()));
    }

    /// Makes room for other lines.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.open) {
            write(WIPE);
            self.shown = 0;
        }
    }

    fn tick(&mut self, now: Instant) -> String {
        let sent = self.sent.load(Ordering::Relaxed);
        if sent == self.shown || now < self.next {
            return String::new();
        }
        self.shown = sent;
        let line = match self.total {
            Some(total) if sent >= total => format!("{} sent, being unpacked", size(sent)),
            Some(total) => format!("{} of {} sent", size(sent), size(total)),
            None => format!("{} sent", size(sent)),
        };
        if self.terminal {
            self.open = true;
            return format!("{WIPE}{line}");
        }
        self.next = now + PLAIN_EVERY;
        format!("{line}\n")
    }
}

/// Nobody may see it, and the import goes on.
fn write(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_line_and_a_file_a_few() {
        let now = Instant::now();
        let mut shown = Progress::on(Some(4_000_000), true, now);
        assert_eq!(shown.tick(now), "");
        shown.sent.store(1_500_000, Ordering::Relaxed);
        assert_eq!(shown.tick(now), "\r\x1b[K1.5MB of 4.0MB sent");
        assert_eq!(shown.tick(now), "", "nothing new");
        shown.sent.store(4_000_000, Ordering::Relaxed);
        assert_eq!(shown.tick(now), "\r\x1b[K4.0MB sent, being unpacked");

        let mut plain = Progress::on(None, false, now);
        plain.sent.store(1_500_000, Ordering::Relaxed);
        assert_eq!(plain.tick(now), "", "a short import says nothing");
        assert_eq!(plain.tick(now + PLAIN_EVERY), "1.5MB sent\n");
        plain.sent.store(2_500_000, Ordering::Relaxed);
        assert_eq!(plain.tick(now + PLAIN_EVERY + EVERY), "", "not so soon");
        assert_eq!(plain.tick(now + PLAIN_EVERY * 2), "2.5MB sent\n");
        assert!(!plain.open);
    }
}
