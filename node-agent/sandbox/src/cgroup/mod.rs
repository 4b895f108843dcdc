//! Control groups, v1 (each controller mounted by itself or with others), v2, and both (hybrid).
//!
//! A [`Cgroups`] is how this machine mounts them and which folder of each hierarchy is ours; a
//! [`Cgroup`] is one path below that in all hierarchies at once. libcontainer makes the
//! containers' own groups; everything around them (the Pod's group, killing, removing, counting
//! OOM kills) is here.
//!
//! cgroup v1's freezer holds a frozen task back even from SIGKILL: whatever kills here thaws first.

mod detect;
mod limits;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use detect::{CgroupRoot, Cgroups, Hierarchy, Version};
pub use limits::Limits;

use crate::SandboxError;

/// One group in all hierarchies.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchies: Vec<Hierarchy>,
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(hierarchies: Vec<Hierarchy>, path: &Path) -> Self {
        Self { hierarchies, path: path.to_owned() }
    }

    /// Its path below the root.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A group below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { hierarchies: self.hierarchies.clone(), path: self.path.join(name) }
    }

    /// Its folders, one a hierarchy.
    pub fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchies.iter().map(|h| h.base.join(&self.path))
    }

    /// Its folders in the hierarchies of version 1, each with the name that its hierarchy is mounted by.
    pub fn v1_dirs(&self) -> impl Iterator<Item = (String, PathBuf)> + '_ {
        let v1 = self.hierarchies.iter().filter(|h| h.version == Version::V1);
        v1.filter_map(|h| {
            let name = h.mount_point.file_name()?.to_str()?;
            Some((name.to_owned(), h.base.join(&self.path)))
        })
    }

    /// It exists in any hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dirs().any(|d| d.is_dir())
    }

    /// Makes it and what is above it: cpuset inherits its parent's CPUs and memory nodes (v1), the
    /// controllers are enabled on the way down (v2). Idempotent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(&self) -> Result<(), SandboxError> {
        for hierarchy in &self.hierarchies {
            // Somebody may remove an empty parent between two steps.
            let mut tries = 0;
            loop {
                match self.create_in(hierarchy) {
                    Err(e) if e.source.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
                    other => break other?,
                }
            }
        }
        Ok(())
    }

    fn create_in(&self, hierarchy: &Hierarchy) -> Result<(), SandboxError> {
        let mut dir = hierarchy.top.clone();
        let base = hierarchy.base.strip_prefix(&hierarchy.top).unwrap_or(Path::new(""));
        for part in base.components().chain(self.path.components()) {
            if hierarchy.version == Version::V2 {
                enable_controllers(&dir);
            }
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(SandboxError::new("make cgroup", dir.display(), e)),
            }
            if hierarchy.has("cpuset") && hierarchy.version == Version::V1 {
                inherit_cpuset(&dir)?;
            }
        }
        Ok(())
    }

    /// Moves a process (0: the calling one) into it, in every hierarchy. Where v2 stands beside v1,
    /// runtimes make no group in it: the process then stays in its own there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(&self, pid: i32) -> Result<(), SandboxError> {
        let has_v1 = self.hierarchies.iter().any(|h| h.version == Version::V1);
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.base.join(&self.path);
            if has_v1 && hierarchy.version == Version::V2 && !dir.is_dir() {
                continue;
            }
            write(&dir.join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Sets limits; what is `None` stays as it is.
    ///
    /// # Errors
    /// What the kernel says, or that a needed controller is not mounted.
    pub fn apply(&self, limits: &Limits) -> Result<(), SandboxError> {
        limits::apply(&self.hierarchies, &self.path, limits)
    }

    /// The processes in it and below, in this process' PID namespace. Those outside of it are left out.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for dir in self.dirs() {
            walk(&dir, &mut |d| {
                if let Ok(text) = fs::read_to_string(d.join("cgroup.procs")) {
                    found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
                }
            });
        }
        found
    }

    /// How often the OOM killer has killed in it (not below it on v1). 0 where nobody counts.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.hierarchies
            .iter()
            .filter(|h| h.has("memory"))
            .filter_map(|h| {
                let dir = h.base.join(&self.path);
                let file = match h.version {
                    Version::V1 => "memory.oom_control",
                    Version::V2 => "memory.events",
                };
                let text = fs::read_to_string(dir.join(file)).ok()?;
                text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse().ok()
            })
            .max()
            .unwrap_or(0)
    }

    /// Lets frozen tasks go on, in it and below.
    pub fn thaw(&self) {
        for hierarchy in &self.hierarchies {
            walk(&hierarchy.base.join(&self.path), &mut |dir| {
                // Both fail harmlessly where the file or the state does not exist.
                let _ = match hierarchy.version {
                    Version::V1 if hierarchy.has("freezer") => fs::write(dir.join("freezer.state"), "THAWED"),
                    Version::V1 => Ok(()),
                    Version::V2 => fs::write(dir.join("cgroup.freeze"), "0"),
                };
            });
        }
    }

    /// Kills every process in it and below and waits until none is left. This process itself is spared.
    ///
    /// # Errors
    /// When processes are left at the deadline (in the kernel, or of a foreign PID namespace).
    pub fn kill(&self, within: Duration) -> Result<usize, SandboxError> {
        let deadline = Instant::now() + within;
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let mut killed: BTreeSet<i32> = BTreeSet::new();
        let mut pause = Duration::from_millis(1);
        loop {
            self.thaw();
            let mut left = self.processes();
            left.remove(&own);
            if left.is_empty() {
                return Ok(killed.len());
            }
            for pid in &left {
                crate::process::kill(*pid, libc::SIGKILL)?;
            }
            killed.extend(&left);
            if Instant::now() >= deadline {
                return Err(SandboxError::new(
                    "kill all processes of cgroup",
                    self.path.display(),
                    io::Error::other(format!("still there: {left:?}")),
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes it and all below, in every hierarchy; the kernel may need a moment after the last
    /// process. Idempotent.
    ///
    /// # Errors
    /// When it is still busy at the deadline.
    pub fn remove(&self, within: Duration) -> Result<(), SandboxError> {
        let deadline = Instant::now() + within;
        for top in self.dirs() {
            loop {
                match remove_tree(&top) {
                    Ok(()) => break,
                    Err(e) if Instant::now() < deadline && e.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(e) => return Err(SandboxError::new("remove cgroup", top.display(), e)),
                }
            }
        }
        Ok(())
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let mut dirs = Vec::new();
    walk(dir, &mut |d| dirs.push(d.to_owned()));
    for dir in dirs.iter().rev() {
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Calls `visit` for a group and all below it, parents first.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    if !dir.is_dir() {
        return;
    }
    visit(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

/// Without CPUs and memory nodes a v1 cpuset takes no task.
fn inherit_cpuset(dir: &Path) -> Result<(), SandboxError> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(dir.join(file)).unwrap_or_default();
        if own.trim().is_empty()
            && let Ok(theirs) = fs::read_to_string(parent.join(file))
        {
            write(&dir.join(file), theirs.trim())?;
        }
    }
    Ok(())
}

/// Each by itself: one that this kernel lacks must not keep the others off. That a limit cannot be
/// set later says it when it matters.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), SandboxError> {
    // Not fs::write: cgroup files take one write, no truncation.
    let result =
        fs::File::options().write(true).open(path).and_then(|mut f| io::Write::write_all(&mut f, text.as_bytes()));
    result.map_err(|e| SandboxError::new("write", format!("{text:?} to {}", path.display()), e))
}

#[cfg(test)]
mod tests;
