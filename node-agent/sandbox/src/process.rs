//! Forking, pidfds and what a child must put back to normal before it executes a program.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigHandler, SigSet, Signal};
use rustix::process::{Pid, PidfdFlags};

use crate::SandboxError;

/// Forks; the child has no descriptors but 0, 1, 2 and `keep`, runs `child`, and exits with its
/// result. `child` must not use what owns other descriptors.
///
/// # Errors
/// When this process has more than one thread (another thread's locks would stay locked in the
/// child for ever), or the kernel has no process to give.
pub fn fork_child(keep: &[RawFd], child: impl FnOnce() -> i32) -> Result<i32, SandboxError> {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if !matches!(threads, Ok(1)) {
        return Err(SandboxError::new(
            "fork",
            "this process",
            io::Error::other(format!("it must have exactly one thread, and has {threads:?}")),
        ));
    }
    FORKED.store(true, Ordering::Relaxed);
    fork(keep, child)
}

/// As [`fork_child`], for a child of it that has entered a container's namespaces, where `/proc`
/// does not show it any more. Refused elsewhere; the child must have started no thread.
///
/// # Errors
/// See [`fork_child`].
pub fn fork_inside(keep: &[RawFd], child: impl FnOnce() -> i32) -> Result<i32, SandboxError> {
    if !FORKED.load(Ordering::Relaxed) {
        return Err(SandboxError::new("fork", "this process", io::Error::other("it is no child of fork_child")));
    }
    fork(keep, child)
}

/// This process, or the one it was forked from, had one thread when it first forked here.
static FORKED: AtomicBool = AtomicBool::new(false);

fn fork(keep: &[RawFd], child: impl FnOnce() -> i32) -> Result<i32, SandboxError> {
    // SAFETY: there is one thread (checked by the callers), so the child's copy of memory is
    // consistent and no lock is held by a thread that does not exist there.
    match unsafe { libc::fork() } {
        -1 => Err(SandboxError::new("fork", "this process", io::Error::last_os_error())),
        0 => {
            crate::fds::close_all_except(keep);
            let code = child();
            // SAFETY: ends the child without running destructors or buffers of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

/// Undoes what a daemon has changed and an `execve` would pass on: blocked signals, and the
/// SIGPIPE that Rust's runtime ignores.
///
/// # Errors
/// What the kernel says.
pub fn reset_signals() -> io::Result<()> {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: SIG_DFL is no handler function, so none can run at a bad moment.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    SigSet::empty().thread_set_mask()?;
    Ok(())
}

/// Executes a program: gives back only an error.
#[must_use]
pub fn execute(program: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(program, argv, env) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// A pidfd of a process.
///
/// # Errors
/// When there is no such process.
pub fn pidfd(pid: i32) -> Result<OwnedFd, SandboxError> {
    let error = |e: io::Error| SandboxError::new("open a pidfd of process", pid, e);
    let raw = Pid::from_raw(pid).ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
    rustix::process::pidfd_open(raw, PidfdFlags::empty()).map_err(|e| error(e.into()))
}

/// Sends a signal; a process that is gone already is fine.
///
/// # Errors
/// `EPERM`, or `EINVAL` for a number that is no signal.
pub fn kill(pid: i32, signal: i32) -> Result<(), SandboxError> {
    if pid <= 0 {
        return Err(SandboxError::new("signal process", pid, io::Error::from(io::ErrorKind::InvalidInput)));
    }
    // SAFETY: plain system call; the pid is positive, so neither a group nor everybody is meant.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        e => Err(SandboxError::new("signal process", pid, e)),
    }
}

/// A process' id as the PID namespace of the procfs at `proc` numbers it (through `fdinfo`).
///
/// # Errors
/// When the procfs does not show it.
pub fn pid_as_seen_by(proc: impl AsFd, pidfd: &OwnedFd) -> Result<i32, SandboxError> {
    let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
    let error = |e: io::Error| SandboxError::new("translate the process of pidfd", &path, e);
    let file = rustix::fs::openat(proc, &path, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, 0u32.into())
        .map_err(|e| error(e.into()))?;
    let text = io::read_to_string(fs::File::from(file)).map_err(error)?;
    text.lines()
        .find_map(|l| l.strip_prefix("Pid:"))
        .and_then(|v| v.trim().parse().ok())
        .ok_or_else(|| error(io::Error::other("no Pid line")))
}

/// Asks for a signal when the parent thread ends.
///
/// # Errors
/// What the kernel says.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a number.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes this process the reaper of its orphaned descendants.
///
/// # Errors
/// What the kernel says.
pub fn set_child_subreaper() -> io::Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes a number.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a resource limit of this process (`resource`: `libc::RLIMIT_…` as a number).
///
/// # Errors
/// `EPERM` when raising a hard limit without CAP_SYS_RESOURCE.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives across the call; a null old limit is allowed; pid 0 is this process.
    let done = unsafe { libc::prlimit64(0, resource as _, &raw const limit, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives memory that the allocator keeps for later back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
