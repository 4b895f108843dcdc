//! Running a command on a node: this process moves into the node's cgroups and namespaces and
//! starts it there, with its own terminal. Must be called before there is a second thread.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus},
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::chdir,
};

use super::NODE_PATH;
use crate::{Error, Result, cgroup};

/// In the order in which they can be entered: the mount namespace last, since the others' files
/// are found through the machine's /proc.
const NAMESPACES: &[(&str, CloneFlags)] = &[
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Runs the command on the node whose init has that number here; answers how it ended.
pub fn run(
    init: i32,
    cgroups: &[cgroup::CgroupDir],
    argv: &[String],
    extra_env: &[(String, String)],
) -> Result<ExitStatus> {
    let Some((program, args)) = argv.split_first() else {
        return Err(Error::Format { what: "the command".to_owned(), why: "it is empty".to_owned() });
    };
    let mut files = Vec::with_capacity(NAMESPACES.len());
    for (name, flag) in NAMESPACES {
        let path = format!("/proc/{init}/ns/{name}");
        files.push((File::open(Path::new(&path)).map_err(Error::io(path.clone()))?, *flag, path));
    }
    cgroup::enter(cgroups)?;
    for (file, flag, path) in &files {
        setns(file, *flag).map_err(Error::errno(format!("enter {path}")))?;
    }
    chdir("/").map_err(Error::errno("enter the node's /"))?;
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", NODE_PATH)
        .env("HOME", "/root")
        .env("TERM", terminal)
        .envs(extra_env.iter().cloned())
        .spawn()
        .map_err(Error::io(format!("run {program} on the node")))?;
    child.wait().map_err(Error::io(format!("wait for {program}")))
}

/// The exit code a shell would give: 128 + signal when killed.
#[must_use]
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}
