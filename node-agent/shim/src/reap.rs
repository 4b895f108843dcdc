//! Children that end: helpers, containers, exec'd processes, and orphans that nobody else reaps.

use rustix::process::{WaitOptions, WaitStatus};
use trellis_sandbox::process;
use trellis_shim_protocol::{Exit, Happening, Phase, Reply};

use crate::clock;
use crate::conn::Waiting;
use crate::helper::Purpose;
use crate::logs::READ_BYTES;
use crate::server::Shim;

/// Read at once of a stream whose container has ended: as much as a pipe can be made to hold by
/// default (`/proc/sys/fs/pipe-max-size`, 1 MiB).
const LAST_OUTPUT_BYTES: usize = 1 << 20;

/// Ended children whose helper has not named them yet: between a fork and its report.
const MAX_UNCLAIMED: usize = 64;

/// Finished execs whose exit code nobody has asked for yet.
const MAX_FINISHED_EXECS: usize = 64;

impl Shim {
    /// Reaps all that have ended. Helpers are heard first, so that their processes have names.
    pub fn reap(&mut self) {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if status.exited() || status.signaled() {
                ended.push((pid.as_raw_nonzero().get(), status));
            }
        }
        if ended.is_empty() {
            return;
        }
        for helper in &mut self.helpers {
            helper.listen();
        }
        for (pid, status) in ended {
            if let Some(helper) = self.helpers.iter_mut().find(|h| h.pid == pid) {
                // A create's report is all; an exec's socket is still its second fork's.
                if matches!(helper.purpose, Purpose::Create(_)) || helper.said.pid.is_none() {
                    helper.ended = true;
                }
                continue;
            }
            if self.surface.pause == Some(pid) {
                // All that was in its namespace has ended with it, and nothing can be put there again.
                self.note("the first process of the shared PID namespace was killed: the sandbox is lost");
                self.ending = true;
                continue;
            }
            if !self.ended(pid, status) {
                if self.unclaimed.len() == MAX_UNCLAIMED {
                    self.unclaimed.pop_front();
                }
                self.unclaimed.push_back((pid, status));
            }
        }
        self.finish_helpers();
    }

    /// Helpers that have said all: their container or exec stands, or does not.
    pub fn finish_helpers(&mut self) {
        while let Some(at) = self.helpers.iter().position(|h| h.is_done()) {
            let mut helper = self.helpers.swap_remove(at);
            let pid = helper.said.pid;
            let said = std::mem::take(&mut helper.said);
            match &helper.purpose {
                Purpose::Create(id) => {
                    let id = id.clone();
                    self.created(helper.conn, &id, said, helper.fds.pop_front());
                }
                Purpose::Exec(id) => self.exec_started(helper.conn, *id, said, helper.fds.pop_front()),
            }
            if let Some(pid) = pid
                && let Some(at) = self.unclaimed.iter().position(|(p, _)| *p == pid)
                && let Some((pid, status)) = self.unclaimed.remove(at)
            {
                self.ended(pid, status);
            }
        }
        if self.helpers.is_empty() {
            self.unclaimed.clear();
        }
    }

    /// A process with a name has ended. `false`: it has none (yet).
    fn ended(&mut self, pid: i32, status: WaitStatus) -> bool {
        let signal = status.terminating_signal();
        let code = status.exit_status().unwrap_or_else(|| 128 + signal.unwrap_or(0));
        let exit = Exit { code, signal, oom_killed: false, at: clock::now() };
        let container = self
            .containers
            .iter()
            .find(|(_, c)| c.is_live() && c.state.as_ref().is_some_and(|s| s.pid == pid))
            .map(|(id, _)| id.clone());
        if let Some(id) = container {
            self.container_ended(&id, exit);
            return true;
        }
        let exec = self.execs.iter().find(|(_, e)| e.pid == pid && e.exit.is_none()).map(|(id, _)| *id);
        match exec {
            Some(id) => {
                if let Some(record) = self.execs.get_mut(&id) {
                    record.exit = Some(exit.clone());
                }
                self.answer_waiting(&Waiting::Exec(id), &Reply::Exited(exit));
                self.forget_old_execs();
                true
            }
            None => false,
        }
    }

    fn container_ended(&mut self, id: &str, mut exit: Exit) {
        if (self.config.share_pid || self.config.host_pid)
            && let Some(container) = self.containers.get(id)
        {
            // No PID namespace has ended with it: what it started would live on.
            for pid in container.group.processes() {
                let _ = process::kill(pid, rustix::process::Signal::KILL.as_raw());
            }
        }
        // Everyone who wrote is dead or about to be: what is in the pipes is all there will be. Bounded,
        // or whoever lives on with the other end (a signal is on its way to it, or it is an exec's
        // child of another container) could keep the shim here by writing; the poll loop goes on reading.
        for which in 0..2 {
            let reads = LAST_OUTPUT_BYTES / READ_BYTES;
            let _ = (0..reads).take_while(|_| self.read_output(id, which)).count();
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        exit.oom_killed = exit.code != 0 && container.group.oom_kills() > 0;
        container.stdin = None;
        if let Some(state) = &mut container.state {
            state.phase = Phase::Exited;
            state.exit = Some(exit.clone());
        }
        self.happened(id, Happening::Exited(exit.clone()));
        self.answer_waiting(&Waiting::Container(id.to_owned()), &Reply::Exited(exit));
    }

    fn forget_old_execs(&mut self) {
        let finished: Vec<u64> = self.execs.iter().filter(|(_, e)| e.exit.is_some()).map(|(id, _)| *id).collect();
        for id in finished.iter().take(finished.len().saturating_sub(MAX_FINISHED_EXECS)) {
            self.execs.remove(id);
        }
    }
}
