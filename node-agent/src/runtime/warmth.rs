//! Keeps the kernel ready to move processes into cgroups while Pods start.
//!
//! Moving a process takes a lock that every fork and exit reads, and the first to take it waits for
//! an RCU grace period: 6 to 12 ms in which nothing happens. A Pod's start does it twice, for the
//! shim and for the container, 24 ms of the 100 that a start may last. Whoever takes the lock soon
//! after finds it ready (`rcu_sync` in the kernel leaves it so for about another grace period). So
//! while a Pod starts, the agent moves itself, every few milliseconds, into the cgroup that it is
//! in: nothing moves, 20 µs each, and the waits fall into the time before the shim gets there.
//! cgroup v2 has `CLONE_INTO_CGROUP` against this; v1 and libcontainer have not.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use trellis_sandbox::cgroup::{CgroupRoot, Cgroups};

/// Less than the shortest grace period that was seen.
const EVERY: Duration = Duration::from_millis(4);
/// From one step of a Pod's start to the next, or to its end, where nothing is pulled. A longer one
/// waits for the grace period again.
const STEP: Duration = Duration::from_millis(250);

/// The handle; clones share the thread.
#[derive(Clone, Debug, Default)]
pub struct Warmth(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    until: Mutex<Option<Instant>>,
    bell: Condvar,
}

impl Warmth {
    /// Starts the thread, which sleeps while no Pod starts. Where it cannot do its work, starts are
    /// slower and all else is the same.
    pub fn start() -> Self {
        let warmth = Self::default();
        let shared = Arc::clone(&warmth.0);
        let began = own_group().and_then(|file| {
            thread::Builder::new()
                .name("cgroup-warmth".into())
                .spawn(move || shared.run(&file))
                .map_err(|e| e.to_string())
        });
        if let Err(error) = began {
            tracing::warn!(error, "Pods will start some milliseconds slower");
        }
        warmth
    }

    /// A step of a Pod's start begins.
    pub fn expect_start(&self) {
        *self.0.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + STEP);
        self.0.bell.notify_one();
    }
}

impl Shared {
    fn run(&self, file: &Path) {
        loop {
            self.sleep_until_wanted();
            if let Err(error) = move_self(file) {
                tracing::warn!(path = %file.display(), %error, "Pods will start some milliseconds slower");
                return;
            }
            thread::sleep(EVERY);
        }
    }

    fn sleep_until_wanted(&self) {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |until: &mut Option<Instant>| until.is_none_or(|until| until <= Instant::now());
        drop(self.bell.wait_while(until, idle));
    }
}

/// The file that this process is moved with into the group it is in.
fn own_group() -> Result<PathBuf, String> {
    let groups = Cgroups::detect(&CgroupRoot::Own).map_err(|e| e.to_string())?;
    let first = groups.hierarchies().first().ok_or("no cgroup hierarchy")?;
    Ok(first.base.join("cgroup.procs"))
}

fn move_self(file: &Path) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(b"0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_writes_while_a_start_is_expected_and_then_sleeps() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("cgroup.procs");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let warmth = Warmth::default();
        let (shared, path) = (Arc::clone(&warmth.0), fifo.clone());
        thread::spawn(move || shared.run(&path));
        warmth.expect_start();
        // Opening waits for the writer, who comes only when a start is expected.
        let mut byte = [0];
        io::Read::read_exact(&mut File::open(&fifo).unwrap(), &mut byte).unwrap();
        assert_eq!(byte, *b"0");
    }
}
