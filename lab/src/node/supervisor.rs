//! Which daemons of a node run: the pure part of its init.
//!
//! ```text
//! unknown --start--> due --spawned--> running --exited, wanted--> waiting --time--> due
//!                                        \------ exited, stopped --> stopped
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::control::{DaemonSpec, DaemonState};

/// A crash is told from an upgrade by nobody: come back at once …
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// … but do not burn the machine that one develops on.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Who ran this long gets the short pause again.
const STEADY: Duration = Duration::from_secs(10);

struct Daemon {
    spec: DaemonSpec,
    wanted: bool,
    running: Option<(i32, Instant)>,
    due: Option<Instant>,
    pause: Duration,
    restarts: u32,
    last_exit: Option<String>,
}

/// All daemons of a node.
#[derive(Default)]
pub(super) struct Supervisor {
    daemons: BTreeMap<String, Daemon>,
}

impl Supervisor {
    /// It shall run from now on.
    pub(super) fn start(&mut self, spec: DaemonSpec, now: Instant) {
        let daemon = self.daemons.entry(spec.name.clone()).or_insert_with(|| Daemon {
            spec: spec.clone(),
            wanted: false,
            running: None,
            due: None,
            pause: PAUSE_MIN,
            restarts: 0,
            last_exit: None,
        });
        daemon.spec = spec;
        daemon.wanted = true;
        if daemon.running.is_none() {
            daemon.due = Some(now);
        }
    }

    /// It shall not run any more; answers whom to send SIGTERM.
    pub(super) fn stop(&mut self, name: &str) -> Option<i32> {
        let daemon = self.daemons.get_mut(name)?;
        daemon.wanted = false;
        daemon.due = None;
        daemon.running.map(|(pid, _)| pid)
    }

    /// Its process.
    pub(super) fn pid(&self, name: &str) -> Option<i32> {
        self.daemons.get(name)?.running.map(|(pid, _)| pid)
    }

    /// What is to be started now. Each is named once: report it as spawned or failed.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<DaemonSpec> {
        let due = self.daemons.values_mut().filter(|d| d.due.is_some_and(|at| at <= now));
        due.map(|d| {
            d.due = None;
            d.spec.clone()
        })
        .collect()
    }

    /// When [`Supervisor::take_due`] has something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.daemons.values().filter_map(|d| d.due).min()
    }

    /// It was started.
    pub(super) fn spawned(&mut self, name: &str, pid: i32, now: Instant) {
        if let Some(daemon) = self.daemons.get_mut(name) {
            daemon.running = Some((pid, now));
        }
    }

    /// It could not be started.
    pub(super) fn failed(&mut self, name: &str, why: String, now: Instant) {
        if let Some(daemon) = self.daemons.get_mut(name) {
            daemon.ended(why, now, Duration::ZERO);
        }
    }

    /// A process ended; not necessarily a daemon: orphans of the whole node end here.
    pub(super) fn exited(&mut self, pid: i32, how: String, now: Instant) {
        for daemon in self.daemons.values_mut() {
            if let Some((_, since)) = daemon.running.take_if(|(p, _)| *p == pid) {
                daemon.ended(how, now, now.saturating_duration_since(since));
                return;
            }
        }
    }

    /// All, as told to who asks.
    pub(super) fn states(&self) -> Vec<DaemonState> {
        let state = |d: &Daemon| DaemonState {
            name: d.spec.name.clone(),
            pid: d.running.map(|(pid, _)| pid),
            wanted: d.wanted,
            restarts: d.restarts,
            last_exit: d.last_exit.clone(),
        };
        self.daemons.values().map(state).collect()
    }
}

impl Daemon {
    fn ended(&mut self, how: String, now: Instant, ran: Duration) {
        self.last_exit = Some(how);
        if !self.wanted {
            return;
        }
        if ran >= STEADY {
            self.pause = PAUSE_MIN;
        }
        self.due = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.restarts = self.restarts.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(name: &str) -> DaemonSpec {
        DaemonSpec { name: name.to_owned(), argv: vec!["x".to_owned()], env: BTreeMap::new(), user: None }
    }

    #[test]
    fn a_daemon_that_ends_comes_back_with_growing_pauses() {
        let (mut s, t0) = (Supervisor::default(), Instant::now());
        s.start(spec("a"), t0);
        assert_eq!(s.take_due(t0).len(), 1);
        assert!(s.take_due(t0).is_empty(), "named once only");
        s.spawned("a", 7, t0);
        s.start(spec("a"), t0);
        assert_eq!(s.next_due(), None, "starting what runs changes nothing");
        s.exited(7, "code 1".to_owned(), t0);
        assert_eq!(s.next_due(), Some(t0 + PAUSE_MIN));
        s.spawned("a", 8, t0);
        s.exited(8, "code 1".to_owned(), t0);
        assert_eq!(s.next_due(), Some(t0 + PAUSE_MIN * 2));
        assert_eq!(s.states()[0].restarts, 2);
    }

    #[test]
    fn a_steady_daemon_starts_afresh() {
        let (mut s, t0) = (Supervisor::default(), Instant::now());
        s.start(spec("a"), t0);
        for pid in 1..9 {
            s.take_due(t0 + STEADY);
            s.spawned("a", pid, t0);
            s.exited(pid, "code 1".to_owned(), t0);
        }
        s.take_due(t0 + STEADY);
        s.spawned("a", 9, t0);
        s.exited(9, "signal 9".to_owned(), t0 + STEADY);
        assert_eq!(s.next_due(), Some(t0 + STEADY + PAUSE_MIN));
    }

    #[test]
    fn a_stopped_daemon_stays_down() {
        let (mut s, t0) = (Supervisor::default(), Instant::now());
        s.start(spec("a"), t0);
        s.take_due(t0);
        s.spawned("a", 7, t0);
        assert_eq!(s.stop("a"), Some(7));
        s.exited(7, "code 0".to_owned(), t0);
        assert_eq!(s.next_due(), None);
        assert_eq!(s.states()[0].last_exit.as_deref(), Some("code 0"));
        s.exited(99, "an orphan".to_owned(), t0);
        s.start(spec("a"), t0);
        assert_eq!(s.next_due(), Some(t0));
    }

    #[test]
    fn what_cannot_be_started_is_tried_again() {
        let (mut s, t0) = (Supervisor::default(), Instant::now());
        s.start(spec("a"), t0);
        s.take_due(t0);
        s.failed("a", "no such file".to_owned(), t0);
        assert_eq!(s.next_due(), Some(t0 + PAUSE_MIN));
    }
}
