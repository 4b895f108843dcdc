//! What a machine must have to carry a node: looked up ([`Facts::of_this_machine`]), then judged
//! ([`judge`], which knows no file system).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use trellis_proto::node_config::Role;

use super::ports;

/// What was looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// Kinds of namespaces in `/proc/self/ns`.
    pub namespaces: BTreeSet<String>,
    /// Of [`FEATURES`], those that the kernel has, built in, loaded or as a module.
    pub features: BTreeSet<String>,
    /// The controllers of cgroup v2, where its root has any.
    pub v2_controllers: BTreeSet<String>,
    /// The controllers of cgroup v1.
    pub v1_controllers: BTreeSet<String>,
    /// Does something keep the clock right? `None`: nobody says.
    pub clock_kept: Option<bool>,
    /// MiB of memory.
    pub memory_mib: u64,
    /// MiB free where the data goes.
    pub disk_mib: u64,
    /// Ports that are taken, in words.
    pub ports_taken: Vec<String>,
}

/// A judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warn,
    /// A node cannot run here.
    Fail,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How it is.
    pub grade: Grade,
    /// What was looked at, what was found, and what to do.
    pub text: String,
}

/// (the feature's name, its module, another sign that it is there)
const FEATURES: &[(&str, &str, &str)] = &[
    ("overlay file systems", "overlay", "/sys/module/overlay"),
    ("nftables", "nf_tables", "/sys/module/nf_tables"),
    ("connection tracking", "nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("veth pairs", "veth", "/sys/module/veth"),
];
/// The oldest that Trellis was written for: cgroup.kill, idmapped mounts, the socket calls it makes.
const KERNEL_MIN: (u32, u32) = (5, 14);
const NAMESPACES: &[&str] = &["net", "mnt", "pid", "uts", "ipc", "cgroup"];
const CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];
/// A control plane of its own takes 100 MiB, agent and netd 60 together; the rest is for Pods.
const MEMORY_MIN_MIB: u64 = 400;
/// Images, logs and the Raft log.
const DISK_MIN_MIB: u64 = 1024;

impl Facts {
    /// Looks. `data` is where the data will lie, or a folder above it.
    #[must_use]
    pub fn of_this_machine(roles: &[Role], data: &Path) -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let (v1_controllers, v2_controllers) = controllers();
        Self {
            namespaces: NAMESPACES
                .iter()
                .filter(|n| Path::new("/proc/self/ns").join(n).exists())
                .map(|n| (*n).to_owned())
                .collect(),
            features: features(&kernel),
            v1_controllers,
            v2_controllers,
            clock_kept: clock_kept(),
            memory_mib: memory_mib(),
            disk_mib: disk_mib(data),
            ports_taken: ports::taken(roles),
            kernel,
        }
    }
}

fn features(kernel: &str) -> BTreeSet<String> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let modules = ["/lib/modules", "/usr/lib/modules"]
        .iter()
        .flat_map(|dir| ["modules.dep", "modules.builtin"].map(|f| Path::new(dir).join(kernel).join(f)))
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect::<String>();
    let has = |module: &str, sign: &str| {
        let dashed = module.replace('_', "-");
        Path::new(sign).exists()
            || filesystems.split_whitespace().any(|w| w == module)
            || [module, &dashed].iter().any(|m| modules.contains(&format!("/{m}.ko")))
    };
    let there = FEATURES.iter().filter(|(_, module, sign)| has(module, sign) || built_in(module));
    there.map(|(name, ..)| (*name).to_owned()).collect()
}

/// A kernel without modules says in its configuration what it has.
fn built_in(module: &str) -> bool {
    let option = match module {
        "overlay" => "CONFIG_OVERLAY_FS=y",
        "nf_tables" => "CONFIG_NF_TABLES=y",
        "nf_conntrack" => "CONFIG_NF_CONNTRACK=y",
        _ => "CONFIG_VETH=y",
    };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let text = fs::read_to_string(format!("/boot/config-{release}")).unwrap_or_default();
    text.lines().any(|l| l == option)
        // Without modules and without a word about itself: what is missing will be told when it is used.
        || (!Path::new("/proc/modules").exists() && text.is_empty())
}

fn controllers() -> (BTreeSet<String>, BTreeSet<String>) {
    let words = |text: &str| text.split([' ', ',', '\n']).filter(|w| !w.is_empty()).map(str::to_owned).collect();
    let (mut v1, mut v2) = (BTreeSet::new(), BTreeSet::new());
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(at), mut fields) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        match fields.next() {
            Some("cgroup2") => {
                let text = fs::read_to_string(Path::new(at).join("cgroup.controllers")).unwrap_or_default();
                v2.append(&mut words(&text));
            }
            Some("cgroup") => v1.append(&mut words(fields.nth(1).unwrap_or_default())),
            _ => {}
        }
    }
    (v1, v2)
}

fn clock_kept() -> Option<bool> {
    // systemd-timesyncd leaves this once it has heard from a server; chrony and ntpd keep a file of their own.
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let daemons = ["chronyd", "ntpd", "systemd-timesyn", "ptp4l"];
    let names = fs::read_dir("/proc").ok()?.flatten().filter_map(|p| fs::read_to_string(p.path().join("comm")).ok());
    names.into_iter().any(|n| daemons.contains(&n.trim())).then_some(true).or(Some(false))
}

fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn disk_mib(data: &Path) -> u64 {
    let existing = data.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(existing).map_or(0, |s| s.f_bavail * s.f_frsize / (1 << 20))
}

/// What it means.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![kernel(&facts.kernel)];
    let mut say = |grade, text: String| lines.push(Line { grade, text });
    let missing = |all: &[&str], have: &BTreeSet<String>| -> Vec<String> {
        all.iter().filter(|n| !have.contains(**n)).map(|n| (*n).to_owned()).collect()
    };
    match missing(NAMESPACES, &facts.namespaces) {
        none if none.is_empty() => say(Grade::Ok, "namespaces: all".to_owned()),
        some => say(Grade::Fail, format!("namespaces: the kernel has no {}: take one that has", some.join(", "))),
    }
    for (name, module, _) in FEATURES {
        if facts.features.contains(*name) {
            say(Grade::Ok, (*name).to_owned());
        } else {
            say(
                Grade::Fail,
                format!("{name}: neither in the kernel nor as module {module}: install the kernel's modules"),
            );
        }
    }
    let (v1, v2) = (missing(CONTROLLERS, &facts.v1_controllers), missing(CONTROLLERS, &facts.v2_controllers));
    if v2.is_empty() {
        say(Grade::Ok, "cgroup v2 with cpu, memory and pids".to_owned());
    } else if v1.is_empty() {
        say(Grade::Ok, "cgroup v1 with cpu, memory and pids".to_owned());
    } else {
        let how = "boot with systemd.unified_cgroup_hierarchy=1 and cgroup_enable=memory";
        say(Grade::Fail, format!("cgroups: no hierarchy has all of cpu, memory and pids: {how}"));
    }
    for text in &facts.ports_taken {
        say(Grade::Fail, format!("{text}: stop that, or let it use another port"));
    }
    if facts.ports_taken.is_empty() {
        say(Grade::Ok, "ports free".to_owned());
    }
    match facts.clock_kept {
        Some(true) => say(Grade::Ok, "clock kept right".to_owned()),
        _ => say(
            Grade::Warn,
            "clock: nothing seems to keep it right; certificates need it within some minutes: apt-get install systemd-timesyncd".to_owned(),
        ),
    }
    let enough = |have: u64, want: u64| if have >= want { Grade::Ok } else { Grade::Warn };
    say(
        enough(facts.memory_mib, MEMORY_MIN_MIB),
        format!("{} MiB of memory (at least {MEMORY_MIN_MIB})", facts.memory_mib),
    );
    say(enough(facts.disk_mib, DISK_MIN_MIB), format!("{} MiB of disk free (at least {DISK_MIN_MIB})", facts.disk_mib));
    lines
}

fn kernel(release: &str) -> Line {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => return Line { grade: Grade::Warn, text: format!("kernel {release}: its version cannot be read") },
    };
    if version >= KERNEL_MIN {
        return Line { grade: Grade::Ok, text: format!("kernel {release}") };
    }
    let (major, minor) = KERNEL_MIN;
    Line { grade: Grade::Fail, text: format!("kernel {release}: {major}.{minor} or newer is needed") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let set = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        Facts {
            kernel: "6.1.0-56-cloud-amd64".into(),
            namespaces: set(NAMESPACES),
            features: FEATURES.iter().map(|(n, ..)| (*n).to_owned()).collect(),
            v2_controllers: set(CONTROLLERS),
            v1_controllers: BTreeSet::new(),
            clock_kept: Some(true),
            memory_mib: 2048,
            disk_mib: 20_000,
            ports_taken: vec![],
        }
    }

    fn worst(facts: &Facts) -> Grade {
        judge(facts).into_iter().map(|l| l.grade).max().unwrap_or(Grade::Ok)
    }

    #[test]
    fn each_lack_is_judged_by_itself() {
        assert_eq!(worst(&good()), Grade::Ok);
        for (what, facts, grade) in [
            ("kernel", Facts { kernel: "5.10.0-8-amd64".into(), ..good() }, Grade::Fail),
            ("kernel", Facts { kernel: "6.18.44-x".into(), ..good() }, Grade::Ok),
            ("namespaces", Facts { namespaces: BTreeSet::new(), ..good() }, Grade::Fail),
            ("nftables", Facts { features: BTreeSet::new(), ..good() }, Grade::Fail),
            ("cgroups", Facts { v2_controllers: BTreeSet::new(), ..good() }, Grade::Fail),
            ("port", Facts { ports_taken: vec!["port 6443/tcp is taken".into()], ..good() }, Grade::Fail),
            ("clock", Facts { clock_kept: None, ..good() }, Grade::Warn),
            ("memory", Facts { memory_mib: 100, ..good() }, Grade::Warn),
            ("disk", Facts { disk_mib: 100, ..good() }, Grade::Warn),
        ] {
            assert_eq!(worst(&facts), grade, "{what}");
            let told = judge(&facts).into_iter().find(|l| l.grade == grade && l.text.contains(what));
            assert!(told.is_some(), "{what}");
        }
        let v1 = Facts { v1_controllers: good().v2_controllers, v2_controllers: BTreeSet::new(), ..good() };
        assert_eq!(worst(&v1), Grade::Ok);
    }
}
