//! Processes as the lab remembers them over invocations: a number and when it started, so that
//! a number given out again is never taken for the process that had it before.

use std::{fs, path::Path, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Result, wait};

/// How long the kernel may take to end what was SIGKILLed, on a loaded machine.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// One process of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in this machine's PID namespace.
    pub pid: i32,
    start_ticks: u64,
}

impl Process {
    /// The process that has this number now; none when there is none, or only its corpse.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_ticks) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start_ticks })
    }

    /// Reads what [`Process::store`] wrote; none when that process is gone.
    #[must_use]
    pub fn load(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, ticks) = text.trim().split_once(' ')?;
        let stored = Self { pid: pid.parse().ok()?, start_ticks: ticks.parse().ok()? };
        stored.alive().then_some(stored)
    }

    /// Remembers the process in a file.
    pub fn store(&self, path: &Path) -> Result<()> {
        fs::write(path, format!("{} {}\n", self.pid, self.start_ticks)).map_err(Error::io(path.display().to_string()))
    }

    /// Is it still that process, and running?
    #[must_use]
    pub fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// SIGKILLs it and waits until it is gone: for the init of a PID namespace, until all of
    /// that namespace is gone.
    pub fn kill_and_wait(&self) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(Error::errno(format!("kill process {}", self.pid))(e)),
        }
        wait::until_true(&format!("the end of process {}", self.pid), DEATH_LIMIT, || !self.alive())
    }
}

/// State and start time (fields 3 and 22 of proc(5)); the name between may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_number_given_out_again_is_another_process() {
        let me = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(me.alive());
        assert!(!Process { start_ticks: me.start_ticks + 1, ..me }.alive());
    }

    #[test]
    fn names_with_parentheses_are_skipped() {
        let stat = "12 (a) b) (c) S 1 12 12 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 0";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
    }
}
