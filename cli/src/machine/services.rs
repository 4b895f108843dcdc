//! The services of an installation, where systemd runs the machine. What this machine is to run is
//! decided by the certificates that it has: each unit asks for its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::CliError;

/// All services.
pub const TARGET: &str = "trellis.target";
/// Those that stop with a reset, the last started first.
pub const UNITS: &[&str] = &["trellis-node-agent.service", "trellis-control-plane.service", "trellis-netd.service"];
/// Where the agent's unit has it make the Pods' cgroups.
pub const POD_CGROUP: &str = "/trellis.slice/trellis-pods.slice";
/// Where the units look for their configuration.
pub const CONFIG_DIR: &str = "/etc/trellis";

/// systemd runs this machine and knows our units.
#[must_use]
pub fn installed() -> bool {
    Path::new("/run/systemd/system").is_dir() && quiet(&["cat", TARGET])
}

/// Starts what this machine has certificates for, now and at every boot; answers whether there was
/// anything to start with. A configuration elsewhere is somebody else's to start.
pub fn start(config_dir: &Path) -> Result<bool, CliError> {
    if config_dir != Path::new(CONFIG_DIR) || !rustix::process::geteuid().is_root() || !installed() {
        return Ok(false);
    }
    systemctl(&["enable", "--quiet", TARGET])?;
    // They wait for each other, and for other machines: this does not.
    systemctl(&["start", "--no-block", TARGET])?;
    Ok(true)
}

/// Stops them; Pods run on. Waits until they are gone.
pub fn stop() -> Result<(), CliError> {
    let mut arguments = vec!["stop", TARGET];
    arguments.extend(UNITS);
    systemctl(&arguments)
}

/// A daemon's program: beside this one, or where installations put it.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().and_then(|p| p.canonicalize()).ok()?;
    let beside = own.parent()?;
    let folders =
        [beside.to_owned(), beside.join("../lib/trellis"), "/usr/local/lib/trellis".into(), "/usr/lib/trellis".into()];
    folders.into_iter().map(|f| f.join(name)).find(|p| p.is_file())
}

fn systemctl(arguments: &[&str]) -> Result<(), CliError> {
    let shown = format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).output();
    let output = output.map_err(|e| CliError::Local(format!("{shown}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(CliError::Local(format!("{shown}: {}: {}", output.status, said.trim())))
}

fn quiet(arguments: &[&str]) -> bool {
    Command::new("systemctl").args(arguments).output().is_ok_and(|o| o.status.success())
}
