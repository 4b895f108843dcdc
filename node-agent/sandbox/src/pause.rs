//! The first process of a PID namespace that the containers of a Pod share.
//!
//! Everybody in the namespace sees it as process 1, and whoever has CAP_SYS_PTRACE there may look
//! through its eyes (`/proc/1/root`, `/proc/1/fd`) or take it over. So it is nobody: it has an empty,
//! read-only root of its own, no descriptors, no capabilities, an unprivileged user, and it cannot
//! be traced by its like. It does what the kernel wants of a first process: it reaps orphans.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{Gid, Uid};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{SandboxError, mounts, process};

/// The kernel's overflow id: nobody's files, nobody's processes.
const NOBODY: u32 = 65534;

/// What it says when it is nobody.
const READY: &str = "ready";

/// Starts it, in a new PID namespace below the caller's; gives its id as the caller numbers it. Its
/// network, IPC and UTS namespaces are the caller's. It becomes a child of the caller (of the reaper
/// it has): when it ends, so has everything in the namespace.
///
/// # Errors
/// What the kernel says; also when the caller has more than one thread.
pub fn start() -> Result<i32, SandboxError> {
    let error = |e: io::Error| SandboxError::new("start", "the first process of a shared PID namespace", e);
    let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (reader, writer) = pipe.map_err(|e| error(e.into()))?;
    // In between: the namespace is for the children of whoever asks for it, and the caller's own
    // children are to stay outside.
    let helper = process::fork_child(&[writer.as_raw_fd()], || {
        let forked = nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(|e| error(e.into()));
        match forked.and_then(|()| process::fork_inside(&[writer.as_raw_fd()], || stay(&writer))) {
            Ok(pid) => say(&writer, &pid.to_string()),
            Err(e) => say(&writer, &e.to_string()),
        }
    })?;
    drop(writer);
    let mut said = String::new();
    let read = File::from(reader).read_to_string(&mut said);
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(helper), None).map_err(|e| error(e.into()))?;
    read.map_err(error)?;
    outcome(&said).map_err(|why| error(io::Error::other(why)))
}

/// Its id and that it is ready, in either order; or why not.
fn outcome(said: &str) -> Result<i32, String> {
    let ready = said.lines().any(|l| l == READY);
    match said.lines().find_map(|l| l.parse().ok()) {
        Some(pid) if ready => Ok(pid),
        _ => Err(said.lines().filter(|l| *l != READY && l.parse::<i32>().is_err()).collect::<Vec<_>>().join("; ")),
    }
}

/// One line, in one write; an exit code.
fn say(to: impl AsFd, text: &str) -> i32 {
    let line = format!("{}\n", text.replace('\n', " "));
    if rustix::io::write(to, line.as_bytes()).is_ok() { 0 } else { 1 }
}

/// Its whole life, which the kernel ends.
fn stay(said: impl AsFd) -> i32 {
    if let Err(e) = become_nobody() {
        say(said, &e.to_string());
        return 1;
    }
    say(said, READY);
    // SAFETY: only descriptors are closed, and nothing here uses one from now on: the process only
    // waits, and is ended by a signal, without destructors.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    loop {
        rustix::event::pause();
    }
}

fn become_nobody() -> Result<(), SandboxError> {
    let error = |verb: &'static str| {
        move |e: io::Error| SandboxError::new(verb, "the first process of a shared PID namespace", e)
    };
    // Ignored, ended children leave no zombies: those that it gets as orphans neither.
    // SAFETY: SIG_IGN is no handler function, so none can run at a bad moment.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map_err(|e| error("set up")(e.into()))?;
    rustix::thread::set_name(c"trellis-pause").map_err(|e| error("name")(e.into()))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .map_err(|e| error("make namespaces of")(e.into()))?;
    empty_root()?;
    let confine = error("take privileges from");
    rustix::thread::set_no_new_privs(true).map_err(|e| confine(e.into()))?;
    nix::unistd::setgroups(&[]).map_err(|e| confine(e.into()))?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    nix::unistd::setresgid(gid, gid, gid).map_err(|e| confine(e.into()))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|e| confine(e.into()))?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).map_err(|e| confine(e.into()))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| confine(e.into()))
}

/// An empty folder as the root of this process' mount namespace, and nothing else in it.
fn empty_root() -> Result<(), SandboxError> {
    let error = |e: rustix::io::Errno| SandboxError::new("make an empty root on", "/proc", e);
    mounts::all_private()?;
    // Any folder that is always there: nobody else sees what is mounted on it here.
    let place = Path::new("/proc");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mounts::filesystem("tmpfs", place, flags, "mode=555,size=4k,nr_inodes=2")?;
    rustix::process::chdir(place).map_err(error)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root lies on top of the new one, and is taken off.
    rustix::process::pivot_root(".", ".").map_err(error)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(error)?;
    rustix::process::chdir("/").map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_up_when_both_have_spoken() {
        for (said, want) in [
            ("17\nready\n", Ok(17)),
            ("ready\n17\n", Ok(17)),
            ("17\ncannot do it\n", Err("cannot do it")),
            ("cannot make it\n", Err("cannot make it")),
            ("17\n", Err("")),
            ("", Err("")),
        ] {
            assert_eq!(outcome(said), want.map_err(str::to_owned), "{said:?}");
        }
    }
}
