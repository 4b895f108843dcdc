//! Where this machine mounts its cgroup hierarchies, and which folder of each is our root.

use std::fs;
use std::path::{Path, PathBuf};

use super::Cgroup;
use crate::SandboxError;
use crate::mounts::{self, MountInfo};

/// What cgroup paths are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupRoot {
    /// The hierarchies' roots as mounted (a machine; a node in a cgroup namespace).
    Mounted,
    /// The groups that this process is in: for one that may only use what is below them.
    Own,
    /// A path below the hierarchies' roots.
    Path(PathBuf),
}

impl CgroupRoot {
    /// `/`, `own`, or a path.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "/" => Self::Mounted,
            "own" => Self::Own,
            path => Self::Path(PathBuf::from(path.trim_start_matches('/'))),
        }
    }
}

/// A hierarchy's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One or several controllers of cgroup v1.
    V1,
    /// cgroup v2; beside v1 (hybrid) it has no controllers.
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its kind.
    pub version: Version,
    /// Its controllers, e.g. `cpu`, `cpuacct`.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The folder that our paths are relative to.
    pub base: PathBuf,
    /// From here down to `base`, folders are made and controllers handed down (v2). What is above
    /// our own group is not ours to change; above a path that we were given, it is.
    pub top: PathBuf,
}

impl Hierarchy {
    /// It has this controller.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// All hierarchies of this machine that have a meaning for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// The v1 controllers that Trellis and libcontainer use; others (`net_cls`, `perf_event`, …) are
/// included when mounted, since libcontainer makes groups there too.
const V1_CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
];

impl Cgroups {
    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`.
    ///
    /// # Errors
    /// When no hierarchy is mounted.
    pub fn detect(root: &CgroupRoot) -> Result<Self, SandboxError> {
        let own =
            fs::read_to_string("/proc/self/cgroup").map_err(|e| SandboxError::new("read", "/proc/self/cgroup", e))?;
        let found = Self::from(&mounts::all()?, &own, root);
        if found.hierarchies.is_empty() {
            return Err(SandboxError::new(
                "find",
                "a cgroup hierarchy in /proc/self/mountinfo",
                std::io::Error::from(std::io::ErrorKind::NotFound),
            ));
        }
        Ok(found)
    }

    fn from(mounts: &[MountInfo], own: &str, root: &CgroupRoot) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for mount in mounts {
            let (version, controllers) = match mount.fs_type.as_str() {
                "cgroup" => {
                    let names: Vec<String> = mount
                        .super_options
                        .split(',')
                        .filter(|o| V1_CONTROLLERS.contains(o))
                        .map(str::to_owned)
                        .collect();
                    if names.is_empty() {
                        continue; // name=systemd: nobody's limits or freezer
                    }
                    (Version::V1, names)
                }
                "cgroup2" => {
                    let text = fs::read_to_string(mount.mount_point.join("cgroup.controllers")).unwrap_or_default();
                    (Version::V2, text.split_whitespace().map(str::to_owned).collect())
                }
                _ => continue,
            };
            let base = match root {
                CgroupRoot::Mounted => mount.mount_point.clone(),
                CgroupRoot::Path(path) => mount.mount_point.join(path),
                CgroupRoot::Own => below_mount(mount, &own_path(own, version, &controllers)),
            };
            let top = if matches!(root, CgroupRoot::Path(_)) { mount.mount_point.clone() } else { base.clone() };
            let hierarchy = Hierarchy { version, controllers, mount_point: mount.mount_point.clone(), base, top };
            // A later mount at the same place covers the earlier; the same hierarchy mounted twice counts once.
            hierarchies.retain(|h| {
                h.mount_point != hierarchy.mount_point
                    && !(h.version == hierarchy.version && h.controllers == hierarchy.controllers)
            });
            hierarchies.push(hierarchy);
        }
        Self { hierarchies }
    }

    /// The hierarchies.
    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Limits are set through v2.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        !self.hierarchies.iter().any(|h| h.version == Version::V1)
    }

    /// A group by its path below the root; nothing is made yet.
    #[must_use]
    pub fn group(&self, path: &str) -> Cgroup {
        let clean: PathBuf =
            Path::new(path).components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect();
        Cgroup::new(self.hierarchies.clone(), &clean)
    }
}

/// The path of this process' group in a hierarchy, from lines like `4:memory:/a/b` and `0::/c`.
fn own_path(own: &str, version: Version, controllers: &[String]) -> PathBuf {
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
            let matches = match version {
                Version::V2 => names.is_empty(),
                Version::V1 => names.split(',').any(|n| controllers.iter().any(|c| c == n)),
            };
            matches.then(|| PathBuf::from(path))
        })
        .next()
        .unwrap_or_else(|| PathBuf::from("/"))
}

/// A hierarchy may be mounted from a part of it on: paths are then relative to that part.
fn below_mount(mount: &MountInfo, path: &Path) -> PathBuf {
    let relative = path.strip_prefix(&mount.root).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    mount.mount_point.join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, at: &str, root: &str, options: &str) -> MountInfo {
        MountInfo { root: root.into(), mount_point: at.into(), fs_type: kind.into(), super_options: options.into() }
    }

    #[test]
    fn each_mount_layout_gives_its_bases() {
        let mounts = [
            mount("cgroup", "/sys/fs/cgroup/memory", "/", "rw,memory"),
            mount("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "/", "rw,cpu,cpuacct"),
            mount("cgroup", "/sys/fs/cgroup/systemd", "/", "rw,name=systemd"),
            mount("cgroup2", "/sys/fs/cgroup/unified", "/", "rw"),
            mount("ext4", "/", "/", "rw"),
        ];
        let own = "4:memory:/process_api/1\n2:cpu,cpuacct:/x\n0::/u\n";
        let bases = |root: &CgroupRoot| {
            let found = Cgroups::from(&mounts, own, root);
            found.hierarchies().iter().map(|h| h.base.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            bases(&CgroupRoot::Own),
            ["/sys/fs/cgroup/memory/process_api/1", "/sys/fs/cgroup/cpu,cpuacct/x", "/sys/fs/cgroup/unified/u"]
        );
        assert_eq!(bases(&CgroupRoot::Mounted)[0], "/sys/fs/cgroup/memory");
        assert_eq!(bases(&CgroupRoot::parse("/a/b"))[0], "/sys/fs/cgroup/memory/a/b");
        assert!(!Cgroups::from(&mounts, own, &CgroupRoot::Own).is_v2());
        let unified = [mount("cgroup2", "/sys/fs/cgroup", "/docker/1", "rw")];
        let found = Cgroups::from(&unified, "0::/docker/1/inner\n", &CgroupRoot::Own);
        assert!(found.is_v2());
        assert_eq!(found.hierarchies()[0].base, Path::new("/sys/fs/cgroup/inner"));
    }

    #[test]
    fn a_mount_that_covers_another_replaces_it() {
        let mounts = [
            mount("cgroup", "/sys/fs/cgroup/memory", "/", "rw,memory"),
            mount("cgroup", "/sys/fs/cgroup/memory", "/part", "rw,memory"),
        ];
        assert_eq!(Cgroups::from(&mounts, "", &CgroupRoot::Mounted).hierarchies().len(), 1);
    }

    #[test]
    fn a_group_path_cannot_leave_the_root() {
        let found = Cgroups::from(&[mount("cgroup2", "/c", "/", "rw")], "", &CgroupRoot::Mounted);
        assert_eq!(found.group("/../../a/../b").path(), Path::new("a/b"));
    }
}
