//! What the shim remembers on disk and tells subscribers: its state, and the last events.
//!
//! The file is for an agent that finds the shim dead: exit codes it had seen are not lost. It lies
//! in /run, so it needs no fsync: a machine that lost power has lost the Pod, too.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use trellis_shim_protocol::{EVENTS_KEPT, Event, Happening, Reply, STATE, SandboxState};

use crate::clock;
use crate::conn::Waiting;
use crate::server::Shim;

/// Writes beside and renames over: a reader sees the old or the new text, whole.
pub fn write_atomically(path: &Path, text: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text)?;
    drop(file);
    fs::rename(&beside, path)
}

impl Shim {
    /// The whole state, for an agent.
    pub fn state(&self) -> SandboxState {
        SandboxState {
            version: 1,
            pod_uid: self.config.pod_uid.clone(),
            shim_pid: self.host_pid,
            started_at: self.started_at,
            last_event: self.last_event,
            containers: self
                .containers
                .values()
                .filter_map(|c| {
                    let mut state = c.state.clone()?;
                    state.log_bytes_lost = c.sink.lost;
                    Some(state)
                })
                .collect(),
        }
    }

    /// Writes the state file.
    pub fn persist(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.state())?;
        write_atomically(&self.config.dir.join(STATE), &text)
    }

    /// Something happened: remember it on disk, then tell.
    pub fn happened(&mut self, id: &str, what: Happening) {
        self.last_event += 1;
        let event = Event { sequence: self.last_event, at: clock::now(), id: id.to_owned(), what };
        if let Err(e) = self.persist() {
            self.note(&format!("cannot persist the state: {e}"));
        }
        for conn in self.conns.values_mut().filter(|c| c.waiting == Waiting::Events) {
            conn.reply(&Reply::Event(event.clone()), Vec::new());
        }
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// A line in the shim's own log; at most [`MAX_NOTES`] in its life.
    pub fn note(&mut self, text: &str) {
        self.notes += 1;
        if self.notes <= MAX_NOTES && self.said.len() < MAX_SAID && self.said.insert(text.to_owned()) {
            let mut line = Vec::new();
            clock::write_rfc3339(&mut line, clock::now().wall_nanos);
            let _ = writeln!(line, " {text}");
            // Standard error is the log file; a full disk must not end the shim.
            let _ = io::stderr().write_all(&line);
        }
    }
}

/// A shim's log is for what is rare; this bounds it.
const MAX_NOTES: u32 = 1000;

/// What has been said once is not said again; past this nothing is.
const MAX_SAID: usize = 200;
