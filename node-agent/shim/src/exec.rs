//! The helper that runs a process in a running container.
//!
//! Not libcontainer's tenant builder: that one leaves the container's seccomp filter out. Two
//! forks: the first joins cgroup and namespaces (a PID namespace is entered by children only),
//! the second becomes the program. The order of the second's steps is libcontainer's own for a
//! container's first process: identity, filter, capabilities, `execve`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, PosixRlimitType, Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, seccomp};
use rustix::pty::OpenptFlags;
use rustix::thread::ThreadNameSpaceType;
use trellis_sandbox::cgroup::Cgroup;
use trellis_sandbox::process;
use trellis_shim_protocol::Exec;

use crate::create::{PREPARED, chain, set_oom_score};
use crate::filter;
use crate::helper::{Report, report};

/// A shell's exit codes for a program that is not there, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const CANNOT_EXECUTE: i32 = 126;

/// Why the second fork did not become the program.
enum NotStarted {
    /// The container is not as it should be: the request fails.
    Container(String),
    /// The program is missing or unfit: the exec happens, and ends as it would in a shell.
    Program { code: i32, message: String },
}

impl NotStarted {
    fn program(program: &str, error: &io::Error) -> Self {
        let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        let (code, why) = match (missing, program.contains('/')) {
            (true, true) => (NOT_FOUND, "no such file or directory".to_owned()),
            (true, false) => (NOT_FOUND, "executable file not found in $PATH".to_owned()),
            (false, _) => (CANNOT_EXECUTE, error.to_string()),
        };
        Self::Program { code, message: format!("exec: {program:?}: {why}\n") }
    }
}

/// What the helper needs.
pub struct ExecJob {
    /// The request.
    pub request: Exec,
    /// The container's bundle, with the spec as prepared.
    pub bundle: PathBuf,
    /// Where compiled seccomp filters are kept.
    pub filters: Option<PathBuf>,
    /// The container's first process.
    pub pid: i32,
    /// The container's cgroup.
    pub cgroup: Cgroup,
    /// Standard input, output, error; `None` with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
    /// Where to report.
    pub socket: UnixStream,
}

impl ExecJob {
    /// The first fork's whole life; its exit code.
    pub fn run(self) -> i32 {
        match self.join_and_fork() {
            Ok(pid) => {
                report(&self.socket, &Report { pid: Some(pid), ..Report::default() }, &[]);
                0
            }
            Err(error) => {
                report(&self.socket, &Report { error: Some(error), ..Report::default() }, &[]);
                1
            }
        }
    }

    fn join_and_fork(&self) -> Result<i32, String> {
        process::reset_signals().map_err(|e| format!("cannot reset signals: {e}"))?;
        let spec = Spec::load(self.bundle.join(PREPARED)).map_err(|e| chain(&e))?;
        let rules = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
        let program = match (&self.filters, rules) {
            // From outside: the folder is the node's.
            (Some(folder), Some(rules)) => filter::compiled(folder, rules).map_err(|e| chain(&e))?,
            _ => None,
        };
        let pidfd = process::pidfd(self.pid).map_err(|e| e.to_string())?;
        if let Some(score) = spec.process().as_ref().and_then(Process::oom_score_adj) {
            // It was clamped when the container was made.
            let _ = set_oom_score(score);
        }
        self.cgroup.attach(0).map_err(|e| e.to_string())?;
        let mut kinds = ThreadNameSpaceType::MOUNT;
        let has = |kind| spec.linux().iter().flat_map(|l| l.namespaces().iter().flatten()).any(|n| n.typ() == kind);
        if has(LinuxNamespaceType::Pid) {
            kinds |= ThreadNameSpaceType::PROCESS_ID;
        }
        if has(LinuxNamespaceType::Cgroup) {
            kinds |= ThreadNameSpaceType::CONTROL_GROUP;
        }
        rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), kinds)
            .map_err(|e| format!("cannot enter the namespaces of container {}: {e}", self.request.id))?;
        let mut keep = vec![self.socket.as_raw_fd()];
        keep.extend(self.stdio.iter().flatten().map(AsRawFd::as_raw_fd));
        // This process is still in the shim's PID namespace, so this is the number the shim will reap.
        process::fork_inside(&keep, || match self.become_program(&spec, program.as_deref()) {
            NotStarted::Program { code, message } => {
                // As in a shell: the caller reads why on standard error, and the code says which.
                let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
                code
            }
            NotStarted::Container(error) => {
                report(&self.socket, &Report { error: Some(error), ..Report::default() }, &[]);
                CANNOT_EXECUTE
            }
        })
        .map_err(|e| e.to_string())
    }

    /// The second fork: gives back only an error.
    fn become_program(&self, spec: &Spec, program: Option<&[u8]>) -> NotStarted {
        let Some(process) = spec.process() else {
            return NotStarted::Container("the container's spec has no process".to_owned());
        };
        if let Err(e) = self.identity(spec, process, program) {
            let error = format!("cannot start {:?} in container {}: {e}", self.request.argv, self.request.id);
            return NotStarted::Container(error);
        }
        let env = self.environment(process);
        let error = execute_in_path(&self.request.argv, &env);
        let program = self.request.argv.first().map_or("", String::as_str);
        NotStarted::program(program, &error)
    }

    fn identity(&self, spec: &Spec, process: &Process, program: Option<&[u8]>) -> Result<(), String> {
        let text = |e: &dyn std::error::Error| chain(e);
        let user = process.user();
        let uid = self.request.uid.unwrap_or(user.uid());
        let gid = self.request.gid.unwrap_or(user.gid());
        rustix::process::setsid().map_err(|e| text(&e))?;
        match &self.stdio {
            Some([stdin, stdout, stderr]) => {
                rustix::stdio::dup2_stdin(stdin).map_err(|e| text(&e))?;
                rustix::stdio::dup2_stdout(stdout).map_err(|e| text(&e))?;
                rustix::stdio::dup2_stderr(stderr).map_err(|e| text(&e))?;
            }
            None => self.open_terminal(uid).map_err(|e| format!("cannot open a terminal: {e}"))?,
        }
        for limit in process.rlimits().iter().flatten() {
            process::set_rlimit(rlimit_number(limit.typ()), limit.soft(), limit.hard()).map_err(|e| text(&e))?;
        }
        if process.no_new_privileges() == Some(true) {
            rustix::thread::set_no_new_privs(true).map_err(|e| text(&e))?;
        }
        if let Some(umask) = user.umask() {
            rustix::process::umask(umask.into());
        }
        let cwd = self.request.cwd.clone().unwrap_or_else(|| process.cwd().display().to_string());
        let entered = rustix::process::chdir(cwd.as_str());
        let syscall = create_syscall();
        let groups: Vec<_> = user.additional_gids().iter().flatten().map(|g| nix::unistd::Gid::from_raw(*g)).collect();
        nix::unistd::setgroups(&groups).map_err(|e| text(&e))?;
        rustix::thread::set_keep_capabilities(true).map_err(|e| text(&e))?;
        nix::unistd::setresgid(gid.into(), gid.into(), gid.into()).map_err(|e| text(&e))?;
        nix::unistd::setresuid(uid.into(), uid.into(), uid.into()).map_err(|e| text(&e))?;
        capabilities::reset_effective(syscall.as_ref()).map_err(|e| text(&e))?;
        rustix::thread::set_keep_capabilities(false).map_err(|e| text(&e))?;
        if entered.is_err() {
            // A folder that only the user may enter (root squashed by a network file system).
            rustix::process::chdir(cwd.as_str()).map_err(|e| format!("working directory {cwd}: {e}"))?;
        }
        let rules = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
        let late = process.no_new_privileges().is_some();
        if let Some(program) = program {
            return filter::confine(program, process.capabilities().as_ref(), late);
        }
        if let (Some(rules), false) = (rules, late) {
            seccomp::initialize_seccomp(rules).map_err(|e| text(&e))?;
        }
        if let Some(sets) = process.capabilities() {
            capabilities::drop_privileges(sets, syscall.as_ref()).map_err(|e| text(&e))?;
        }
        if let (Some(rules), true) = (rules, late) {
            seccomp::initialize_seccomp(rules).map_err(|e| text(&e))?;
        }
        Ok(())
    }

    /// A pty of the container's own devpts; its master goes to the shim and on to the agent.
    fn open_terminal(&self, uid: u32) -> io::Result<()> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::fs::open(
            "/dev/ptmx",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        if let Some((rows, columns)) = self.request.size {
            let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            rustix::termios::tcsetwinsize(&master, size)?;
        }
        // Best effort: the group stays devpts' own.
        let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None);
        rustix::process::ioctl_tiocsctty(&slave)?;
        rustix::stdio::dup2_stdin(&slave)?;
        rustix::stdio::dup2_stdout(&slave)?;
        rustix::stdio::dup2_stderr(&slave)?;
        report(&self.socket, &Report::default(), &[master.as_fd()]);
        Ok(())
    }

    fn environment(&self, process: &Process) -> Vec<String> {
        let base = process.env().clone().unwrap_or_default();
        let mut env = merge_environment(base, &self.request.env);
        if self.request.tty && !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        if !env.iter().any(|e| e.starts_with("HOME=")) {
            env.push("HOME=/".to_owned());
        }
        env
    }
}

/// `added` replaces what `base` has under the same name.
fn merge_environment(mut base: Vec<String>, added: &[String]) -> Vec<String> {
    for entry in added {
        let name = entry.split('=').next().unwrap_or_default();
        base.retain(|e| e.split('=').next() != Some(name));
        base.push(entry.clone());
    }
    base
}

/// As `execvpe`: a name without a slash is looked up in the environment's PATH.
fn execute_in_path(argv: &[String], env: &[String]) -> io::Error {
    let c = |s: &str| CString::new(s).map_err(io::Error::from);
    let strings = |list: &[String]| list.iter().map(|s| c(s)).collect::<io::Result<Vec<_>>>();
    let (argv_c, env_c) = match (strings(argv), strings(env)) {
        (Ok(a), Ok(e)) => (a, e),
        (Err(e), _) | (_, Err(e)) => return e,
    };
    let Some(program) = argv.first().filter(|p| !p.is_empty()) else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no program named");
    };
    if program.contains('/') {
        return process::execute(&argv_c[0], &argv_c, &env_c);
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for dir in path.split(':') {
        let Ok(full) = c(&format!("{}/{program}", if dir.is_empty() { "." } else { dir })) else { continue };
        let error = process::execute(&full, &argv_c, &env_c);
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            last = error;
        }
    }
    last
}

/// The kernel's number on every architecture that Trellis is built for (asm-generic/resource.h).
fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_added_variable_replaces_its_namesake() {
        let base = vec!["A=1".to_owned(), "AB=2".to_owned()];
        assert_eq!(merge_environment(base, &["A=3".to_owned()]), ["AB=2", "A=3"]);
    }
}
