//! Starting a program as the first process of new namespaces, from a process with many threads.
//!
//! `clone3` with the namespace flags, then nothing but a few system calls (join cgroups, standard
//! descriptors, signals) and `execve`: the child touches no lock and allocates nothing, so other
//! threads of the parent do not matter. The lab starts its nodes' init processes with it.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::SandboxError;
use crate::process;

/// Which namespaces a child gets anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// CLONE_NEWNET.
    pub net: bool,
    /// CLONE_NEWNS.
    pub mount: bool,
    /// CLONE_NEWUTS.
    pub uts: bool,
    /// CLONE_NEWPID: the child is its first process.
    pub pid: bool,
    /// CLONE_NEWIPC.
    pub ipc: bool,
    /// CLONE_NEWCGROUP, entered after the cgroups of [`NsCommand::cgroup_procs`] were joined, so
    /// that those are the namespace's roots.
    pub cgroup: bool,
}

impl Namespaces {
    /// All of them: what a node of the lab gets.
    pub const ALL: Self = Self { net: true, mount: true, uts: true, pid: true, ipc: true, cgroup: true };

    fn clone_flags(self) -> u64 {
        let mut flags = 0;
        for (wanted, flag) in [
            (self.net, libc::CLONE_NEWNET),
            (self.mount, libc::CLONE_NEWNS),
            (self.uts, libc::CLONE_NEWUTS),
            (self.pid, libc::CLONE_NEWPID),
            (self.ipc, libc::CLONE_NEWIPC),
        ] {
            if wanted {
                flags |= flag as u64;
            }
        }
        flags
    }
}

/// A program to start in new namespaces.
#[derive(Debug)]
pub struct NsCommand {
    program: PathBuf,
    args: Vec<CString>,
    env: Vec<CString>,
    namespaces: Namespaces,
    stdio: [Option<OwnedFd>; 3],
    kept: Vec<(OwnedFd, RawFd)>,
    cgroup_procs: Vec<File>,
    new_session: bool,
    parent_death_signal: Option<i32>,
    error: Option<io::Error>,
}

/// A started child.
#[derive(Debug)]
pub struct NsChild {
    /// Its id in this process' PID namespace. It must be waited for by the caller.
    pub pid: i32,
    /// Readable (poll) when it has ended.
    pub pidfd: OwnedFd,
}

impl NsCommand {
    /// `program` is a path; it is not looked up in PATH. The environment starts empty.
    pub fn new(program: impl Into<PathBuf>, namespaces: Namespaces) -> Self {
        let program = program.into();
        let mut command = Self {
            args: Vec::new(),
            env: Vec::new(),
            namespaces,
            stdio: [None, None, None],
            kept: Vec::new(),
            cgroup_procs: Vec::new(),
            new_session: true,
            parent_death_signal: None,
            error: None,
            program: program.clone(),
        };
        command = command.arg(program);
        command
    }

    fn text(&mut self, text: &OsStr) -> CString {
        CString::new(text.as_bytes()).unwrap_or_else(|e| {
            self.error = Some(e.into());
            CString::default()
        })
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        let arg = self.text(arg.as_ref());
        self.args.push(arg);
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let mut both = std::ffi::OsString::from(name);
        both.push("=");
        both.push(value.as_ref());
        let both = self.text(&both);
        self.env.push(both);
        self
    }

    /// Sets standard input, output or error (0, 1, 2); those not set are `/dev/null`.
    #[must_use]
    pub fn stdio(mut self, which: usize, fd: OwnedFd) -> Self {
        if let Some(slot) = self.stdio.get_mut(which) {
            *slot = Some(fd);
        }
        self
    }

    /// Gives the child a descriptor under the given number (3 or more); all others are closed.
    #[must_use]
    pub fn keep_fd(mut self, fd: OwnedFd, number: RawFd) -> Self {
        self.kept.push((fd, number));
        self
    }

    /// `cgroup.procs` files, open for writing, of the cgroups that the child joins first.
    #[must_use]
    pub fn cgroup_procs(mut self, files: Vec<File>) -> Self {
        self.cgroup_procs = files;
        self
    }

    /// The signal that the child gets when the thread that spawned it ends.
    #[must_use]
    pub fn parent_death_signal(mut self, signal: i32) -> Self {
        self.parent_death_signal = Some(signal);
        self
    }

    /// Starts it; returns when the program is executing.
    ///
    /// # Errors
    /// When namespaces, cgroups or the program refuse.
    pub fn spawn(mut self) -> Result<NsChild, SandboxError> {
        let name = self.program.display().to_string();
        let error = |e: io::Error| SandboxError::new("start in new namespaces", &name, e);
        if let Some(e) = self.error.take() {
            return Err(error(e));
        }
        for slot in &mut self.stdio {
            if slot.is_none() {
                let null = File::options().read(true).write(true).open("/dev/null").map_err(error)?;
                *slot = Some(null.into());
            }
        }
        let (mut report, report_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map(|(r, w)| (File::from(r), w))
            .map_err(|e| error(e.into()))?;
        let plan = Plan::of(&self, &report_child).map_err(error)?;
        let child = clone_and_execute(&self, &plan).map_err(error)?;
        // Both copies of the writing end: only the child may hold one now.
        drop((report_child, plan));
        let mut errno = [0; 4];
        match report.read_exact(&mut errno) {
            // Closed by the execve.
            Err(_) => Ok(child),
            Ok(()) => {
                let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None);
                Err(error(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))))
            }
        }
    }
}

/// Everything the child needs, laid out before the clone: it must not allocate.
struct Plan {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// (descriptor above every target, its target)
    dups: Vec<(OwnedFd, RawFd)>,
    report: OwnedFd,
    highest: RawFd,
}

impl Plan {
    fn of(command: &NsCommand, report: &OwnedFd) -> io::Result<Self> {
        let null_ended = |list: &[CString]| {
            list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<*const libc::c_char>>()
        };
        let highest = command.kept.iter().map(|(_, n)| *n).max().unwrap_or(2).max(2);
        // Moved above all targets, so that no dup2 overwrites a source.
        let above = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, highest + 1).map_err(io::Error::from);
        let mut dups = Vec::new();
        for (number, fd) in command.stdio.iter().enumerate() {
            if let Some(fd) = fd {
                dups.push((above(fd)?, number as RawFd));
            }
        }
        for (fd, number) in &command.kept {
            dups.push((above(fd)?, *number));
        }
        Ok(Self {
            argv: null_ended(&command.args),
            envp: null_ended(&command.env),
            dups,
            report: above(report)?,
            highest,
        })
    }
}

fn clone_and_execute(command: &NsCommand, plan: &Plan) -> io::Result<NsChild> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data. No CLONE_VM: the child has a copy of memory, in which
    // only `child` runs, and that calls nothing but async-signal-safe functions. All signals are
    // blocked across the clone, so no handler of the parent's runs in the child before they are
    // reset. `pidfd` lives across the call, and the kernel gives a descriptor that is ours.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let mut args: libc::clone_args = std::mem::zeroed();
        args.flags = command.namespaces.clone_flags() | libc::CLONE_PIDFD as u64;
        args.pidfd = &raw mut pidfd as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        let pid = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>());
        if pid == 0 {
            child(command, plan);
        }
        let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) };
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result.map(|pid| NsChild { pid, pidfd: OwnedFd::from_raw_fd(pidfd) })
    }
}

/// The child: ends in `execve` or `_exit`.
///
/// # Safety
/// Only to be called in the child of `clone_and_execute`.
unsafe fn child(command: &NsCommand, plan: &Plan) -> ! {
    // SAFETY: async-signal-safe calls on memory laid out before the clone; see the callers.
    unsafe {
        let check = |result: libc::c_long| {
            if result < 0 {
                let errno = *libc::__errno_location();
                libc::write(plan.report.as_raw_fd(), (&raw const errno).cast(), 4);
                libc::_exit(127);
            }
        };
        for procs in &command.cgroup_procs {
            check(libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) as libc::c_long);
        }
        if command.namespaces.cgroup {
            check(libc::c_long::from(libc::unshare(libc::CLONE_NEWCGROUP)));
        }
        if command.new_session {
            check(libc::c_long::from(libc::setsid()));
        }
        if let Some(signal) = command.parent_death_signal {
            check(libc::c_long::from(libc::prctl(libc::PR_SET_PDEATHSIG, signal)));
        }
        for (from, to) in &plan.dups {
            check(libc::c_long::from(libc::dup2(from.as_raw_fd(), *to)));
        }
        let first = (plan.highest + 1) as u32;
        check(libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC));
        // Descriptors between 3 and the highest target that are no target: closed at execve too.
        for fd in 3..=plan.highest {
            if !plan.dups.iter().any(|(_, to)| *to == fd) {
                libc::close(fd);
            }
        }
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(plan.argv[0], plan.argv.as_ptr(), plan.envp.as_ptr());
        check(-1);
        libc::_exit(127)
    }
}

/// The namespaces of a child as descriptors, e.g. `namespace(&child, "net")`.
///
/// # Errors
/// When the child has ended.
pub fn namespace(child: &NsChild, kind: &str) -> Result<OwnedFd, SandboxError> {
    crate::netns::open(&PathBuf::from(format!("/proc/{}/ns/{kind}", child.pid)))
}

/// Ends a child with SIGKILL and reaps it.
///
/// # Errors
/// What the kernel says.
pub fn kill_and_wait(child: &NsChild) -> Result<(), SandboxError> {
    process::kill(child.pid, libc::SIGKILL)?;
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None);
    Ok(())
}
