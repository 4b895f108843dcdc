//! From the agent's child to a detached shim inside the Pod's namespaces.
//!
//! The started process reads the configuration, makes the Pod's cgroup, moves into its child
//! `shim` (away from the agent's), forks the shim proper into a PID namespace, and ends with 0
//! when that one says that it listens. Errors before that go to standard error, to the agent.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::mount::MountFlags;
use trellis_sandbox::cgroup::{Cgroup, CgroupRoot, Cgroups, Limits};
use trellis_sandbox::{SandboxError, mounts, netns, pause, process};
use trellis_shim_protocol::{SANDBOX, SHIM_LOG, SandboxConfig};

use crate::server::{Shim, Surface};
use crate::state;

/// A configuration is a few kilobytes; sysctls and names bound it.
const MAX_CONFIG_BYTES: u64 = 256 * 1024;

/// Why the shim did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration on standard input.
    #[error("its configuration is not valid: {0}")]
    Config(String),
    /// A file or folder of the shim.
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// The kernel refused.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The forked shim ended early; it has said why on standard error.
    #[error("the sandbox of pod {0} could not be set up")]
    Child(String),
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StartError + 'a {
    move |source| StartError::Io { what, path: path.to_owned(), source }
}

/// The whole program.
pub fn run() -> Result<(), StartError> {
    let config = read_config()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.dir)
        .map_err(io_error("cannot make folder", &config.dir))?;
    let text = serde_json::to_vec(&config).map_err(|e| StartError::Config(e.to_string()))?;
    state::write_atomically(&config.dir.join(SANDBOX), &text).map_err(io_error("cannot write", &config.dir))?;
    let cgroups = Cgroups::detect(&CgroupRoot::parse(&config.cgroup_root))?;
    enter_cgroup_root(&cgroups, &config.cgroup_root)?;
    let group = make_group(&cgroups, &config)?;
    group.child("shim").create()?;
    group.child("shim").attach(0)?;

    let proc = Path::new("/proc");
    let outer_proc: OwnedFd = File::open(proc).map_err(io_error("cannot open", proc))?.into();
    let (mut ready, ready_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map(|(r, w)| (File::from(r), File::from(w)))
        .map_err(|e| SandboxError::new("make", "a pipe", e))?;
    if !config.host_pid {
        unshare(CloneFlags::CLONE_NEWPID)?;
    }
    let uid = config.pod_uid.clone();
    let keep = [outer_proc.as_raw_fd(), ready_child.as_raw_fd()];
    process::fork_child(&keep, || match become_shim(config, &cgroups, outer_proc, ready_child) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("trellis-shim: {e}");
            1
        }
    })?;
    // The other copy of the writing end is the child's: its death ends the read, too.
    let mut byte = [0];
    match ready.read_exact(&mut byte) {
        Ok(()) => Ok(()),
        Err(_) => Err(StartError::Child(uid)),
    }
}

fn read_config() -> Result<SandboxConfig, StartError> {
    let mut text = Vec::new();
    io::stdin()
        .take(MAX_CONFIG_BYTES)
        .read_to_end(&mut text)
        .map_err(|e| StartError::Config(format!("reading standard input: {e}")))?;
    let config: SandboxConfig = serde_json::from_slice(&text).map_err(|e| StartError::Config(e.to_string()))?;
    if config.version != 1 {
        return Err(StartError::Config(format!("version {} is not known here; 1 is", config.version)));
    }
    let name_ok = |s: &str| !s.is_empty() && s.len() <= 128 && !s.contains(['/', '\0']) && s != "." && s != "..";
    if !name_ok(&config.pod_uid) || !config.dir.is_absolute() || config.cgroup_path.trim_matches('/').is_empty() {
        return Err(StartError::Config("pod_uid, dir (absolute) and cgroup_path (not the root) are needed".to_owned()));
    }
    Ok(config)
}

/// On cgroup v1, libcontainer joins a process' path in `/proc/self/cgroup` to the mount points; that is
/// right only if both begin at the same group. Hence a cgroup namespace whose root is ours, and, later,
/// mounts that begin there ([`build_sandbox`]). On v2 it asks the mounts alone, and our root, which hands
/// controllers down, takes no process.
fn enter_cgroup_root(cgroups: &Cgroups, root: &str) -> Result<(), SandboxError> {
    if cgroups.is_v2() {
        return Ok(());
    }
    match CgroupRoot::parse(root) {
        CgroupRoot::Mounted => return Ok(()),
        CgroupRoot::Own => {}
        CgroupRoot::Path(_) => {
            let group = cgroups.group("");
            group.create()?;
            group.attach(0)?;
        }
    }
    unshare(CloneFlags::CLONE_NEWCGROUP)
}

fn make_group(cgroups: &Cgroups, config: &SandboxConfig) -> Result<Cgroup, SandboxError> {
    let group = cgroups.group(&config.cgroup_path);
    group.create()?;
    let limits = &config.limits;
    group.apply(&Limits {
        memory_bytes: limits.memory_bytes,
        cpu_quota_micros: limits.cpu_quota_micros,
        cpu_period_micros: limits.cpu_period_micros,
        cpu_shares: limits.cpu_shares,
        pids: limits.pids,
    })?;
    Ok(group)
}

/// In the forked child: detaches, builds the sandbox, says so, and serves.
fn become_shim(config: SandboxConfig, cgroups: &Cgroups, outer_proc: OwnedFd, ready: File) -> Result<(), StartError> {
    let kernel = |verb: &'static str| move |e: io::Error| SandboxError::new(verb, "the shim's process", e);
    rustix::process::setsid().map_err(|e| kernel("make a session of")(e.into()))?;
    // It is wanted alive when memory is short; without CAP_SYS_RESOURCE it stays as the agent's.
    let _ = crate::create::set_oom_score(-998);
    process::set_child_subreaper().map_err(kernel("make a subreaper of"))?;
    // Those that a service manager or a terminal sends to whole groups must not end a Pod.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| kernel("block signals of")(e.into()))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| kernel("read signals of")(e.into()))?;

    build_sandbox(&config, cgroups)?;
    // Not the shim's own namespace: it has the node's root and every capability.
    let pause = (config.share_pid && !config.host_pid).then(pause::start).transpose()?;
    let log_path = config.dir.join(SHIM_LOG);
    let log = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(io_error("cannot open", &log_path))?;
    let socket = config.socket();
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(io_error("cannot listen on", &socket))?;
    listener.set_nonblocking(true).map_err(io_error("cannot listen on", &socket))?;
    let shm = (!config.host_ipc).then(|| config.dir.join("shm"));
    // The hierarchies were rebased: paths are relative to where they are mounted now.
    let rebased = Cgroups::detect(&CgroupRoot::Mounted)?;
    let (group, is_v2) = (rebased.group(&config.cgroup_path), rebased.is_v2());
    let surface = Surface { listener, signals, outer_proc, group, is_v2, shm, pause };
    let mut shim = Shim::new(config, surface);
    shim.persist().map_err(io_error("cannot write the state in", &log_path))?;

    detach_stdio(&log).map_err(kernel("detach the standard descriptors of"))?;
    { ready }.write_all(b"1").map_err(kernel("tell the launcher of"))?;
    process::trim_heap();
    shim.serve();
    Ok(())
}

fn build_sandbox(config: &SandboxConfig, cgroups: &Cgroups) -> Result<(), StartError> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if !config.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    if !config.hostname.is_empty() {
        flags |= CloneFlags::CLONE_NEWUTS;
    }
    unshare(flags)?;
    mounts::all_downstream()?;
    let harmless = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if !config.host_pid {
        mounts::filesystem("proc", Path::new("/proc"), harmless, "")?;
    }
    for hierarchy in cgroups.hierarchies() {
        if hierarchy.base != hierarchy.mount_point {
            // libcontainer's paths start at the mount points: let those be our root.
            mounts::bind(&hierarchy.base, &hierarchy.mount_point, false)?;
        }
    }
    if !config.host_ipc {
        let shm = config.dir.join("shm");
        fs::create_dir_all(&shm).map_err(io_error("cannot make folder", &shm))?;
        mounts::filesystem("tmpfs", &shm, harmless, &format!("mode=1777,size={}", config.shm_bytes))?;
    }
    if !config.hostname.is_empty() {
        rustix::system::sethostname(config.hostname.as_bytes())
            .map_err(|e| SandboxError::new("set hostname", &config.hostname, e))?;
    }
    if !config.host_network {
        netns::loopback_up()?;
    }
    for (name, value) in &config.sysctls {
        let allowed = name.starts_with("net.") && !config.host_network
            || (name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name.starts_with("kernel.sem"))
                && !config.host_ipc
            || name.starts_with("fs.mqueue.") && !config.host_ipc;
        if !allowed || name.contains('/') {
            return Err(StartError::Config(format!("sysctl {name} is not namespaced: it would change the node")));
        }
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(io_error("cannot set sysctl", &path))?;
    }
    Ok(())
}

fn unshare(flags: CloneFlags) -> Result<(), SandboxError> {
    nix::sched::unshare(flags).map_err(|e| SandboxError::new("make namespaces", format!("{flags:?}"), e))
}

/// The launcher waits for the end of standard error.
fn detach_stdio(log: &File) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    rustix::process::chdir("/")?;
    Ok(())
}
