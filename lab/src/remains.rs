//! What is left of a lab on this machine: `down` looks here before it says that nothing is.

use std::fs;

use crate::{Error, Result, cgroup, layout::Layout};

/// Folders, processes, mounts and cgroups of the lab, each in words.
pub fn of(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let layout = Layout::of(name);
    if layout.root.exists() {
        found.push(format!("folder {}", layout.root.display()));
    }
    let marker = format!("{}/", layout.root.display());
    for entry in fs::read_dir("/proc").map_err(Error::io("/proc"))?.filter_map(std::result::Result::ok) {
        // Of processes that ended meanwhile, and of corpses, there is nothing to read.
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if command.contains(&marker) {
            found.push(format!("process {}: {}", entry.file_name().display(), command.replace('\0', " ")));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("/proc/self/mountinfo"))?;
    found.extend(mounts.lines().filter(|l| l.contains(&marker)).map(|l| format!("mount {l}")));
    for dir in cgroup::plan(&cgroup::hierarchies()?, name) {
        if dir.path.exists() {
            found.push(format!("cgroup {}", dir.path.display()));
        }
    }
    Ok(found)
}
