//! A real shim with a busybox root, in a folder and cgroup of its own; removed when dropped.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use trellis_sandbox::cgroup::{CgroupRoot, Cgroups};
use trellis_sandbox::{Cleanup, cleanup};
use trellis_shim_protocol::launch::launch_sealed;
use trellis_shim_protocol::{Client, CreateContainer, LogConfig, Rootfs, SandboxConfig, defaults};

pub const WITHIN: Duration = Duration::from_secs(20);

pub struct Pod {
    pub config: SandboxConfig,
    pub data: tempfile::TempDir,
    pub shim_pid: i32,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// `None` (and a line that says why) where this cannot run.
pub fn pod(name: &str) -> Option<Pod> {
    pod_with(name, |_| ())
}

pub fn pod_with(name: &str, change: impl FnOnce(&mut SandboxConfig)) -> Option<Pod> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {name}: not root");
        return None;
    }
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|p| p.exists()) else {
        eprintln!("SKIPPED: {name}: no static busybox (apt-get install busybox-static)");
        return None;
    };
    let data = tempfile::tempdir().unwrap();
    make_root(&data.path().join("layer"), busybox);
    let uid = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut config = SandboxConfig::new(&uid, data.path().join("shim"), &format!("trellis-test/pod{uid}"));
    config.cgroup_root = "own".to_owned();
    config.hostname = "web-0".to_owned();
    // As the agent sets it.
    config.filters = Some(data.path().join("filters"));
    change(&mut config);
    // As the agent starts it.
    let program = Path::new(env!("CARGO_BIN_EXE_trellis-shim"));
    let copy = trellis_sandbox::sealed::copy(program).unwrap();
    let client = launch_sealed(program, copy.as_fd(), &config).unwrap();
    let shim_pid = client.shim_pid().unwrap();
    Some(Pod { config, data, shim_pid })
}

fn make_root(root: &Path, busybox: &Path) {
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let applets = "sh echo sleep cat ls id kill hostname ps seq head true false readlink tty stty env mount wc \
                   ipcs ping dd grep unshare test mkdir ip tr mknod printf date";
    for name in applets.split_whitespace() {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}

impl Pod {
    pub fn client(&self) -> Client {
        Client::connect(&self.config.socket()).unwrap()
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.data.path().join("logs").join(format!("{id}.log"))
    }

    pub fn request(&self, id: &str, script: &str) -> CreateContainer {
        let spec = defaults::base_spec(vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]);
        CreateContainer {
            id: id.to_owned(),
            labels: Default::default(),
            rootfs: Rootfs::Overlay {
                lower: vec![self.data.path().join("layer")],
                upper: self.data.path().join("rw").join(id).join("upper"),
                work: self.data.path().join("rw").join(id).join("work"),
            },
            spec: serde_json::to_value(spec).unwrap(),
            cgroup_namespace: false,
            log: LogConfig::file(self.log(id)),
            stdin: false,
            sub_paths: Vec::new(),
        }
    }

    pub fn run(&self, id: &str, script: &str) {
        self.run_request(self.request(id, script));
    }

    pub fn run_request(&self, request: CreateContainer) {
        let mut client = self.client();
        let id = request.id.clone();
        client.create(request).unwrap();
        client.start(&id).unwrap();
    }

    /// The text of the log's lines of a stream, without time and tag.
    pub fn lines(&self, id: &str, stream: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(id)).unwrap_or_default();
        text.lines()
            .filter_map(|l| {
                let mut parts = l.splitn(4, ' ');
                let (_, s, tag, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
                assert!(["F", "P"].contains(&tag), "{l}");
                (s == stream).then(|| rest.to_owned())
            })
            .collect()
    }

    pub fn cleanup(&self) -> trellis_sandbox::cleanup::Cleaned {
        cleanup(&self.what()).unwrap()
    }

    fn what(&self) -> Cleanup {
        Cleanup {
            cgroup_root: CgroupRoot::parse(&self.config.cgroup_root),
            cgroup_path: self.config.cgroup_path.clone(),
            dirs: vec![self.config.dir.clone()],
            within: Duration::from_secs(10),
        }
    }

    /// Everything of the Pod that is left on the machine.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let group =
            Cgroups::detect(&CgroupRoot::parse(&self.config.cgroup_root)).unwrap().group(&self.config.cgroup_path);
        left.extend(group.processes().iter().map(|p| format!("process {p}")));
        left.extend(group.dirs().filter(|d| d.exists()).map(|d| format!("cgroup {}", d.display())));
        if self.config.dir.exists() {
            left.push(format!("folder {}", self.config.dir.display()));
        }
        let needle = self.data.path().to_str().unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            if mounts.contains(needle) {
                left.push(format!("mount seen by process {:?}", entry.file_name()));
            }
        }
        left
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(e) = cleanup(&self.what()) {
            eprintln!("cleanup: {e}");
        }
        let parent = Cgroups::detect(&CgroupRoot::Own).unwrap().group("trellis-test");
        for dir in parent.dirs() {
            // Another test's Pod may still be in it.
            let _ = fs::remove_dir(dir);
        }
    }
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
