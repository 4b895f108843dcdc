//! What the shim changes in the OCI spec that the agent sent, before libcontainer sees it.
//!
//! Pure: a table of corrections, each with its reason.

use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    LinuxDeviceType, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompOperator,
    RootBuilder, Spec,
};

use trellis_sandbox::devices::{self, Kind, Rule};
use trellis_shim_protocol::defaults;

/// Whose PID namespace a container lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pids {
    /// One of its own.
    Own,
    /// The one that the Pod's containers share: its file.
    Shared(PathBuf),
    /// The shim's, which is the node's.
    Node,
}

/// What the corrections depend on.
pub struct Surroundings<'a> {
    /// The mounted root.
    pub rootfs: &'a Path,
    /// The container's cgroup below the (rebased) hierarchies.
    pub cgroup_path: &'a str,
    /// Which processes the container sees.
    pub pids: &'a Pids,
    /// The container's folder in each hierarchy of cgroup v1, by the hierarchy's name.
    pub v1_groups: &'a [(String, PathBuf)],
    /// The container gets a cgroup namespace of its own.
    pub cgroup_namespace: bool,
    /// The Pod's shared `/dev/shm`.
    pub shm: Option<&'a Path>,
}

/// Why a spec cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the container's spec {0}")]
pub struct SpecError(&'static str);

/// Applies all corrections.
pub fn prepare(spec: &mut Spec, around: &Surroundings<'_>) -> Result<(), SpecError> {
    let read_only = spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false);
    let root = RootBuilder::default()
        .path(around.rootfs)
        .readonly(read_only)
        .build()
        .map_err(|_| SpecError("has no usable root"))?;
    spec.set_root(Some(root));
    // The shim has set the Pod's hostname; libcontainer would want a UTS namespace of its own for it.
    spec.set_hostname(None);
    spec.set_domainname(None);

    let process = spec.process_mut().as_mut().ok_or(SpecError("has no process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(SpecError("has no process.args: neither image nor Pod names a program"));
    }
    // libcontainer takes "present" for "true" when it decides whether to load the seccomp
    // filter after capabilities were dropped, where false then fails with EACCES.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }

    let linux = spec.linux_mut().as_mut().ok_or(SpecError("has no linux section"))?;
    linux.set_namespaces(Some(namespaces(around)));
    linux.set_cgroups_path(Some(around.cgroup_path.into()));
    if let Some(seccomp) = linux.seccomp_mut() {
        fix_masked_equal(seccomp);
    }
    if let Some(shm) = around.shm {
        share_shm(spec, shm);
    }
    if matches!(around.pids, Pids::Shared(_)) {
        bind_v1_groups(spec, around.v1_groups);
    }
    Ok(())
}

/// libcontainer 0.7, mounting cgroup v1, looks its process up in the shim's `/proc` by the number
/// that it has in its own PID namespace: 1 is always there, any other is nobody, or somebody else. So
/// in a shared namespace what it would mount is written into the spec: the container's own groups.
fn bind_v1_groups(spec: &mut Spec, groups: &[(String, PathBuf)]) {
    let Some(mounts) = spec.mounts_mut() else { return };
    let Some(at) = mounts.iter().position(|m| m.typ().as_deref() == Some("cgroup")) else { return };
    if groups.is_empty() {
        return;
    }
    let place = mounts[at].destination().clone();
    let read_only = mounts[at].options().iter().flatten().any(|o| o == "ro");
    mounts[at]
        .set_typ(Some("tmpfs".to_owned()))
        .set_source(Some("tmpfs".into()))
        .set_options(Some(["nosuid", "noexec", "nodev", "mode=755", "size=64k"].map(str::to_owned).to_vec()));
    let binds = groups
        .iter()
        .map(|(name, dir)| defaults::bind(&dir.to_string_lossy(), &place.join(name).to_string_lossy(), read_only));
    mounts.splice(at + 1..at + 1, binds.collect::<Vec<_>>());
}

/// Network, IPC and UTS namespaces are inherited from the shim, which lives in the Pod's.
fn namespaces(around: &Surroundings<'_>) -> Vec<LinuxNamespace> {
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind);
    let mut wanted = vec![new(LinuxNamespaceType::Mount)];
    match around.pids {
        Pids::Own => wanted.push(new(LinuxNamespaceType::Pid)),
        Pids::Shared(file) => wanted.push(new(LinuxNamespaceType::Pid).path(file)),
        Pids::Node => {}
    }
    if around.cgroup_namespace {
        wanted.push(new(LinuxNamespaceType::Cgroup));
    }
    wanted.into_iter().filter_map(|n| n.build().ok()).collect()
}

/// libcontainer 0.7 reads `SCMP_CMP_MASKED_EQ` with value and valueTwo exchanged: OCI and runc say
/// `argument & value == valueTwo`, it compares `argument & valueTwo == value`, which would refuse every `clone`.
pub fn fix_masked_equal(seccomp: &mut LinuxSeccomp) {
    let mut rules = seccomp.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let Some(mut args) = rule.args().clone() else { continue };
        for arg in &mut args {
            if arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
                let (mask, wanted) = (arg.value(), arg.value_two().unwrap_or(0));
                let rebuilt = libcontainer::oci_spec::runtime::LinuxSeccompArgBuilder::default()
                    .index(arg.index())
                    .op(arg.op())
                    .value(wanted)
                    .value_two(mask)
                    .build();
                if let Ok(rebuilt) = rebuilt {
                    *arg = rebuilt;
                }
            }
        }
        rule.set_args(Some(args));
    }
    seccomp.set_syscalls(Some(rules));
}

fn share_shm(spec: &mut Spec, shm: &Path) {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.destination() == Path::new("/dev/shm") && mount.typ().as_deref() == Some("tmpfs") {
            mount.set_typ(Some("bind".to_owned())).set_source(Some(shm.to_owned())).set_options(Some(
                ["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"].map(str::to_owned).to_vec(),
            ));
        }
    }
}

/// The devices rules of a spec, for cgroup v2, where libcontainer (without its libbpf) ignores them.
pub fn device_rules(spec: &Spec) -> Vec<Rule> {
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let number = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    resources
        .and_then(|r| r.devices().as_ref())
        .into_iter()
        .flatten()
        .map(|rule| Rule {
            allow: rule.allow(),
            kind: match rule.typ() {
                Some(LinuxDeviceType::B) => Some(Kind::Block),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Char),
                _ => None,
            },
            major: number(rule.major()),
            minor: number(rule.minor()),
            access: rule.access().as_deref().unwrap_or("rwm").chars().fold(0, |bits, c| {
                bits | match c {
                    'r' => devices::READ,
                    'w' => devices::WRITE,
                    'm' => devices::MKNOD,
                    _ => 0,
                }
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn prepared(change: impl FnOnce(&mut Spec)) -> Result<Spec, SpecError> {
        prepared_with(&Pids::Own, change)
    }

    fn prepared_with(pids: &Pids, change: impl FnOnce(&mut Spec)) -> Result<Spec, SpecError> {
        let mut spec = defaults::base_spec(vec!["/bin/true".to_owned()]);
        change(&mut spec);
        let around = Surroundings {
            rootfs: Path::new("/r"),
            cgroup_path: "trellis/podx/c",
            pids,
            v1_groups: &[("memory".to_owned(), "/sys/fs/cgroup/memory/trellis/podx/c".into())],
            cgroup_namespace: false,
            shm: Some(Path::new("/shm")),
        };
        prepare(&mut spec, &around).map(|()| spec)
    }

    #[test]
    fn false_becomes_absent_and_true_stays() {
        let nnp = |value| {
            let spec = prepared(|s| {
                s.process_mut().as_mut().unwrap().set_no_new_privileges(value);
            });
            spec.unwrap().process().as_ref().unwrap().no_new_privileges()
        };
        assert_eq!(nnp(Some(false)), None);
        assert_eq!(nnp(None), None);
        assert_eq!(nnp(Some(true)), Some(true));
    }

    #[test]
    fn shm_is_the_pods_and_namespaces_are_the_shims_choice() {
        let spec = prepared(|_| ()).unwrap();
        let mounts = spec.mounts().clone().unwrap();
        let shm = mounts.iter().find(|m| m.destination() == Path::new("/dev/shm")).unwrap();
        assert_eq!(shm.source().as_deref(), Some(Path::new("/shm")));
        let linux = spec.linux().clone().unwrap();
        let kinds: Vec<_> = linux.namespaces().clone().unwrap().iter().map(LinuxNamespace::typ).collect();
        assert_eq!(kinds, [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid]);
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("trellis/podx/c")));
    }

    #[test]
    fn a_shared_pid_namespace_is_joined_by_its_file_never_the_shims() {
        let pid = |pids: &Pids| {
            let linux = prepared_with(pids, |_| ()).unwrap().linux().clone().unwrap();
            let all = linux.namespaces().clone().unwrap();
            all.into_iter().find(|n| n.typ() == LinuxNamespaceType::Pid).map(|n| n.path().clone())
        };
        let file = PathBuf::from("/proc/2/ns/pid");
        assert_eq!(pid(&Pids::Own), Some(None));
        assert_eq!(pid(&Pids::Shared(file.clone())), Some(Some(file)));
        assert_eq!(pid(&Pids::Node), None);
    }

    #[test]
    fn a_shared_pid_namespace_gets_its_groups_of_v1_by_binds() {
        let found = |pids: &Pids| {
            let mounts = prepared_with(pids, |_| ()).unwrap().mounts().clone().unwrap();
            let below = mounts.into_iter().filter(|m| m.destination().starts_with("/sys/fs/cgroup"));
            below.map(|m| (m.destination().display().to_string(), m.typ().clone().unwrap())).collect::<Vec<_>>()
        };
        let own = |place: &str, typ: &str| (place.to_owned(), typ.to_owned());
        assert_eq!(found(&Pids::Own), [own("/sys/fs/cgroup", "cgroup")]);
        let shared = found(&Pids::Shared("/proc/2/ns/pid".into()));
        assert_eq!(shared, [own("/sys/fs/cgroup", "tmpfs"), own("/sys/fs/cgroup/memory", "bind")]);
    }

    #[test]
    fn the_default_device_rules_forbid_disks() {
        let rules = device_rules(&prepared(|_| ()).unwrap());
        assert!(devices::decide(&rules, Kind::Char, 1, 3, devices::READ | devices::WRITE));
        assert!(devices::decide(&rules, Kind::Char, 136, 7, devices::READ | devices::WRITE));
        assert!(devices::decide(&rules, Kind::Block, 8, 0, devices::MKNOD));
        assert!(!devices::decide(&rules, Kind::Block, 8, 0, devices::READ));
    }

    #[test]
    fn masked_equal_is_exchanged_once() {
        let spec = prepared(|_| ()).unwrap();
        let linux = spec.linux().clone().unwrap();
        let rules = linux.seccomp().clone().unwrap().syscalls().clone().unwrap();
        let arg = rules
            .iter()
            .flat_map(|r| r.args().clone().unwrap_or_default())
            .find(|a| a.op() == LinuxSeccompOperator::ScmpCmpMaskedEq)
            .unwrap();
        assert_eq!((arg.value(), arg.value_two()), (0, Some(0x7e02_0000)));
    }

    #[test]
    fn a_spec_without_a_program_is_refused_in_words() {
        let error = prepared(|s| {
            s.process_mut().as_mut().unwrap().set_args(None);
        });
        assert!(error.unwrap_err().to_string().contains("process.args"));
    }
}
