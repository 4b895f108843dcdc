//! Why libcontainer failed: it says so in `tracing` events of processes it forks, while its errors
//! only name the step ("failed to prepare rootfs").
//!
//! A subscriber of a few lines writes ERROR events to a non-blocking pipe that all of the
//! helper's children share; the helper reads it when a create has failed. Past the pipe's 64 KiB
//! events are dropped.

use std::fmt::{self, Write as _};
use std::os::fd::OwnedFd;

use rustix::pipe::PipeFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Of an error's text in a Pod's event, this much is read by somebody.
const MAX_TEXT: usize = 2048;

/// The reading end.
pub struct Diagnostics(OwnedFd);

impl Diagnostics {
    /// Starts collecting in this process and those it will fork. `None` without a pipe to spare.
    pub fn start() -> Option<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        tracing::subscriber::set_global_default(Errors(writer)).ok()?;
        Some(Self(reader))
    }

    /// What was said so far, on one line.
    pub fn text(&self) -> String {
        let mut bytes = vec![0; MAX_TEXT];
        let read = rustix::io::read(&self.0, &mut *bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).trim_end_matches("; ").to_owned()
    }
}

struct Errors(OwnedFd);

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        line.0.push_str("; ");
        let _ = rustix::io::write(&self.0, line.0.as_bytes());
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }
}
