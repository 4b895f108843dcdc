//! A lab's cgroups: one in every mounted hierarchy (v1 controllers, v1 named, v2), below the one
//! that the lab's maker runs in, and in it one for each node.
//!
//! They serve three ends: a node sees only its own subtree (cgroup namespace), a node is paused
//! by its freezer, and `down` finds every process of a lab here, whoever started it and whether
//! or not that one still lives.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, wait};

/// Emptying a cgroup takes as long as its processes need to die.
const REMOVAL_LIMIT: Duration = Duration::from_secs(10);

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers as they are given to mount(2) ("cpu,cpuacct", "name=systemd"); empty for v2.
    pub controllers: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The cgroup that this process is in, as a path below the mount point.
    pub own: PathBuf,
}

/// A folder in one hierarchy, as `lab.json` remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDir {
    /// As in [`Hierarchy::controllers`]; empty for v2.
    pub controllers: String,
    /// The folder.
    pub path: PathBuf,
}

impl CgroupDir {
    /// Is this the v2 hierarchy?
    #[must_use]
    pub fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    fn child(&self, name: &str) -> Self {
        Self { controllers: self.controllers.clone(), path: self.path.join(name) }
    }
}

/// The hierarchies of this machine, from the process' own point of view.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let read = |p: &str| fs::read_to_string(p).map_err(Error::io(p));
    let found = parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    if found.is_empty() {
        return Err(Error::Lacking {
            what: "no cgroup hierarchy is mounted".to_owned(),
            how: "mount one: `mount -t cgroup2 none /sys/fs/cgroup`".to_owned(),
        });
    }
    Ok(found)
}

fn parse(mountinfo: &str, cgroups: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(mount_point), Some(kind)) = (left.get(3), left.get(4), right.first()) else { continue };
        let options = right.get(2).copied().unwrap_or_default();
        let own = cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let matches = match *kind {
                "cgroup2" => names.is_empty(),
                "cgroup" => !names.is_empty() && names.split(',').all(|n| options.split(',').any(|o| o == n)),
                _ => false,
            };
            matches.then_some((names, path))
        });
        let Some((names, path)) = own else { continue };
        let below = Path::new(path).strip_prefix(root).unwrap_or_else(|_| Path::new("")).to_path_buf();
        let hierarchy =
            Hierarchy { controllers: names.to_owned(), mount_point: PathBuf::from(mount_point), own: below };
        if !found.iter().any(|h| h.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    found
}

/// Where a lab's cgroups will be. Pure: nothing is made yet, so that `lab.json` is written first.
#[must_use]
pub fn plan(hierarchies: &[Hierarchy], lab: &str) -> Vec<CgroupDir> {
    let only_v2 = hierarchies.len() == 1;
    hierarchies
        .iter()
        .map(|h| {
            // On a v2 machine a cgroup that holds processes cannot hand controllers down, and the
            // one we run in holds us: start at the mount's root, where that rule does not apply.
            let base = if h.controllers.is_empty() && only_v2 { PathBuf::new() } else { h.own.clone() };
            let path = h.mount_point.join(base).join(format!("trellis-lab-{lab}"));
            CgroupDir { controllers: h.controllers.clone(), path }
        })
        .collect()
}

/// The cgroups of a node of the lab.
#[must_use]
pub fn of_node(lab: &[CgroupDir], node: &str) -> Vec<CgroupDir> {
    lab.iter().map(|dir| dir.child(node)).collect()
}

/// Makes the folders (parents first), ready to take processes.
pub fn create(dirs: &[CgroupDir]) -> Result<()> {
    for dir in dirs {
        let Some(parent) = dir.path.parent() else { continue };
        if dir.is_v2() {
            delegate(parent);
        }
        match fs::create_dir(&dir.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(format!("make cgroup {}", dir.path.display()))(e));
            }
            _ => {}
        }
        if dir.controllers.split(',').any(|c| c == "cpuset") {
            inherit_cpuset(parent, &dir.path)?;
        }
    }
    Ok(())
}

/// A cgroup weighs as much as one process beside it, whatever is in it. A lab holds whole
/// machines, whose heartbeats must not wait for a compiler that runs beside it.
const LAB_WEIGHT: u32 = 20;

/// Gives the lab its share of the processors, where they are shared out at all.
pub fn weigh(lab: &[CgroupDir]) {
    for dir in lab {
        for (file, one) in [("cpu.shares", 1024), ("cpu.weight", 100)] {
            let file = dir.path.join(file);
            if file.exists() {
                // Refused: the lab is slower on a busy machine, and works.
                let _ = fs::write(file, (one * LAB_WEIGHT).to_string());
            }
        }
    }
}

/// Hands every controller that there is down to the children, one by one: some may be refused.
fn delegate(parent: &Path) {
    let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace() {
        // A refusal means only that nodes have no limits of that kind; the agent tells of it.
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A fresh v1 cpuset has no processors and takes no process.
fn inherit_cpuset(parent: &Path, child: &Path) -> Result<()> {
    let _ = fs::write(child.join("cgroup.clone_children"), "1");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(parent.join(file)).map_err(Error::io(format!("{}/{file}", parent.display())))?;
        let target = child.join(file);
        fs::write(&target, value.trim()).map_err(Error::io(target.display().to_string()))?;
    }
    Ok(())
}

/// Moves the calling process (all its threads) into the cgroups.
pub fn enter(dirs: &[CgroupDir]) -> Result<()> {
    for dir in dirs {
        let leaf = if dir.is_v2() { leaf_of(&dir.path) } else { dir.path.clone() };
        let procs = leaf.join("cgroup.procs");
        fs::write(&procs, "0").map_err(Error::io(format!("enter cgroup {}", procs.display())))?;
    }
    Ok(())
}

/// The child for a node's own daemons, where the node's cgroup itself may hold no process.
pub const LEAF: &str = "system";

fn leaf_of(path: &Path) -> PathBuf {
    let leaf = path.join(LEAF);
    if leaf.is_dir() { leaf } else { path.to_path_buf() }
}

/// Stops (or lets go) everything in the node's cgroups. The v2 freezer is taken where it exists:
/// what it froze can still be killed, which is not so in v1.
pub fn freeze(dirs: &[CgroupDir], frozen: bool) -> Result<()> {
    if let Some(v2) = dirs.iter().find(|d| d.is_v2() && d.path.join("cgroup.freeze").exists()) {
        let file = v2.path.join("cgroup.freeze");
        fs::write(&file, if frozen { "1" } else { "0" }).map_err(Error::io(file.display().to_string()))?;
        let events = v2.path.join("cgroup.events");
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        return wait::until("the freezer's answer", REMOVAL_LIMIT, || {
            let text = fs::read_to_string(&events).map_err(|e| e.to_string())?;
            if text.contains(wanted) { Ok(()) } else { Err(text) }
        });
    }
    let Some(v1) = dirs.iter().find(|d| d.controllers.split(',').any(|c| c == "freezer")) else {
        return Err(Error::Lacking {
            what: "no freezer: neither cgroup v2 nor the v1 controller is mounted".to_owned(),
            how: "mount one: `mount -t cgroup -o freezer none /sys/fs/cgroup/freezer`".to_owned(),
        });
    };
    let file = v1.path.join("freezer.state");
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    wait::until("the freezer's answer", REMOVAL_LIMIT, || {
        fs::write(&file, wanted).map_err(|e| e.to_string())?;
        let state = fs::read_to_string(&file).map_err(|e| e.to_string())?;
        if state.trim() == wanted { Ok(()) } else { Err(state) }
    })
}

/// Is the node paused?
#[must_use]
pub fn is_frozen(dirs: &[CgroupDir]) -> bool {
    dirs.iter().any(|d| {
        let v2 = fs::read_to_string(d.path.join("cgroup.freeze")).is_ok_and(|t| t.trim() == "1");
        v2 || fs::read_to_string(d.path.join("freezer.state")).is_ok_and(|t| t.trim() != "THAWED")
    })
}

/// Thaws everything below, deepest last: a task frozen by cgroup v1 ignores SIGKILL, and a pod's
/// own freezer below the node's may be closed too.
pub fn thaw_all(dirs: &[CgroupDir]) {
    for dir in dirs {
        for path in tree(&dir.path).into_iter().rev() {
            for (file, value) in [("cgroup.freeze", "0"), ("freezer.state", "THAWED")] {
                let file = path.join(file);
                if file.exists() {
                    let _ = fs::write(file, value);
                }
            }
        }
    }
}

/// Every process in the cgroups and below.
#[must_use]
pub fn processes(dirs: &[CgroupDir]) -> Vec<i32> {
    let mut pids: Vec<i32> = dirs
        .iter()
        .flat_map(|dir| tree(&dir.path))
        .filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
        // 0 is a process of a namespace we cannot see; it is nobody's pid.
        .filter(|pid| *pid > 0)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Kills everything in the cgroups and removes them, deepest first.
pub fn destroy(dirs: &[CgroupDir]) -> Result<()> {
    wait::until("the end of the lab's processes", REMOVAL_LIMIT, || {
        thaw_all(dirs);
        let left = processes(dirs);
        for pid in &left {
            // Gone meanwhile is what we want.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} still run")) }
    })?;
    remove(dirs)
}

/// Removes cgroups that hold no process, with everything below them.
pub fn remove(dirs: &[CgroupDir]) -> Result<()> {
    for dir in dirs {
        let what = format!("the removal of cgroup {}", dir.path.display());
        wait::until(&what, REMOVAL_LIMIT, || {
            for path in tree(&dir.path) {
                match fs::remove_dir(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{}: {e}", path.display())),
                    _ => {}
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The folder and all below it, children before parents.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.extend(tree(&entry.path()));
            }
        }
        found.push(path.to_path_buf());
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HYBRID: &str = "\
30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 29 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 29 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 29 0:27 / /elsewhere rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_hierarchies_are_each_found_once() {
        let own = "3:cpu,cpuacct:/a\n4:memory:/b/c\n9:name=systemd:/\n0::/\n";
        let found = parse(HYBRID, own);
        let shown: Vec<_> = found.iter().map(|h| (h.controllers.as_str(), h.own.to_str().unwrap())).collect();
        assert_eq!(shown, [("cpu,cpuacct", "a"), ("memory", "b/c"), ("name=systemd", ""), ("", "")]);
        let planned = plan(&found, "x");
        assert_eq!(planned[1].path, Path::new("/sys/fs/cgroup/memory/b/c/trellis-lab-x"));
    }

    #[test]
    fn a_container_sees_its_part_of_the_tree() {
        let mountinfo = "30 29 0:26 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = parse(mountinfo, "4:memory:/docker/1/in\n");
        assert_eq!(found[0].own, Path::new("in"));
    }

    #[test]
    fn a_v2_machine_starts_at_the_root() {
        let mountinfo = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = parse(mountinfo, "0::/user.slice/session.scope\n");
        assert_eq!(plan(&found, "x")[0].path, Path::new("/sys/fs/cgroup/trellis-lab-x"));
    }
}
