//! The one error of this crate: what was tried, on what, and what the kernel said.

use std::fmt::Display;
use std::io;

/// A kernel verb failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object}: {source}{}", advice(source))]
pub struct SandboxError {
    /// What was tried, e.g. `mount overlay at`.
    pub verb: &'static str,
    /// On what.
    pub object: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl SandboxError {
    /// Makes the error; for `map_err`.
    pub fn new(verb: &'static str, object: impl Display, source: impl Into<io::Error>) -> Self {
        Self { verb, object: object.to_string(), source: source.into() }
    }

    /// The errno, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Known errnos turn into advice.
fn advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (it needs root, or a capability this process lacks)",
        Some(libc::ENODEV) => " (this kernel lacks the file system)",
        Some(libc::ENOSYS) => " (this kernel lacks the call)",
        Some(libc::ENOSPC) => " (disk full, or a namespace limit in /proc/sys/user is reached)",
        _ => "",
    }
}
