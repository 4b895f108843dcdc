#![allow(clippy::unwrap_used, missing_docs)]
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

fn ours(name: &str) -> Option<Cgroup> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {name}: not root");
        return None;
    }
    match Cgroups::detect(&CgroupRoot::Own) {
        Ok(cgroups) => Some(cgroups.group(&format!("trellis-test-{}/{name}", std::process::id()))),
        Err(e) => {
            eprintln!("SKIPPED: {name}: {e}");
            None
        }
    }
}

struct Removed(Cgroup);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = self.0.kill(Duration::from_secs(5));
        let _ = self.0.remove(Duration::from_secs(5));
        for dir in self.0.dirs() {
            let _ = dir.parent().map(fs::remove_dir);
        }
    }
}

#[test]
fn a_frozen_process_tree_is_killed_and_the_group_removed_twice() {
    let Some(group) = ours("frozen") else { return };
    let group = Removed(group);
    let child = group.0.child("inner");
    child.create().unwrap();
    child.create().unwrap();
    let mut process = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    child.attach(process.id() as i32).unwrap();
    assert!(group.0.processes().contains(&(process.id() as i32)));
    for hierarchy in &group.0.hierarchies {
        if hierarchy.version == Version::V1 && hierarchy.has("freezer") {
            let state = hierarchy.base.join(child.path()).join("freezer.state");
            fs::write(&state, "FROZEN").unwrap();
        }
    }
    let waiter = std::thread::spawn(move || process.wait().unwrap());
    assert_eq!(group.0.kill(Duration::from_secs(10)).unwrap(), 1);
    assert!(!waiter.join().unwrap().success());
    group.0.remove(Duration::from_secs(5)).unwrap();
    group.0.remove(Duration::from_secs(5)).unwrap();
    assert!(!group.0.exists());
}

#[test]
fn limits_reach_the_kernel() {
    let Some(group) = ours("limits") else { return };
    let group = Removed(group);
    group.0.create().unwrap();
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_quota_micros: Some(50_000),
        cpu_shares: Some(512),
        pids: Some(77),
        ..Limits::default()
    };
    group.0.apply(&limits).unwrap();
    let read = |controller: &str, v1: &str, v2: &str| {
        let h = group.0.hierarchies.iter().find(|h| h.has(controller)).unwrap();
        let file = if h.version == Version::V1 { v1 } else { v2 };
        fs::read_to_string(h.base.join(group.0.path()).join(file)).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(read("pids", "pids.max", "pids.max"), "77");
    assert!(read("cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    assert_eq!(group.0.oom_kills(), 0);
}
