//! Machines made of this machine's namespaces. See [`crate::node`] for how one is built.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::{fs::lchown, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{Backend, Output, Power};
use crate::{
    Error, Result, cgroup,
    cgroup::CgroupDir,
    fault::underlay::{Plug, Underlay},
    http::{self, Response},
    layout::{Layout, NodeLayout},
    netns,
    node::{
        CONTROL_SOCKET, NodeSpec,
        control::{self, DaemonSpec, DaemonState, Request},
        spawn,
    },
    process::Process,
    topology::Topology,
    wait,
};

/// A node's init answers after mounting its root: tens of milliseconds, on a loaded machine more.
const BOOT_LIMIT: Duration = Duration::from_secs(20);
/// A daemon that was sent SIGTERM finishes what it does.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A lab in namespaces.
#[derive(Clone, Debug)]
pub struct Namespaces {
    topology: Topology,
    layout: Layout,
    bin_dir: PathBuf,
    lab_exe: PathBuf,
    cgroups: Vec<CgroupDir>,
}

impl Namespaces {
    /// A lab to be made. `lab_exe` is the `trellis-lab` program.
    pub fn new(topology: Topology, bin_dir: PathBuf, lab_exe: PathBuf) -> Result<Self> {
        check_root()?;
        let layout = Layout::of(&topology.name);
        let cgroups = cgroup::plan(&cgroup::hierarchies()?, &topology.name);
        Ok(Self { topology, layout, bin_dir, lab_exe, cgroups })
    }

    /// A lab that was made before, by whomever.
    pub fn open(name: &str, lab_exe: PathBuf) -> Result<Self> {
        let layout = Layout::of(name);
        let file = layout.load()?;
        check_root()?;
        Ok(Self { topology: file.topology, layout, bin_dir: file.bin_dir, lab_exe, cgroups: file.cgroups })
    }

    /// Where it lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where the cluster's binaries are.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The init of a node that is on.
    pub fn init_of(&self, node: &str) -> Result<Process> {
        self.init(node)?.ok_or_else(|| Error::Off { node: node.to_owned() })
    }

    /// The cgroups of a node.
    pub fn cgroups_of(&self, node: &str) -> Result<Vec<CgroupDir>> {
        self.topology.node(node)?;
        Ok(cgroup::of_node(&self.cgroups, node))
    }

    /// A cgroup of the lab that is no node's: what runs in it ends with the lab. A dot in its name keeps it apart.
    pub(crate) fn cgroups_beside(&self, name: &str) -> Vec<CgroupDir> {
        cgroup::of_node(&self.cgroups, name)
    }

    pub(super) fn init(&self, node: &str) -> Result<Option<Process>> {
        self.topology.node(node)?;
        Ok(Process::load(&self.layout.node(node).path("init.pid")))
    }

    /// The network between the nodes.
    pub fn underlay(&self) -> Result<Underlay> {
        let holder = Process::load(&self.layout.underlay_pid()).ok_or_else(|| Error::Lacking {
            what: format!("the underlay of lab {} is gone", self.topology.name),
            how: format!("`trellis-lab down --name {0}`, then `up --name {0}`", self.topology.name),
        })?;
        Ok(Underlay::held_by(holder.pid))
    }

    fn control(&self, node: &str) -> Result<PathBuf> {
        self.init_of(node)?;
        Ok(self.layout.node(node).path("lab").join(CONTROL_SOCKET))
    }

    fn plug(&self, node: &str) -> Result<Plug> {
        let spec = self.topology.node(node)?;
        let prefix = self.topology.subnet.prefix();
        let index = self.topology.index(node)?;
        Ok(Plug { index, address: spec.address, prefix, group: self.wires()?.group_of(index) })
    }

    fn spec(&self, node: &str) -> Result<NodeSpec> {
        Ok(NodeSpec {
            name: node.to_owned(),
            root: self.layout.node(node).root,
            labs: Layout::base(),
            bin_dir: self.bin_dir.clone(),
            cgroups: self.cgroups_of(node)?,
            hosts: self.topology.nodes.iter().map(|n| (n.address, n.name.clone())).collect(),
        })
    }
}

impl Backend for Namespaces {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn create(&self) -> Result<()> {
        let file = Layout::file_of(self.topology.clone(), self.bin_dir.clone(), self.cgroups.clone());
        self.layout.create(&file)?;
        for node in &self.topology.nodes {
            self.layout.node(&node.name).create()?;
        }
        cgroup::create(&self.cgroups)?;
        cgroup::weigh(&self.cgroups);
        let switch = cgroup::of_node(&self.cgroups, "underlay.switch");
        cgroup::create(&switch)?;
        let holder = spawn::spawn_underlay(&self.lab_exe, &switch, &self.layout.root)?;
        holder.store(&self.layout.underlay_pid())?;
        Underlay::held_by(holder.pid).create()
    }

    fn destroy(&self) -> Result<()> {
        // The inits first: their namespaces end as a whole and at once.
        for node in &self.topology.nodes {
            self.kill(&node.name)?;
        }
        cgroup::destroy(&self.cgroups)?;
        self.layout.remove()
    }

    fn start(&self, node: &str) -> Result<()> {
        if self.init(node)?.is_some() {
            return Ok(());
        }
        let layout = self.layout.node(node);
        let cgroups = self.cgroups_of(node)?;
        // Of the life before: nothing runs in them any more, or the kill would not have answered.
        cgroup::destroy(&cgroups)?;
        cgroup::create(&cgroups)?;
        empty(&layout.path("run"))?;
        let _ = fs::remove_file(layout.path("lab").join(CONTROL_SOCKET));
        let underlay = self.underlay()?;
        let init = spawn::spawn(&self.lab_exe, &self.spec(node)?)?;
        underlay.plug(init.pid, self.plug(node)?)?;
        self.delay_again(node)?;
        let socket = layout.path("lab").join(CONTROL_SOCKET);
        let booted = wait::until(&format!("the start of node {node}"), BOOT_LIMIT, || {
            if !init.alive() {
                // Not worth waiting for: say so at once.
                return Ok(false);
            }
            control::ask(&socket, &Request::Ping).map(|_| true).map_err(|e| e.to_string())
        })?;
        if booted {
            return Ok(());
        }
        Err(Error::Command {
            what: format!("the init of node {node}"),
            status: "ended".to_owned(),
            output: spawn::tail_of(&layout.log("init")),
        })
    }

    fn kill(&self, node: &str) -> Result<()> {
        let index = self.topology.index(node)?;
        if let Ok(underlay) = self.underlay() {
            underlay.silence(index)?;
        }
        let cgroups = self.cgroups_of(node)?;
        cgroup::thaw_all(&cgroups);
        let Some(init) = self.init(node)? else { return Ok(()) };
        init.kill_and_wait()?;
        let _ = fs::remove_file(self.layout.node(node).path("init.pid"));
        Ok(())
    }

    fn pause(&self, node: &str) -> Result<()> {
        self.init_of(node)?;
        cgroup::freeze(&self.cgroups_of(node)?, true)
    }

    fn resume(&self, node: &str) -> Result<()> {
        self.init_of(node)?;
        cgroup::freeze(&self.cgroups_of(node)?, false)
    }

    fn wipe(&self, node: &str) -> Result<()> {
        self.kill(node)?;
        let layout = self.layout.node(node);
        for folder in ["etc", "data", "run"] {
            empty(&layout.path(folder))?;
        }
        Ok(())
    }

    fn partition(&self, groups: &[Vec<String>]) -> Result<()> {
        self.split(groups)
    }

    fn cut_one_way(&self, from: &[String], to: &[String]) -> Result<()> {
        self.cut(from, to)
    }

    fn lose(&self, node: &str, share: u32) -> Result<()> {
        self.lose_packets(node, share)
    }

    fn delay(&self, node: &str, by: Duration) -> Result<()> {
        self.hold_up(node, by)
    }

    fn heal(&self) -> Result<()> {
        self.mend_all()
    }

    fn power(&self, node: &str) -> Result<Power> {
        Ok(match self.init(node)? {
            None => Power::Off,
            Some(_) if cgroup::is_frozen(&self.cgroups_of(node)?) => Power::Paused,
            Some(_) => Power::On,
        })
    }

    fn run(&self, node: &str, argv: &[&str], env: &BTreeMap<String, String>) -> Result<Output> {
        self.init_of(node)?;
        let mut command = Command::new(&self.lab_exe);
        command.args(["--name", &self.topology.name, "exec", node]);
        for (name, value) in env {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        let output = command.arg("--").args(argv).stdin(Stdio::null()).output();
        let output = output.map_err(Error::io(format!("run {} on {node}", argv.join(" "))))?;
        Ok(Output {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn start_daemon(&self, node: &str, daemon: DaemonSpec) -> Result<()> {
        if let Some(user) = daemon.user {
            give_folders(&self.layout.node(node), &daemon.name, user)?;
        }
        control::ask(&self.control(node)?, &Request::Start { daemon }).map(drop)
    }

    fn stop_daemon(&self, node: &str, daemon: &str) -> Result<()> {
        let socket = self.control(node)?;
        control::ask(&socket, &Request::Stop { name: daemon.to_owned() })?;
        wait::until(&format!("the end of {daemon} on {node}"), STOP_LIMIT, || {
            let daemons = control::daemons(&socket).map_err(|e| e.to_string())?;
            match daemons.iter().find(|d| d.name == daemon).and_then(|d| d.pid) {
                None => Ok(()),
                Some(pid) => Err(format!("process {pid} runs")),
            }
        })
    }

    fn signal_daemon(&self, node: &str, daemon: &str, signal: i32) -> Result<()> {
        let request = Request::Signal { name: daemon.to_owned(), signal };
        control::ask(&self.control(node)?, &request).map(drop)
    }

    fn daemons(&self, node: &str) -> Result<Vec<DaemonState>> {
        control::daemons(&self.control(node)?)
    }

    fn api_endpoint(&self, node: &str) -> String {
        format!("unix://{}", self.layout.node(node).api_socket().display())
    }

    fn http_get(&self, node: &str, address: SocketAddr, path: &str, limit: Duration) -> Result<Response> {
        let init = self.init_of(node)?;
        let path = path.to_owned();
        netns::inside(init.pid, move || http::get(address, &path, limit))
    }

    fn log(&self, node: &str, daemon: &str) -> PathBuf {
        self.layout.node(node).log(daemon)
    }

    fn membership_socket(&self, node: &str) -> Option<PathBuf> {
        Some(self.layout.node(node).membership_socket())
    }
}

fn check_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::Lacking {
        what: "a lab is made of network, mount and PID namespaces, which needs root".to_owned(),
        how: "run it with sudo".to_owned(),
    })
}

/// Gives a daemon that is not root what it must read and write: the node's configuration (the
/// other daemons' keys excepted), its data folder, and the folder that its socket is made in.
fn give_folders(node: &NodeLayout, daemon: &str, user: u32) -> Result<()> {
    let data = node.path("data").join(daemon);
    fs::create_dir_all(&data).map_err(Error::io(data.display().to_string()))?;
    let own = |path: &Path| lchown(path, Some(user), Some(user)).map_err(Error::io(path.display().to_string()));
    own(&node.path("run"))?;
    let mut folders = vec![node.path("etc"), data];
    while let Some(folder) = folders.pop() {
        own(&folder)?;
        let shown = folder.display().to_string();
        for entry in fs::read_dir(&folder).map_err(Error::io(shown.clone()))? {
            let path = entry.map_err(Error::io(shown.clone()))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
                folders.push(path);
            } else if !name.starts_with("agent.") && !name.starts_with("netd.") {
                own(&path)?;
            }
        }
    }
    Ok(())
}

/// Removes what is in a folder, not the folder: it may be mounted elsewhere.
fn empty(folder: &Path) -> Result<()> {
    let shown = folder.display().to_string();
    for entry in fs::read_dir(folder).map_err(Error::io(shown.clone()))? {
        let path = entry.map_err(Error::io(shown.clone()))?.path();
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io(format!("remove {}", path.display())))?;
    }
    Ok(())
}
