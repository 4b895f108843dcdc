//! The lab that scenarios share, and what they ask of it.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use trellis_lab::{
    backend::{Backend, Namespaces, Power},
    cluster::{Api, api::condition, up},
    http::Response,
    node::spawn,
    status, wait,
};

pub const EXE: &str = env!("CARGO_BIN_EXE_trellis-lab");
/// What takes seconds on a quiet machine is given this on a loaded one.
pub const LIMIT: Duration = Duration::from_secs(60);
/// A command of `trellis` that does not wait for something ends by then.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);
/// A packet that is not answered by then is not.
pub const SILENCE: Duration = Duration::from_millis(1500);

/// The registry of the registry scenario is on n1; every node speaks plain HTTP to it.
pub const REGISTRY: &str = "172.30.0.11:5000";
/// Others beside it: one with passwords, one with tokens, their server, and one that lies.
pub const REGISTRY_BASIC: &str = "172.30.0.11:5001";
pub const REGISTRY_TOKEN: &str = "172.30.0.11:5002";
pub const TOKEN_SERVER: &str = "172.30.0.11:5003";
pub const REGISTRY_LYING: &str = "172.30.0.11:5004";

pub struct Cluster {
    pub lab: Namespaces,
    pub api: Api,
    pub name: String,
    folder: tempfile::TempDir,
    /// Set by the scenario that takes the lab down.
    pub gone: bool,
}

/// What a command printed.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its stdout; fails the scenario when the command failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Cluster {
    /// Five nodes; an error that begins with SKIPPED where this machine cannot carry them.
    pub fn up() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("SKIPPED: a lab needs root".to_owned());
        }
        let name = format!("e2e{}", std::process::id());
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let topology = folder.path().join("topology.toml");
        let plain = [REGISTRY, REGISTRY_BASIC, REGISTRY_TOKEN, REGISTRY_LYING];
        let text = format!("control_planes = 3\nworkers = 2\ninsecure_registries = {plain:?}\n");
        fs::write(&topology, text).map_err(|e| e.to_string())?;
        let ran = run(lab_command(&name, folder.path()).arg("up").arg("-f").arg(&topology), LIMIT * 3);
        eprint!("{}", ran.stderr);
        let opened = Namespaces::open(&name, EXE.into()).map_err(|e| e.to_string());
        if ran.code != 0 {
            if let Ok(lab) = opened {
                tell(&lab);
                let _ = lab.destroy();
            }
            return Err(format!("{}{}", ran.stdout, ran.stderr));
        }
        let lab = opened?;
        let api = Api::open(&lab.layout().contexts()).map_err(|e| e.to_string())?;
        Ok(Self { lab, api, name, folder, gone: false })
    }

    /// A folder of the scenarios' own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `trellis-lab ARGS` for this lab.
    pub fn lab_command(&self, args: &[&str]) -> Ran {
        run(lab_command(&self.name, self.folder.path()).args(args), LIMIT)
    }

    /// `trellis ARGS` as the administrator.
    pub fn trellis(&self, args: &[&str]) -> Ran {
        run(&mut self.trellis_command(args), COMMAND_LIMIT)
    }

    /// The same, not started yet.
    pub fn trellis_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program("trellis"));
        command.args(args).env("TRELLIS_CONFIG", self.lab.layout().contexts()).stdin(Stdio::null());
        command
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.lab.bin_dir().join(name)
    }

    /// Applies a manifest by the command line.
    #[track_caller]
    pub fn apply(&self, name: &str, manifest: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, manifest).unwrap();
        self.trellis(&["apply", "-f", path.to_str().unwrap()]).ok()
    }

    /// The web application's image on every node.
    #[track_caller]
    pub fn import_web_image(&self) {
        let archive = trellis_lab::workload::web::write_archive(self.folder.path()).unwrap();
        self.trellis(&["image", "import", archive.to_str().unwrap(), "--all-nodes"]).ok();
    }

    /// Pods of a label that are Ready and not going away.
    pub fn ready_pods(&self, namespace: &str, selector: &str) -> Vec<Pod> {
        let pods = self.api.list("Pod", namespace, selector).unwrap_or_default();
        let serving = pods
            .iter()
            .filter(|p| condition(p, "Ready") == Some("True") && p["metadata"]["deletionTimestamp"].is_null());
        serving.filter_map(Pod::of).collect()
    }

    /// Waits until exactly `count` Pods of a label are Ready.
    #[track_caller]
    pub fn wait_ready(&self, namespace: &str, selector: &str, count: usize) -> Vec<Pod> {
        let what = format!("{count} Ready Pods of {selector}");
        let found = wait::until(&what, LIMIT, || {
            let pods = self.ready_pods(namespace, selector);
            if pods.len() == count { Ok(pods) } else { Err(self.describe(namespace, selector)) }
        });
        found.unwrap_or_else(|e| panic!("{e}"))
    }

    /// A line a Pod: what a person would want to know when it is not as it should be.
    pub fn describe(&self, namespace: &str, selector: &str) -> String {
        let pods = match self.api.list("Pod", namespace, selector) {
            Ok(pods) => pods,
            Err(e) => return e.to_string(),
        };
        let line = |p: &Value| {
            format!(
                "\n    {} on {} {} ip {} conditions {} containers {}",
                p["metadata"]["name"],
                p["spec"]["nodeName"],
                p["status"]["phase"],
                p["status"]["podIP"],
                p["status"]["conditions"],
                p["status"]["containerStatuses"]
            )
        };
        format!("{} Pods{}", pods.len(), pods.iter().map(line).collect::<String>())
    }

    pub fn alive(&self) -> BTreeSet<String> {
        let nodes = self.lab.topology().nodes.iter().map(|n| n.name.clone());
        nodes.filter(|n| self.lab.power(n).unwrap() == Power::On).collect()
    }

    /// A node other than these.
    #[track_caller]
    pub fn other_node(&self, than: &[&str]) -> String {
        self.alive().into_iter().find(|n| !than.contains(&n.as_str())).unwrap()
    }

    /// Asks a Pod's web server from a node.
    pub fn ask(&self, from: &str, address: &str, port: u16) -> Result<Response, String> {
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is no address"))?;
        self.lab.http_get(from, SocketAddr::new(address, port), "/", SILENCE).map_err(|e| e.to_string())
    }

    /// Asks from inside a Pod (its image must have wget).
    pub fn ask_from_pod(&self, namespace: &str, pod: &str, url: &str) -> Ran {
        // busybox' own -T crashes the static build of Debian 12.
        self.trellis(&["exec", "-n", namespace, pod, "--", "timeout", "2", "wget", "-q", "-O", "-", url])
    }

    /// Waits until every node is Ready and takes Pods again: the taints of its absence go with a
    /// write of their own.
    #[track_caller]
    pub fn wait_all_nodes_ready(&self) {
        let all = self.lab.topology().nodes.len();
        let absent = |node: &serde_json::Value| {
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            taints
                .filter_map(|t| t["key"].as_str())
                .any(|k| k.starts_with("node.kubernetes.io/") && !k.ends_with("unschedulable"))
        };
        let waited = wait::until("all nodes Ready", LIMIT, || {
            let ready = self.api.ready_nodes().map_err(|e| e.to_string())?;
            let tainted =
                self.api.list("Node", "", "").map_err(|e| e.to_string())?.iter().filter(|n| absent(n)).count();
            if ready.len() == all && tainted == 0 {
                Ok(())
            } else {
                Err(format!("Ready: {ready:?}, tainted: {tainted}"))
            }
        });
        waited.unwrap_or_else(|e| panic!("{e}"));
    }

    /// Powers a node on again, with its daemons.
    #[track_caller]
    pub fn start(&self, node: &str) {
        up::restart(&self.lab, self.lab.layout(), node).unwrap();
    }

    /// After a scenario, however it ended: a whole network, every node on, nothing deployed.
    pub fn tidy(&mut self) {
        if self.gone {
            return;
        }
        let problems = || -> trellis_lab::Result<()> {
            self.lab.heal()?;
            for node in &self.lab.topology().nodes {
                match self.lab.power(&node.name)? {
                    Power::Off => up::restart(&self.lab, self.lab.layout(), &node.name)?,
                    Power::Paused => self.lab.resume(&node.name)?,
                    Power::On => {}
                }
            }
            for kind in ["Deployment", "ReplicaSet", "NetworkPolicy", "Pod"] {
                for object in self.api.list(kind, "", "")? {
                    let metadata = &object["metadata"];
                    let text = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
                    self.api.delete(kind, &text("namespace"), &text("name"), Some(0))?;
                }
            }
            wait::until("an empty cluster", LIMIT, || match self.api.list("Pod", "", "") {
                Ok(pods) if pods.is_empty() => Ok(()),
                Ok(pods) => Err(format!("{} Pods left", pods.len())),
                Err(e) => Err(e.to_string()),
            })
        };
        if let Err(e) = problems() {
            eprintln!("tidying up: {e}");
        }
    }

    /// Everything that helps to find out why a scenario failed.
    pub fn tell_what_is(&self) {
        eprintln!("{}", self.describe("", ""));
        tell(&self.lab);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(e) = self.lab.destroy() {
            eprintln!("taking the lab down: {e}");
        }
    }
}

/// A Ready Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub node: String,
    pub address: String,
}

impl Pod {
    fn of(object: &Value) -> Option<Self> {
        Some(Self {
            name: object["metadata"]["name"].as_str()?.to_owned(),
            uid: object["metadata"]["uid"].as_str()?.to_owned(),
            node: object["spec"]["nodeName"].as_str()?.to_owned(),
            address: object["status"]["podIP"].as_str()?.to_owned(),
        })
    }
}

/// `trellis-lab --name NAME`, with contexts in the folder.
pub fn lab_command(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(EXE);
    // The contexts of who runs the tests stay as they are.
    command.args(["--name", name]).env("TRELLIS_CONFIG", folder.join("contexts.json")).stdin(Stdio::null());
    command
}

fn tell(lab: &Namespaces) {
    if let Ok(status) = status::collect(lab, lab.layout()) {
        eprintln!("{}", status::table(&status));
    }
    for node in &lab.topology().nodes {
        for daemon in ["netd", "control-plane", "node-agent"] {
            let log = lab.log(&node.name, daemon);
            if log.exists() {
                eprintln!("  {} {daemon}:{}", node.name, spawn::tail_of(&log));
            }
        }
    }
}

/// Runs a command to its end, or kills it at the limit.
pub fn run(command: &mut Command, limit: Duration) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let code = wait_for(&mut child, limit);
    Ran { code, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// Its exit code; -1 when it had to be killed.
pub fn wait_for(child: &mut Child, limit: Duration) -> i32 {
    let ended = wait::until("a command's end", limit, || match child.try_wait() {
        Ok(Some(status)) => Ok(status.code().unwrap_or(-2)),
        other => Err(format!("{other:?}")),
    });
    ended.unwrap_or_else(|_| {
        let _ = child.kill();
        let _ = child.wait();
        -1
    })
}

fn reader(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
