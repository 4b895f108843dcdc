//! Machines that `vagrant up` has made of the same topology: see the Vagrantfile.
//!
//! Vagrant makes and destroys them; power, and standing still, are asked of what runs them (libvirt or
//! VirtualBox), at once and without its ceremony; everything inside is done over ssh, whose settings
//! Vagrant tells once. The daemons are systemd's there.

mod provider;

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use self::provider::{Act, Provider};
use super::{Backend, Output, Power};
use crate::{
    Error, Result,
    http::{self, Response},
    layout::Layout,
    node::control::{DaemonSpec, DaemonState},
    topology::{Options, Topology},
    wait,
};

/// A VM boots within a minute where the processor helps, and under emulation on a busy machine:
const BOOT_LIMIT: Duration = Duration::from_secs(900);
/// The folder's settings for ssh, below `.vagrant`.
const SSH_CONFIG: &str = "trellis-ssh-config";
/// The folder of contexts and archives, below `.vagrant`.
const STATE: &str = "trellis-lab";
/// nftables table that a partition consists of.
const PARTITION: &str = "trellis_lab_partition";
/// As on the VMs' private network by default; VirtualBox allows no other without a word to it.
const SUBNET: &str = "192.168.56.0/24";

/// The VMs of a folder with a Vagrantfile.
#[derive(Clone, Debug)]
pub struct Vagrant {
    topology: Topology,
    folder: PathBuf,
    /// `.vagrant`, or what the environment names instead.
    state: PathBuf,
    layout: Layout,
}

impl Vagrant {
    /// Those of the folder, which the same environment describes that the Vagrantfile reads.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.join("Vagrantfile").is_file() {
            return Err(Error::Lacking {
                what: format!("{} has no Vagrantfile", folder.display()),
                how: "go to the sources, or name their folder with --vagrant-dir".to_owned(),
            });
        }
        let topology = topology(|name| std::env::var(format!("TRELLIS_{name}")).ok())?;
        let state = std::env::var_os("VAGRANT_DOTFILE_PATH").map_or_else(|| folder.join(".vagrant"), PathBuf::from);
        let layout = layout(&topology.name, &state, std::env::var_os("TRELLIS_LAB_DIR").is_some());
        fs::create_dir_all(&layout.root).map_err(Error::io(layout.root.display().to_string()))?;
        Ok(Self { topology, folder: folder.to_owned(), state, layout })
    }

    /// Where contexts and archives of this lab lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fetches the context that the first member that runs has, with addresses of all.
    pub fn fetch_context(&self) -> Result<()> {
        let mut last = Error::Topology("no member of the control plane runs".to_owned());
        for member in self.topology.control_planes() {
            // Only the machine of `cluster init` has it.
            match self.run(&member.name, &["cat", "/root/.config/trellis/config.json"], &BTreeMap::new()) {
                Ok(output) if output.code == 0 => return self.keep_context(&output.stdout),
                Ok(output) => last = failed(&format!("the context on {}", member.name), &output),
                Err(error) => last = error,
            }
        }
        // It was fetched before, perhaps.
        if self.layout.contexts().exists() { Ok(()) } else { Err(last) }
    }

    fn keep_context(&self, text: &str) -> Result<()> {
        let path = self.layout.root.join("fetched.json");
        trellis_proto::node_config::write_private(&path, text.as_bytes())
            .map_err(Error::io(path.display().to_string()))?;
        let mut context = crate::cluster::contexts::read(&path)?;
        context.endpoints = self.topology.control_planes().map(|n| self.api_endpoint(&n.name)).collect();
        let _ = fs::remove_file(&path);
        crate::cluster::contexts::add(&self.layout.contexts(), &self.context(), context)
    }

    /// Provider and id; none when the machine was never made, or destroyed.
    fn machine(&self, node: &str) -> Result<Option<(Provider, String)>> {
        self.topology.node(node)?;
        Ok(Provider::ALL.into_iter().find_map(|provider| {
            let id = fs::read_to_string(self.id_file(node, provider)).ok().map(|id| id.trim().to_owned())?;
            (!id.is_empty()).then_some((provider, id))
        }))
    }

    fn act(&self, node: &str, act: Act) -> Result<String> {
        let made = self.machine(node)?;
        let (provider, id) = made.ok_or_else(|| Error::Off { node: node.to_owned() })?;
        let argv = provider.command(act, &id);
        let output = execute(Command::new(&argv[0]).args(&argv[1..]), &argv.join(" "))?;
        if output.code == 0 { Ok(output.stdout) } else { Err(failed(&argv.join(" "), &output)) }
    }

    fn vagrant(&self, args: &[&str]) -> Result<String> {
        let what = format!("vagrant {}", args.join(" "));
        let output = execute(Command::new("vagrant").args(args).current_dir(&self.folder), &what)?;
        if output.code == 0 { Ok(output.stdout) } else { Err(failed(&what, &output)) }
    }

    fn ssh_config(&self) -> PathBuf {
        self.state.join(SSH_CONFIG)
    }

    /// Vagrant takes seconds to tell them; they change when a VM is made anew. It tells none if one of those that
    /// it is asked for does not run.
    fn learn_ssh(&self) -> Result<()> {
        let running = self.running()?;
        let mut args = vec!["ssh-config"];
        args.extend(running.iter().map(String::as_str));
        let text = if running.is_empty() { String::new() } else { self.vagrant(&args)? };
        let path = self.ssh_config();
        fs::write(&path, text).map_err(Error::io(path.display().to_string()))
    }

    /// Are the settings those of this VM, and not of one that had its name before?
    fn ssh_known(&self, node: &str) -> bool {
        let path = self.ssh_config();
        let host = format!("Host {node}");
        let told = fs::read_to_string(&path).is_ok_and(|text| text.lines().any(|line| line.trim() == host));
        let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
        let made = Provider::ALL.into_iter().find_map(|provider| changed(&self.id_file(node, provider)));
        told && made.is_some_and(|made| changed(&path).is_some_and(|learnt| made < learnt))
    }

    fn id_file(&self, node: &str, provider: Provider) -> PathBuf {
        self.state.join("machines").join(node).join(provider.folder()).join("id")
    }

    fn ssh(&self, node: &str, command: &str) -> Result<Output> {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(self.ssh_config());
        ssh.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", node, command]);
        execute(&mut ssh, &format!("ssh {node}"))
    }

    fn logged_in(&self, node: &str) -> Result<(), String> {
        if !self.ssh_known(node) {
            self.learn_ssh().map_err(|e| e.to_string())?;
        }
        let answer = self.ssh(node, "true").map_err(|e| e.to_string())?;
        if answer.code == 0 {
            return Ok(());
        }
        self.learn_ssh().map_err(|e| e.to_string())?;
        Err(answer.stderr)
    }

    fn as_root(&self, node: &str, script: &str) -> Result<String> {
        let output = self.run(node, &["sh", "-ec", script], &BTreeMap::new())?;
        if output.code == 0 { Ok(output.stdout) } else { Err(failed(&format!("sh on {node}"), &output)) }
    }

    /// The interface that carries the node's address, and its hardware address.
    fn hardware(&self, node: &str) -> Result<String> {
        let address = self.topology.node(node)?.address;
        let script = format!(
            "i=$(ip -o -4 address | awk -v a='{address}/' 'index($4, a) == 1 {{ print $2; exit }}'); cat /sys/class/net/$i/address"
        );
        Ok(self.as_root(node, &script)?.trim().to_owned())
    }

    fn running(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for node in &self.topology.nodes {
            if self.power(&node.name)? == Power::On {
                names.push(node.name.clone());
            }
        }
        Ok(names)
    }
}

/// Beside what Vagrant keeps of the VMs, whose owner need not be root; unless the environment names a place for
/// labs.
fn layout(name: &str, state: &Path, labs_are_named: bool) -> Layout {
    if labs_are_named {
        return Layout::of(name);
    }
    Layout { root: state.join(STATE).join(name), name: name.to_owned() }
}

fn topology(var: impl Fn(&str) -> Option<String>) -> Result<Topology> {
    let number = |name: &str| -> Result<Option<usize>> {
        let parse = |v: String| v.parse().map_err(|_| Error::Topology(format!("TRELLIS_{name}={v}: not a number")));
        var(name).map(parse).transpose()
    };
    let name = var("CONTEXT").unwrap_or_else(|| "vagrant".to_owned());
    let file = var("TOPOLOGY").map(PathBuf::from);
    let options = Options {
        name: Some(name),
        // As in the Vagrantfile, the file goes before the environment.
        usual_control_planes: Some(number("CONTROL_PLANES")?.unwrap_or(3)),
        usual_workers: Some(number("WORKERS")?.unwrap_or(3)),
        subnet: Some(var("SUBNET").unwrap_or_else(|| SUBNET.to_owned())),
        ..Options::default()
    };
    Topology::load(file.as_deref(), &options)
}

fn execute(command: &mut Command, what: &str) -> Result<Output> {
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Lacking {
                what: format!("{what}: there is no such program"),
                how: "install it; see docs/vagrant.md".to_owned(),
            });
        }
        Err(e) => return Err(Error::io(what.to_owned())(e)),
    };
    Ok(Output {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default()),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn failed(what: &str, output: &Output) -> Error {
    let lines: Vec<&str> = output.stdout.lines().chain(output.stderr.lines()).collect();
    let shown = lines[lines.len().saturating_sub(8)..].iter().map(|l| format!("\n    {l}")).collect();
    Error::Command { what: what.to_owned(), status: format!("exit code {}", output.code), output: shown }
}

/// One word of a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Backend for Vagrant {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn command(&self) -> String {
        "trellis-lab --vagrant".to_owned()
    }

    fn create(&self) -> Result<()> {
        self.vagrant(&["up"])?;
        self.learn_ssh()
    }

    fn destroy(&self) -> Result<()> {
        self.vagrant(&["destroy", "--force"])?;
        match fs::remove_dir_all(&self.layout.root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(self.layout.root.display().to_string())(e)),
            _ => Ok(()),
        }
    }

    fn start(&self, node: &str) -> Result<()> {
        match self.machine(node)? {
            None => drop(self.vagrant(&["up", node])?),
            Some(_) if self.power(node)? == Power::Off => drop(self.act(node, Act::On)?),
            Some(_) => return Ok(()),
        }
        wait::until(&format!("a login on {node}"), BOOT_LIMIT, || self.logged_in(node))
    }

    fn kill(&self, node: &str) -> Result<()> {
        if self.power(node)? == Power::Off { Ok(()) } else { self.act(node, Act::Cut).map(drop) }
    }

    fn pause(&self, node: &str) -> Result<()> {
        self.act(node, Act::Pause).map(drop)
    }

    fn resume(&self, node: &str) -> Result<()> {
        self.act(node, Act::Resume).map(drop)
    }

    fn wipe(&self, node: &str) -> Result<()> {
        self.vagrant(&["destroy", "--force", node]).map(drop)
    }

    /// By hardware address: what a Pod sends carries its own address, but its node's frame.
    fn partition(&self, groups: &[Vec<String>]) -> Result<()> {
        let running = self.running()?;
        let mut group_of: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, group) in groups.iter().enumerate() {
            for node in group {
                self.topology.node(node)?;
                group_of.insert(node, i);
            }
        }
        let mut hardware = Vec::with_capacity(running.len());
        for node in &running {
            let group = group_of.get(node.as_str()).copied().unwrap_or(groups.len());
            hardware.push((node, group, self.hardware(node)?));
        }
        self.heal()?;
        for (node, group, _) in &hardware {
            let others: Vec<&str> = hardware.iter().filter(|(_, g, _)| g != group).map(|(.., m)| m.as_str()).collect();
            if !others.is_empty() {
                let elements = others.join(", ");
                self.as_root(
                    node,
                    &format!(
                        "nft 'table inet {PARTITION} {{ chain in {{ type filter hook prerouting priority -500; ether saddr {{ {elements} }} drop; }}; }}'"
                    ),
                )?;
            }
        }
        Ok(())
    }

    fn heal(&self) -> Result<()> {
        for node in self.running()? {
            // Made first, so that removing it cannot fail.
            self.as_root(&node, &format!("nft 'table inet {PARTITION} {{ }} ; delete table inet {PARTITION}'"))?;
        }
        Ok(())
    }

    fn power(&self, node: &str) -> Result<Power> {
        let Some((provider, _)) = self.machine(node)? else { return Ok(Power::Off) };
        Ok(provider.power(&self.act(node, Act::Ask)?))
    }

    fn run(&self, node: &str, argv: &[&str], env: &BTreeMap<String, String>) -> Result<Output> {
        if self.power(node)? != Power::On {
            return Err(Error::Off { node: node.to_owned() });
        }
        if !self.ssh_known(node) {
            self.learn_ssh()?;
        }
        let env = env.iter().map(|(k, v)| quoted(&format!("{k}={v}")));
        let words = ["sudo", "env"].map(str::to_owned).into_iter().chain(env).chain(argv.iter().map(|w| quoted(w)));
        self.ssh(node, &words.collect::<Vec<_>>().join(" "))
    }

    fn start_daemon(&self, node: &str, daemon: DaemonSpec) -> Result<()> {
        self.as_root(node, &format!("systemctl start trellis-{}", daemon.name)).map(drop)
    }

    fn stop_daemon(&self, node: &str, daemon: &str) -> Result<()> {
        self.as_root(node, &format!("systemctl stop trellis-{daemon}")).map(drop)
    }

    fn signal_daemon(&self, node: &str, daemon: &str, signal: i32) -> Result<()> {
        self.as_root(node, &format!("systemctl kill --kill-who=main --signal={signal} trellis-{daemon}")).map(drop)
    }

    fn daemons(&self, node: &str) -> Result<Vec<DaemonState>> {
        let script = "for d in netd control-plane node-agent; do \
            systemctl show trellis-$d -p MainPID -p NRestarts -p ConditionResult -p ActiveState -p Result | tr '\\n' ' '; \
            echo $d; done";
        Ok(self.as_root(node, script)?.lines().filter_map(daemon_of).collect())
    }

    fn api_endpoint(&self, node: &str) -> String {
        let address = self.topology.node(node).map(|n| n.address.to_string()).unwrap_or_default();
        format!("https://{address}:{}", trellis_proto::ports::API)
    }

    fn http_get(&self, node: &str, address: SocketAddr, path: &str, limit: Duration) -> Result<Response> {
        // Every Debian has bash; not every one has an HTTP client.
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} && printf 'GET {path} HTTP/1.0\\r\\nHost: {address}\\r\\n\\r\\n' >&3 && cat <&3",
            address.ip(),
            address.port()
        );
        let seconds = limit.as_secs().max(1).to_string();
        let what = format!("GET http://{address}{path} on {node}");
        let output = self.run(node, &["timeout", &seconds, "bash", "-c", &script], &BTreeMap::new())?;
        if output.code != 0 {
            return Err(failed(&what, &output));
        }
        http::parse(&output.stdout).ok_or_else(|| Error::Format { what, why: "no HTTP answer".to_owned() })
    }

    fn log(&self, node: &str, daemon: &str) -> PathBuf {
        self.layout.node(node).log(daemon)
    }

    fn daemons_start_themselves(&self) -> bool {
        true
    }

    /// The one that the Vagrantfile puts into the user's file.
    fn context(&self) -> String {
        self.topology.name.clone()
    }

    fn membership_socket(&self, _: &str) -> Option<PathBuf> {
        None
    }
}

/// A line `MainPID=1 NRestarts=0 … name`; none for a daemon that this machine does not carry.
fn daemon_of(line: &str) -> Option<DaemonState> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let name = words.pop()?.to_owned();
    let get = |key: &str| words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
    let active = get("ActiveState")?;
    if get("ConditionResult") == Some("no") && active == "inactive" {
        return None;
    }
    Some(DaemonState {
        name,
        pid: get("MainPID")?.parse().ok().filter(|p| *p > 0),
        wanted: active != "inactive",
        restarts: get("NRestarts").and_then(|n| n.parse().ok()).unwrap_or(0),
        last_exit: get("Result").filter(|r| *r != "success").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests;
