//! A node's root file system: the machine's own, as a lower layer that nobody can change, under
//! a layer in memory that ends with the node; over it the node's folders.
//!
//! So every program of the machine is there (a shell, curl), what a node writes to its root is
//! its own, and what must outlive a power cut lies in the node's folder on disk.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
    unistd::{chdir, pivot_root},
};

use super::{NODE_BIN, NodeSpec, TRELLIS_USER};
use crate::{Error, Result, cgroup, layout::NodeLayout};

/// Size of what a node may write beside its folders; memory is used only as it is written.
const ROOT_LAYER: &str = "size=512m,mode=0755";
/// File systems that a node sees none or its own of.
const NOT_SHARED: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "ramfs",
    "mqueue",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "hugetlbfs",
    "fusectl",
    "autofs",
    "binfmt_misc",
    "nsfs",
    "rpc_pipefs",
    "efivarfs",
];
/// Places that a node has of its own.
const OWN_PLACES: &[&str] = &["/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/media", "/boot", "/var/lib/trellis"];
/// Character devices of a machine that containers and daemons ask for.
const DEVICES: &[(&str, u64, u64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("net/tun", 10, 200),
];

/// Builds it and moves into it. For the init of a node, in fresh mount, PID, network, UTS and
/// cgroup namespaces.
pub fn enter(spec: &NodeSpec) -> Result<()> {
    let node = NodeLayout { root: spec.root.clone() };
    let hierarchies = cgroup::hierarchies()?;
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("/proc/self/mountinfo"))?;
    rustix::system::sethostname(spec.name.as_bytes()).map_err(|e| Error::io("set the host name")(e.into()))?;
    // Exact modes below, whatever the caller's mask.
    umask(Mode::empty());

    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(Error::errno("keep the node's mounts to itself"))?;
    let root = root_layer(&node.path("root"))?;
    for disk in shared_disks(&mountinfo, &spec.labs) {
        let target = below(&root, &disk);
        bind(&disk, &target)?;
        read_only(&target)?;
    }
    bind_folders(spec, &node, &root)?;
    own_places(&root)?;
    write_identity(spec, &root)?;
    mount_cgroups(&root, &hierarchies)?;

    chdir(&root).map_err(Error::errno("enter the node's root"))?;
    pivot_root(".", ".").map_err(Error::errno("pivot to the node's root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(Error::errno("leave the machine's root"))?;
    chdir("/").map_err(Error::errno("enter /"))?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// The overlay of the machine's root and a layer in memory.
fn root_layer(place: &Path) -> Result<PathBuf> {
    fs_mount("tmpfs", place, MsFlags::empty(), ROOT_LAYER)?;
    let [upper, work, merged] = ["upper", "work", "merged"].map(|n| place.join(n));
    for dir in [&upper, &work, &merged] {
        make_dir(dir, 0o755)?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    fs_mount("overlay", &merged, MsFlags::empty(), &options)?;
    Ok(merged)
}

/// Mounts of real disks below the root (a separate /usr, say): an overlay does not see them.
fn shared_disks(mountinfo: &str, labs: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        // Blanks in paths are written \040 there; no system directory has one.
        let point = PathBuf::from(point);
        let own = OWN_PLACES.iter().any(|p| point.starts_with(p)) || point.starts_with(labs);
        let is_dir = fs::metadata(&point).is_ok_and(|m| m.is_dir());
        if point != Path::new("/") && !NOT_SHARED.contains(&kind) && !own && is_dir {
            found.push(point);
        }
    }
    found
}

fn bind_folders(spec: &NodeSpec, node: &NodeLayout, root: &Path) -> Result<()> {
    let folders = [
        (node.path("etc"), "etc/trellis"),
        (node.path("data"), "var/lib/trellis"),
        (node.path("logs"), "var/log/trellis"),
        (spec.bin_dir.clone(), &NODE_BIN[1..]),
    ];
    for (source, target) in folders {
        let target = root.join(target);
        make_dir_all(&target)?;
        bind(&source, &target)?;
    }
    read_only(&below(root, Path::new(NODE_BIN)))?;
    // /run is fresh; the lab's two folders in it are seen from the machine.
    fs_mount("tmpfs", &root.join("run"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")?;
    for (source, target) in [("run", "run/trellis"), ("lab", "run/lab")] {
        let target = root.join(target);
        make_dir_all(&target)?;
        bind(&node.path(source), &target)?;
    }
    // A node does not see its lab's other nodes.
    let labs = below(root, &spec.labs);
    if labs.is_dir() {
        fs_mount("tmpfs", &labs, MsFlags::empty(), "mode=0755,size=4k")?;
    }
    Ok(())
}

fn own_places(root: &Path) -> Result<()> {
    let none = MsFlags::empty();
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    fs_mount("proc", &root.join("proc"), safe, "")?;
    fs_mount("sysfs", &root.join("sys"), safe, "")?;
    fs_mount("tmpfs", &root.join("tmp"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    let dev = root.join("dev");
    fs_mount("tmpfs", &dev, MsFlags::MS_NOSUID, "mode=0755")?;
    for dir in ["pts", "shm", "mqueue", "net"] {
        make_dir(&dev.join(dir), 0o755)?;
    }
    for (name, major, minor) in DEVICES {
        mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(*major, *minor))
            .map_err(Error::errno(format!("make device {name}")))?;
    }
    fs_mount(
        "devpts",
        &dev.join("pts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620",
    )?;
    fs_mount("tmpfs", &dev.join("shm"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    fs_mount("mqueue", &dev.join("mqueue"), none, "")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlink(target, dev.join(name)).map_err(Error::io(format!("make /dev/{name}")))?;
    }
    Ok(())
}

/// What makes a machine itself. Removed first: on the machine these may be links into /run.
fn write_identity(spec: &NodeSpec, root: &Path) -> Result<()> {
    let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for (address, name) in &spec.hosts {
        hosts.push_str(&format!("{address} {name}\n"));
    }
    // Of the name, so that it is the same after every start: 32 hex digits as machine-id(5) wants.
    let digest = <sha2::Sha256 as sha2::Digest>::digest(spec.root.display().to_string().as_bytes());
    let machine_id: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    let files = [
        ("etc/hostname", format!("{}\n", spec.name)),
        ("etc/hosts", hosts),
        ("etc/resolv.conf", "# The lab's networks have no way out: there is nobody to ask.\n".to_owned()),
        ("etc/machine-id", format!("{machine_id}\n")),
    ];
    let user = format!("trellis:x:{TRELLIS_USER}:{TRELLIS_USER}::/var/lib/trellis:/usr/sbin/nologin\n");
    for (name, line) in [("etc/passwd", user), ("etc/group", format!("trellis:x:{TRELLIS_USER}:\n"))] {
        let path = root.join(name);
        let mut text = fs::read_to_string(&path).map_err(Error::io(path.display().to_string()))?;
        text.push_str(&line);
        fs::write(&path, text).map_err(Error::io(path.display().to_string()))?;
    }
    for (name, text) in files {
        let path = root.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, text).map_err(Error::io(path.display().to_string()))?;
    }
    Ok(())
}

/// The node's own part of every hierarchy, where the machine has it. Mounted from inside the
/// cgroup namespace, so that the node's cgroup is the root of what it sees.
fn mount_cgroups(root: &Path, hierarchies: &[cgroup::Hierarchy]) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let unified = hierarchies.iter().any(|h| h.controllers.is_empty() && h.mount_point == top);
    if !unified {
        fs_mount("tmpfs", &below(root, top), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")?;
    }
    for h in hierarchies {
        let target = below(root, &h.mount_point);
        if !unified {
            make_dir_all(&target)?;
        }
        let (kind, options) = match h.controllers.as_str() {
            "" => ("cgroup2", String::new()),
            named if named.starts_with("name=") => ("cgroup", format!("none,{named}")),
            controllers => ("cgroup", controllers.to_owned()),
        };
        fs_mount(kind, &target, MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, &options)?;
    }
    Ok(())
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(mode).create(path).map_err(Error::io(format!("make {}", path.display())))
}

fn make_dir_all(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(Error::io(format!("make {}", path.display())))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(Error::errno(format!(
        "bind {} to {}",
        source.display(),
        target.display()
    )))
}

fn read_only(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .map_err(Error::errno(format!("make {} read-only", target.display())))
}

fn fs_mount(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .map_err(Error::errno(format!("mount {kind} ({options}) on {}", target.display())))
}
