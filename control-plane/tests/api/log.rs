//! What the members log, kept for tests that look into it.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use tracing_subscriber::EnvFilter;

static TEXT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Keep;

impl io::Write for Keep {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        TEXT.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to keep it; other tests log into the same text.
fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let format = tracing_subscriber::fmt().with_ansi(false).with_env_filter(EnvFilter::new("warn"));
        format.with_writer(|| Keep).init();
    });
}

/// Where the log stands; kept from the first mark on.
pub fn mark() -> usize {
    keep();
    TEXT.lock().unwrap_or_else(PoisonError::into_inner).len()
}

/// What was logged after that.
pub fn since(mark: usize) -> String {
    String::from_utf8_lossy(&TEXT.lock().unwrap_or_else(PoisonError::into_inner)[mark..]).into_owned()
}
