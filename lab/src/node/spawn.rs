//! Making a node's namespaces: `node-spawn`, a short-lived, single-threaded process.
//!
//! It exists because namespaces are unshared by the one who shall be in them, and because a PID
//! namespace begins with the next child. It prints that child's number and ends.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};

use super::NodeSpec;
use crate::{Error, Result, cgroup, layout::NodeLayout, process::Process};

/// Starts a node's init in fresh namespaces. `lab_exe` is this program.
pub fn spawn(lab_exe: &Path, spec: &NodeSpec) -> Result<Process> {
    let node = NodeLayout { root: spec.root.clone() };
    let path = node.path("lab").join("spec.json");
    let bytes = serde_json::to_vec_pretty(spec)
        .map_err(|e| Error::Format { what: path.display().to_string(), why: e.to_string() })?;
    fs::write(&path, bytes).map_err(Error::io(path.display().to_string()))?;
    let process = run_spawner(lab_exe, &["node-spawn".as_ref(), path.as_os_str()], &node.log("init"))?;
    process.store(&node.path("init.pid"))?;
    Ok(process)
}

/// Starts the process that holds the underlay's namespace.
pub fn spawn_underlay(lab_exe: &Path, cgroups: &[cgroup::CgroupDir], lab_root: &Path) -> Result<Process> {
    let path = lab_root.join("underlay.json");
    let bytes = serde_json::to_vec(cgroups)
        .map_err(|e| Error::Format { what: path.display().to_string(), why: e.to_string() })?;
    fs::write(&path, bytes).map_err(Error::io(path.display().to_string()))?;
    run_spawner(lab_exe, &["underlay-spawn".as_ref(), path.as_os_str()], &lab_root.join("underlay.log"))
}

fn run_spawner(lab_exe: &Path, args: &[&std::ffi::OsStr], log: &Path) -> Result<Process> {
    let what = format!("start {} {}", lab_exe.display(), args[0].to_string_lossy());
    let log_file = append(log)?;
    let mut child = Command::new(lab_exe)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .current_dir("/")
        .spawn()
        .map_err(Error::io(what.clone()))?;
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text).map_err(Error::io(what.clone()))?;
    }
    let status = child.wait().map_err(Error::io(what.clone()))?;
    let pid = text.trim().parse().ok().filter(|_| status.success());
    pid.and_then(Process::of).ok_or_else(|| Error::Command { what, status: status.to_string(), output: tail_of(log) })
}

/// The last lines of a log, indented, for an error message.
#[must_use]
pub fn tail_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].iter().map(|l| format!("\n    {l}")).collect()
}

/// Opens a log for appending.
pub fn append(log: &Path) -> Result<File> {
    let open = File::options().create(true).append(true).open(log);
    open.map_err(Error::io(log.display().to_string()))
}

/// The body of `node-spawn`: must run before the process has a second thread.
pub fn node_main(spec_path: &Path) -> Result<()> {
    let bytes = fs::read(spec_path).map_err(Error::io(spec_path.display().to_string()))?;
    let spec: NodeSpec = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Format { what: spec_path.display().to_string(), why: e.to_string() })?;
    cgroup::enter(&spec.cgroups)?;
    let all = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(all).map_err(Error::errno(format!("unshare the namespaces of node {}", spec.name)))?;
    leave_v2_root(&spec)?;
    start_child("node-init", spec_path)
}

/// In a real v2 hierarchy the node's own cgroup must hand controllers down to its Pods, and may
/// then hold no process itself.
fn leave_v2_root(spec: &NodeSpec) -> Result<()> {
    // Beside v1 hierarchies the v2 one has no controllers that Pods are given limits with.
    let [v2] = &spec.cgroups[..] else { return Ok(()) };
    let available = fs::read_to_string(v2.path.join("cgroup.controllers")).unwrap_or_default();
    let leaf = v2.path.join(cgroup::LEAF);
    fs::create_dir(&leaf).map_err(Error::io(leaf.display().to_string()))?;
    fs::write(leaf.join("cgroup.procs"), "0").map_err(Error::io(leaf.display().to_string()))?;
    for controller in available.split_ascii_whitespace() {
        // As in `cgroup::create`: what is refused is a limit less, no reason to stop.
        let _ = fs::write(v2.path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// The body of `underlay-spawn`.
pub fn underlay_main(path: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io(path.display().to_string()))?;
    let cgroups: Vec<cgroup::CgroupDir> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::Format { what: path.display().to_string(), why: e.to_string() })?;
    cgroup::enter(&cgroups)?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(Error::errno("unshare the underlay's network namespace"))?;
    start_child("underlay-hold", path)
}

fn start_child(role: &str, path: &Path) -> Result<()> {
    nix::unistd::setsid().map_err(Error::errno("begin a session"))?;
    let exe: PathBuf = std::env::current_exe().map_err(Error::io("find this program"))?;
    let child = Command::new(exe)
        .arg(role)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(Error::io(format!("start {role}")))?;
    // The one line that the spawner's caller reads.
    println!("{}", child.id());
    Ok(())
}

/// The body of `underlay-hold`: stays until it is killed, holding the namespace.
pub fn hold_main() -> ! {
    loop {
        std::thread::park();
    }
}
