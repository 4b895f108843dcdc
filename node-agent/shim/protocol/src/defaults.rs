//! What a container gets when its Pod says nothing else: the usual defaults of Docker and
//! containerd, as OCI runtime spec types.
//!
//! [`base_spec`] puts all of it together; the agent then fills in args, env, user, mounts of
//! volumes, resources. It does not start from `Spec::default()`, whose defaults are another
//! program's (`sh`, 1024 open files, `noNewPrivileges`).

use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, Mount, PosixRlimit, Process, Root, Spec, User,
};

pub use crate::seccomp::seccomp;
pub use oci_spec;

/// Where a program is looked up when the image sets no PATH.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The default capability set: Docker's and containerd's fourteen.
#[must_use]
pub fn capabilities() -> Capabilities {
    [
        Capability::AuditWrite,
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Mknod,
        Capability::NetBindService,
        Capability::NetRaw,
        Capability::Setfcap,
        Capability::Setgid,
        Capability::Setpcap,
        Capability::Setuid,
        Capability::SysChroot,
    ]
    .into_iter()
    .collect()
}

/// Kubernetes' `securityContext.capabilities` applied to the defaults: names with or without
/// `CAP_`, `ALL` in either list. Gives the names it does not know beside the set.
#[must_use]
pub fn adjust_capabilities(add: &[String], drop: &[String]) -> (Capabilities, Vec<String>) {
    let mut unknown = Vec::new();
    let mut parse = |name: &String| {
        let short = name.to_ascii_uppercase();
        let parsed = parse_capability(short.strip_prefix("CAP_").unwrap_or(&short));
        if parsed.is_none() {
            unknown.push(name.clone());
        }
        parsed
    };
    let is_all = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case("ALL"));
    let mut set = match (is_all(add), is_all(drop)) {
        (true, _) => all_capabilities(),
        (false, true) => Capabilities::new(),
        (false, false) => capabilities(),
    };
    for name in drop.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        if let Some(capability) = parse(name) {
            set.remove(&capability);
        }
    }
    for name in add.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        if let Some(capability) = parse(name) {
            set.insert(capability);
        }
    }
    (set, unknown)
}

fn parse_capability(short: &str) -> Option<Capability> {
    serde_json::from_value(serde_json::Value::String(format!("CAP_{short}"))).ok()
}

/// Every capability there is.
#[must_use]
pub fn all_capabilities() -> Capabilities {
    "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE \
     DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE \
     MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID \
     SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE \
     SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM"
        .split_whitespace()
        .filter_map(parse_capability)
        .collect()
}

/// The five sets of a process: bounding, permitted and effective hold `set`; inheritable and
/// ambient are empty (as runtimes do since CVE-2022-24769).
#[must_use]
pub fn capability_sets(set: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_permitted(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

/// Hidden from containers.
#[must_use]
pub fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Read-only to containers.
#[must_use]
pub fn readonly_paths() -> Vec<String> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec()
}

/// One mount of the spec.
#[must_use]
pub fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

/// A bind mount (recursive), private to the container.
#[must_use]
pub fn bind(source: &str, destination: &str, read_only: bool) -> Mount {
    let mode = if read_only { "ro" } else { "rw" };
    mount(destination, "bind", source, &["rbind", "rprivate", mode])
}

/// `/proc`, `/dev` and what lies in it, `/sys`, `/sys/fs/cgroup`. The shim binds the Pod's shared `/dev/shm`.
#[must_use]
pub fn mounts() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
}

/// The devices cgroup's rules: none but the usual harmless character devices (null, zero, full,
/// random, urandom, tty, console, ptmx, pts/*), whose nodes the runtime makes.
#[must_use]
pub fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_typ(Some(kind)).set_major(major).set_minor(minor).set_access(Some(access.to_owned()));
        rule
    };
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")];
    // A node may be made, as CAP_MKNOD says, but not opened.
    rules.push(rule(true, LinuxDeviceType::C, None, None, "m"));
    rules.push(rule(true, LinuxDeviceType::B, None, None, "m"));
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule(true, LinuxDeviceType::C, Some(major), Some(minor), "rwm"));
    }
    rules.push(rule(true, LinuxDeviceType::C, Some(136), None, "rwm"));
    rules
}

/// A whole spec with all defaults: as root, in `/`, with `argv` and PATH; no limits.
#[must_use]
pub fn base_spec(argv: Vec<String>) -> Spec {
    let set = capabilities();
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_user(User::default())
        .set_args(Some(argv))
        .set_env(Some(vec![PATH.to_owned()]))
        .set_cwd(PathBuf::from("/"))
        .set_capabilities(Some(capability_sets(&set)))
        .set_rlimits(None::<Vec<PosixRlimit>>)
        // Absent, not false: see `CreateContainer::spec`.
        .set_no_new_privileges(None)
        .set_oom_score_adj(None);
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(device_rules()));
    let namespaces = [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid].map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    });
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.to_vec()))
        .set_resources(Some(resources))
        .set_seccomp(Some(seccomp(&set)))
        .set_masked_paths(Some(masked_paths()))
        .set_readonly_paths(Some(readonly_paths()))
        .set_devices(None);
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(false));
    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_process(Some(process))
        .set_mounts(Some(mounts()))
        .set_annotations(None)
        .set_linux(Some(linux));
    spec
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn capabilities_are_added_and_dropped_as_kubernetes_says() {
        let s = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (set, unknown) = adjust_capabilities(&s(&["NET_ADMIN", "CAP_SYS_TIME", "nonsense"]), &s(&["MKNOD"]));
        assert!(set.contains(&Capability::NetAdmin) && set.contains(&Capability::SysTime));
        assert!(!set.contains(&Capability::Mknod) && set.contains(&Capability::Chown));
        assert_eq!(unknown, ["nonsense"]);
        let (set, _) = adjust_capabilities(&s(&["NET_BIND_SERVICE"]), &s(&["ALL"]));
        assert_eq!(set.len(), 1);
        let (set, _) = adjust_capabilities(&s(&["ALL"]), &s(&["SYS_ADMIN"]));
        assert!(set.len() > 35 && !set.contains(&Capability::SysAdmin));
    }

    #[test]
    fn the_base_spec_survives_json_and_holds_no_foreign_default() {
        let spec = base_spec(vec!["/bin/true".to_owned()]);
        let json = serde_json::to_value(&spec).unwrap();
        assert!(json["process"].get("noNewPrivileges").is_none());
        assert!(json["process"].get("rlimits").is_none());
        assert!(json.get("hostname").is_none());
        assert_eq!(serde_json::from_value::<Spec>(json).unwrap(), spec);
    }

    #[test]
    fn a_capability_opens_its_calls() {
        let names = |set: &Capabilities| {
            seccomp(set).syscalls().iter().flatten().flat_map(|s| s.names().clone()).collect::<Vec<_>>()
        };
        let plain = names(&capabilities());
        assert!(plain.iter().any(|n| n == "chroot") && !plain.iter().any(|n| n == "mount"));
        assert!(!plain.iter().any(|n| n.starts_with("io_uring")));
        let admin = names(&all_capabilities());
        assert!(admin.iter().any(|n| n == "mount"));
    }
}
