//! Memory, CPU and process limits of a group, on both versions.

use std::io;
use std::path::Path;

use super::{Hierarchy, Version, write};
use crate::SandboxError;

/// Limits; `None` leaves what is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory with its page cache.
    pub memory_bytes: Option<u64>,
    /// CPU time per period, microseconds.
    pub cpu_quota_micros: Option<u64>,
    /// The period, microseconds; 100 ms if unset.
    pub cpu_period_micros: Option<u64>,
    /// v1 shares, 1024 a CPU.
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The kernel's (and Kubernetes') default period.
const PERIOD_MICROS: u64 = 100_000;

/// v1 shares (2..=262144) as v2 weight (1..=10000): the formula every runtime uses.
pub(crate) fn shares_to_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// (controller, file on v1, text on v1, file on v2, text on v2)
type Setting = (&'static str, &'static str, String, &'static str, String);

fn settings(limits: &Limits) -> Vec<Setting> {
    let mut out: Vec<Setting> = Vec::new();
    if let Some(bytes) = limits.memory_bytes {
        out.push(("memory", "memory.limit_in_bytes", bytes.to_string(), "memory.max", bytes.to_string()));
    }
    if let Some(shares) = limits.cpu_shares {
        let (v1, v2) = (shares.clamp(2, 262_144).to_string(), shares_to_weight(shares).to_string());
        out.push(("cpu", "cpu.shares", v1, "cpu.weight", v2));
    }
    if let Some(quota) = limits.cpu_quota_micros {
        let period = limits.cpu_period_micros.unwrap_or(PERIOD_MICROS);
        out.push(("cpu", "cpu.cfs_period_us", period.to_string(), "", String::new()));
        out.push(("cpu", "cpu.cfs_quota_us", quota.to_string(), "cpu.max", format!("{quota} {period}")));
    }
    if let Some(pids) = limits.pids {
        out.push(("pids", "pids.max", pids.to_string(), "pids.max", pids.to_string()));
    }
    out
}

pub(super) fn apply(hierarchies: &[Hierarchy], path: &Path, limits: &Limits) -> Result<(), SandboxError> {
    for (controller, v1_file, v1_text, v2_file, v2_text) in settings(limits) {
        let Some(hierarchy) = hierarchies.iter().find(|h| h.has(controller)) else {
            return Err(SandboxError::new(
                "limit cgroup",
                format!("{}: no hierarchy has controller {controller}", path.display()),
                io::Error::from(io::ErrorKind::Unsupported),
            ));
        };
        let (file, text) = match hierarchy.version {
            Version::V1 => (v1_file, v1_text),
            Version::V2 => (v2_file, v2_text),
        };
        if file.is_empty() {
            continue;
        }
        let dir = hierarchy.base.join(path);
        if hierarchy.version == Version::V2 && !dir.join(file).exists() {
            return Err(not_handed_down(controller, &dir));
        }
        write(&dir.join(file), &text)?;
    }
    Ok(())
}

/// On v2 a group that holds processes hands no controller down to those below it.
fn not_handed_down(controller: &str, dir: &Path) -> SandboxError {
    let why = "a group above it holds processes, or lacks it itself: start the agent with \
               --cgroup-root=PATH, a group without processes (\"/\" where the root is yours)";
    SandboxError::new(
        "limit cgroup",
        format!("{}: controller {controller} is not handed down to it", dir.display()),
        io::Error::new(io::ErrorKind::Unsupported, why),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_over_the_whole_range() {
        assert_eq!(shares_to_weight(2), 1);
        assert_eq!(shares_to_weight(0), 1);
        assert_eq!(shares_to_weight(1024), 39);
        assert_eq!(shares_to_weight(262_144), 10_000);
        assert_eq!(shares_to_weight(u64::MAX), 10_000);
    }
}
