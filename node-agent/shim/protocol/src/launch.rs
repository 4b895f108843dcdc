//! Starting a shim.
//!
//! The program is given its [`SandboxConfig`] on standard input, detaches itself (a session, a
//! cgroup and, unless the Pod shares the node's, a PID namespace of its own) and its first
//! process ends with 0 once the socket listens, so that the launcher never has a long-lived child.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::client::{Client, ClientError};
use crate::types::SandboxConfig;

/// Why a shim did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program could not be run.
    #[error("cannot run {program} for pod {pod_uid}: {source}")]
    Spawn {
        /// The shim's program.
        program: PathBuf,
        /// The Pod.
        pod_uid: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ran and gave up.
    #[error("shim of pod {pod_uid} did not start: {message}")]
    Failed {
        /// The Pod.
        pod_uid: String,
        /// Its last words.
        message: String,
    },
    /// It started, and cannot be talked to.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Starts a shim and connects to it. Blocks for some 10 ms: not for an async worker.
///
/// # Errors
/// See [`LaunchError`]. Nothing of a shim that failed to start is left but its folder and cgroup,
/// which `trellis_sandbox::cleanup` removes.
pub fn launch(program: &Path, config: &SandboxConfig) -> Result<Client, LaunchError> {
    start(program, program, config)
}

/// As [`launch`], executing `copy`, a sealed copy of `program` (`trellis_sandbox::sealed`): what a
/// container can reach as `/proc/<pid>/exe` of a shim, or of what becomes its own first process,
/// is then no file of the node that it could overwrite (CVE-2019-5736).
///
/// # Errors
/// See [`launch`].
pub fn launch_sealed(program: &Path, copy: BorrowedFd<'_>, config: &SandboxConfig) -> Result<Client, LaunchError> {
    // Looked up by the child, before its execve closes the descriptor.
    start(program, Path::new(&format!("/proc/self/fd/{}", copy.as_raw_fd())), config)
}

fn start(program: &Path, image: &Path, config: &SandboxConfig) -> Result<Client, LaunchError> {
    let spawn = |source| LaunchError::Spawn { program: program.to_owned(), pod_uid: config.pod_uid.clone(), source };
    let text = serde_json::to_vec(config).map_err(|e| spawn(e.into()))?;
    let mut child = Command::new(image)
        .arg0(program)
        .arg("run")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spawn)?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(&text),
        None => Ok(()),
    };
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Ends when the detached process has pointed its own stderr at its log file.
        let _ = stderr.take(64 * 1024).read_to_string(&mut words);
    }
    let status = child.wait().map_err(spawn)?;
    if !status.success() {
        let message = match (words.trim(), written) {
            ("", Err(e)) => format!("{status}; writing its configuration failed: {e}"),
            ("", Ok(())) => status.to_string(),
            (words, _) => words.to_owned(),
        };
        return Err(LaunchError::Failed { pod_uid: config.pod_uid.clone(), message });
    }
    Ok(Client::connect(&config.socket())?)
}
