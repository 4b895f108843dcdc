//! The helper that makes a container: mounts its root, writes its bundle, runs libcontainer.
//!
//! It is a forked child of the shim. The container's first process is its child, too; when it
//! exits, that process becomes the shim's (the init of the PID namespace, or the subreaper).

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use trellis_sandbox::{devices, mounts, process, subpath};
use trellis_shim_protocol::client::receive_with_fds;
use trellis_shim_protocol::{CreateContainer, Rootfs};

use crate::diagnostics::Diagnostics;
use crate::filter::{self, Confined};
use crate::helper::{Report, report};
use crate::reason::concise;
use crate::spec::{Pids, Surroundings, prepare};

/// What the helper needs.
pub struct Create {
    /// The request.
    pub request: CreateContainer,
    /// The container's folder: bundle and mount point.
    pub bundle: PathBuf,
    /// libcontainer's state folder.
    pub runtime: PathBuf,
    /// Below the (rebased) hierarchies.
    pub cgroup_path: String,
    /// Which processes it sees.
    pub pids: Pids,
    /// Its folders in the (rebased) hierarchies of cgroup v1.
    pub v1_groups: Vec<(String, PathBuf)>,
    /// The Pod's shared `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// Where compiled seccomp filters are kept.
    pub filters: Option<PathBuf>,
    /// The container's folder in cgroup v2, where that has the controllers.
    pub v2_group: Option<PathBuf>,
    /// Standard input, output, error; `None` for a container with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
    /// Where to report.
    pub socket: UnixStream,
}

impl Create {
    /// The helper's whole life; its exit code.
    pub fn run(self) -> i32 {
        let socket = match self.socket.try_clone() {
            Ok(socket) => socket,
            Err(_) => return 1,
        };
        let mut notes = Vec::new();
        match self.make(&mut notes) {
            Ok((pid, console)) => {
                let fds: Vec<_> = console.iter().map(AsFd::as_fd).collect();
                report(&socket, &Report { pid: Some(pid), error: None, notes }, &fds);
                0
            }
            Err(error) => {
                report(&socket, &Report { pid: None, error: Some(error), notes }, &[]);
                1
            }
        }
    }

    fn make(mut self, notes: &mut Vec<String>) -> Result<(i32, Option<OwnedFd>), String> {
        // A container must not inherit the daemon's blocked and ignored signals.
        process::reset_signals().map_err(|e| format!("cannot reset signals: {e}"))?;
        let rootfs = self.mount_root()?;
        let mut spec: Spec = serde_json::from_value(std::mem::take(&mut self.request.spec))
            .map_err(|e| format!("the container's spec is not a valid OCI runtime spec: {e}"))?;
        let around = Surroundings {
            rootfs: &rootfs,
            cgroup_path: &self.cgroup_path,
            pids: &self.pids,
            v1_groups: &self.v1_groups,
            cgroup_namespace: self.request.cgroup_namespace,
            shm: self.shm.as_deref(),
        };
        prepare(&mut spec, &around).map_err(|e| e.to_string())?;
        self.mount_sub_paths(&mut spec)?;
        make_cwd(&spec, &rootfs)?;
        clamp_oom_score(&mut spec, notes);
        let save = |spec: &Spec, name| {
            spec.save(self.bundle.join(name)).map_err(|e| format!("cannot write the bundle's {name}: {e}"))
        };
        save(&spec, PREPARED)?;
        let confined = self.confined(&mut spec)?;
        save(&spec, "config.json")?;
        let rules = crate::spec::device_rules(&spec);
        let group = self.v2_group.take();
        let made = self.run_libcontainer(confined)?;
        if let (Some(dir), false) = (group, rules.is_empty()) {
            // Its process waits for its start: no device was opened yet.
            devices::attach(&dir, &rules).map_err(|e| e.to_string())?;
        }
        Ok(made)
    }

    /// The filter that is there already, or can be kept for the next container.
    fn confined(&self, spec: &mut Spec) -> Result<Option<Confined>, String> {
        let rules = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
        let (Some(folder), Some(rules)) = (&self.filters, rules) else { return Ok(None) };
        let program = filter::compiled(folder, rules).map_err(|e| e.to_string())?;
        Ok(program.and_then(|program| Confined::take(spec, program)))
    }

    fn mount_root(&self) -> Result<PathBuf, String> {
        let Rootfs::Overlay { lower, upper, work } = &self.request.rootfs else {
            let Rootfs::Path { path } = &self.request.rootfs else { unreachable!("two variants") };
            return Ok(path.clone());
        };
        let target = self.bundle.join("rootfs");
        for dir in [upper, work, &target] {
            fs::create_dir_all(dir).map_err(|e| format!("cannot make folder {}: {e}", dir.display()))?;
        }
        mounts::overlay(mounts::Overlay { lower, upper, work }, &target).map_err(|e| e.to_string())?;
        Ok(target)
    }

    /// Mounts each sub path, as it is now, where no container can change it, and lets the spec's
    /// mount take it from there. What is mounted here goes with the bundle.
    fn mount_sub_paths(&self, spec: &mut Spec) -> Result<(), String> {
        let own = self.bundle.join("sub-paths");
        if !self.request.sub_paths.is_empty() {
            fs::create_dir_all(&own).map_err(|e| format!("cannot make folder {}: {e}", own.display()))?;
        }
        for (number, sub) in self.request.sub_paths.iter().enumerate() {
            let target = own.join(number.to_string());
            let mut all = spec.mounts_mut().iter_mut().flatten();
            let mount = all
                .find(|m| *m.destination() == sub.destination)
                .ok_or_else(|| format!("no mount at {} for a sub path", sub.destination.display()))?;
            subpath::mount(&sub.volume, &sub.path, &target).map_err(|e| e.to_string())?;
            mount.set_source(Some(target));
        }
        Ok(())
    }

    /// By a short name: an address holds 107 bytes, the bundle's path may be longer.
    fn listen_for_console(&self) -> io::Result<UnixListener> {
        let dir = fs::File::open(&self.bundle)?;
        UnixListener::bind(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(CONSOLE))
    }

    fn run_libcontainer(mut self, confined: Option<Confined>) -> Result<(i32, Option<OwnedFd>), String> {
        let diagnostics = Diagnostics::start();
        let words = |e: &dyn std::error::Error| {
            let events = diagnostics.as_ref().map(Diagnostics::text).unwrap_or_default();
            concise(&chain(e), &events)
        };
        let builder = ContainerBuilder::new(self.request.id.clone(), SyscallType::Linux)
            .with_root_path(&self.runtime)
            .map_err(|e| words(&e))?;
        let (builder, console) = match self.stdio.take() {
            Some([stdin, stdout, stderr]) => (builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr), None),
            None => {
                let listener = self.listen_for_console().map_err(|e| words(&e))?;
                (builder.with_console_socket(Some(self.bundle.join(CONSOLE))), Some(listener))
            }
        };
        let builder = match confined {
            Some(confined) => builder.with_executor(confined),
            None => builder,
        };
        let container = builder
            .validate_id()
            .and_then(|b| b.as_init(&self.bundle).with_systemd(false).with_detach(true).build())
            .map_err(|e| words(&e))?;
        let pid = container.pid().map(|p| p.as_raw()).ok_or("libcontainer names no process")?;
        let master = match console {
            Some(listener) => Some(receive_master(&listener).map_err(|e| words(&e))?),
            None => None,
        };
        Ok((pid, master))
    }
}

/// The whole spec as prepared, for exec; libcontainer's own copy may lack what is done for it.
pub const PREPARED: &str = "prepared.json";

/// A working directory that the image lacks is made, as every other runtime does. One in a volume
/// is the volume's: what is made here lies below it then, unseen.
fn make_cwd(spec: &Spec, rootfs: &Path) -> Result<(), String> {
    let Some(cwd) = spec.process().as_ref().map(|p| p.cwd().clone()) else { return Ok(()) };
    subpath::make_folders(rootfs, &cwd).map_err(|e| format!("cannot make the working directory {}: {e}", cwd.display()))
}

/// The console socket's name in the bundle.
const CONSOLE: &str = "console.sock";

fn receive_master(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut fds = VecDeque::new();
    receive_with_fds(&stream, &mut [0; 256], &mut fds)?;
    fds.pop_front().ok_or_else(|| io::Error::other("the runtime sent no terminal"))
}

/// libcontainer writes the value to the process it runs in. Lowering it below what this process
/// started with needs CAP_SYS_RESOURCE; without it the container would not start at all.
fn clamp_oom_score(spec: &mut Spec, notes: &mut Vec<String>) {
    let Some(process) = spec.process_mut() else { return };
    let Some(wanted) = process.oom_score_adj() else { return };
    if set_oom_score(wanted).is_err() {
        process.set_oom_score_adj(None);
        notes.push(format!("oom_score_adj {wanted} needs CAP_SYS_RESOURCE, which is missing: it stays as inherited"));
    }
}

/// Sets this process' oom_score_adj, which its children inherit.
pub fn set_oom_score(value: i32) -> io::Result<()> {
    fs::write(Path::new("/proc/self/oom_score_adj"), value.to_string())
}

/// An error with all its sources.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
