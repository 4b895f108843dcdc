//! The namespaces backend on this machine: bare nodes, no cluster on them. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use trellis_lab::{
    Error,
    backend::{Backend, Namespaces, Power},
    fault::underlay::Underlay,
    layout::Layout,
    netns,
    node::control::DaemonSpec,
    process::Process,
    wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_trellis-lab");
const LIMIT: Duration = Duration::from_secs(20);
/// A packet that has not arrived by then does not.
const SILENCE: Duration = Duration::from_millis(400);

/// A lab of bare nodes that is taken down when the test ends, however it ends.
struct Bare {
    name: String,
    lab: Namespaces,
}

impl Bare {
    /// None, and a word why, where this machine cannot carry a lab.
    fn up(test: &str, nodes: usize) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: {test}: a lab needs root");
            return None;
        }
        let name = unique();
        let workers = (nodes - 1).to_string();
        succeed(lab(&name).args(["up", "--bare", "--control-planes", "1", "--workers", &workers]));
        let lab = Namespaces::open(&name, EXE.into()).unwrap();
        Some(Self { name, lab })
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let address = self.lab.topology().node(to).unwrap().address;
        reaches(&self.lab, from, address.into())
    }

    fn exec(&self, node: &str, argv: &[&str]) -> trellis_lab::backend::Output {
        self.lab.run(node, argv, &BTreeMap::new()).unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Err(e) = self.lab.destroy() {
            eprintln!("{}: {e}", self.name);
        }
    }
}

fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn lab(name: &str) -> Command {
    let mut command = Command::new(EXE);
    command.args(["--name", name]).stdin(Stdio::null());
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Does anything answer there? A refused connection is an answer.
fn reaches(lab: &Namespaces, from: &str, address: IpAddr) -> bool {
    let init = lab.init_of(from).unwrap();
    let connect = move || {
        let result = TcpStream::connect_timeout(&SocketAddr::new(address, 9), SILENCE);
        Ok(result.map_or_else(|e| e.kind() == io::ErrorKind::ConnectionRefused, |_| true))
    };
    netns::inside(init.pid, connect).unwrap()
}

fn remains(name: &str) -> Vec<String> {
    trellis_lab::remains::of(name).unwrap()
}

#[test]
fn a_node_is_a_machine_of_its_own() {
    let Some(bare) = Bare::up("a_node_is_a_machine_of_its_own", 2) else { return };
    assert_eq!(bare.exec("n2", &["cat", "/proc/sys/kernel/hostname"]).stdout.trim(), "n2");
    assert!(bare.reaches("n1", "n2"));
    // What one writes to its root, the other and the machine do not see.
    assert_eq!(bare.exec("n1", &["touch", "/etc/only-here", "/var/lib/trellis/kept"]).code, 0);
    assert_ne!(bare.exec("n2", &["cat", "/etc/only-here"]).code, 0);
    assert!(!Path::new("/etc/only-here").exists());
    // It sees its own cgroup as the root, its own processes, and no other lab's folder.
    let cgroups = bare.exec("n1", &["cat", "/proc/self/cgroup"]).stdout;
    assert!(cgroups.lines().all(|l| l.ends_with(":/") || l.ends_with(":/system")), "{cgroups}");
    let init = bare.exec("n1", &["cat", "/proc/1/cmdline"]).stdout;
    assert!(init.contains("node-init"), "{init}");
    assert_eq!(bare.exec("n1", &["ls", "/var/lib/trellis-lab"]).stdout, "");
    // What lies in its folders outlives a power cut; what lies beside them does not.
    bare.lab.kill("n1").unwrap();
    bare.lab.start("n1").unwrap();
    assert_eq!(bare.exec("n1", &["ls", "/var/lib/trellis"]).stdout.trim(), "kept");
    assert_ne!(bare.exec("n1", &["cat", "/etc/only-here"]).code, 0);
    bare.lab.wipe("n1").unwrap();
    assert_eq!(bare.lab.power("n1").unwrap(), Power::Off);
    bare.lab.start("n1").unwrap();
    assert_eq!(bare.exec("n1", &["ls", "/var/lib/trellis"]).stdout, "");
}

#[test]
fn the_exit_code_and_both_streams_of_a_command_come_through() {
    let Some(bare) = Bare::up("the_exit_code_and_both_streams_of_a_command_come_through", 1) else { return };
    let output = bare.exec("n1", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    assert_eq!(bare.exec("n1", &["sh", "-c", "kill -9 $$"]).code, 137);
    let unknown = lab(&bare.name).args(["exec", "n9", "--", "true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("has no node \"n9\""));
}

#[test]
fn a_power_cut_ends_everything_at_once_even_in_a_paused_node() {
    let test = "a_power_cut_ends_everything_at_once_even_in_a_paused_node";
    let Some(bare) = Bare::up(test, 2) else { return };
    let mac = |bare: &Bare| bare.exec("n2", &["cat", "/sys/class/net/eth0/address"]).stdout;
    let before = mac(&bare);
    // A process of the node that holds nothing of the init's.
    let mut stray = lab(&bare.name).args(["exec", "n2", "--", "sleep", "1000"]).spawn().unwrap();
    let sleeps = || bare.exec("n2", &["sh", "-c", "grep -l sleep /proc/[0-9]*/comm"]).code == 0;
    wait::until_true("the stray process", LIMIT, sleeps).unwrap();
    let init = bare.lab.init_of("n2").unwrap();
    bare.lab.pause("n2").unwrap();
    assert_eq!(bare.lab.power("n2").unwrap(), Power::Paused);
    assert!(bare.reaches("n1", "n2"), "a paused node's kernel still answers: that is not a power cut");

    bare.lab.kill("n2").unwrap();
    assert!(!init.alive());
    assert_eq!(bare.lab.power("n2").unwrap(), Power::Off);
    assert_eq!(stray.wait().unwrap().code(), Some(137));
    assert!(!bare.reaches("n1", "n2"));
    assert!(matches!(bare.lab.init_of("n2"), Err(Error::Off { .. })));
    bare.lab.kill("n2").unwrap();

    bare.lab.start("n2").unwrap();
    assert!(bare.reaches("n1", "n2"));
    assert_eq!(mac(&bare), before, "peers remember the address of its network card");
}

#[test]
fn a_silenced_port_drops_packets_while_the_link_stays_up() {
    let Some(bare) = Bare::up("a_silenced_port_drops_packets_while_the_link_stays_up", 2) else { return };
    assert!(bare.reaches("n1", "n2"));
    let holder = Process::load(&bare.lab.layout().underlay_pid()).unwrap();
    Underlay::held_by(holder.pid).silence(1).unwrap();
    assert!(!bare.reaches("n1", "n2"));
    assert!(!bare.reaches("n2", "n1"));
    assert_eq!(bare.exec("n2", &["cat", "/sys/class/net/eth0/operstate"]).stdout.trim(), "up");
    bare.lab.heal().unwrap();
    wait::until_true("the healed port", LIMIT, || bare.reaches("n1", "n2")).unwrap();
}

#[test]
fn a_partition_separates_the_groups_and_nothing_else() {
    let Some(bare) = Bare::up("a_partition_separates_the_groups_and_nothing_else", 5) else { return };
    assert!(bare.reaches("n1", "n3"));
    succeed(lab(&bare.name).args(["partition", "n1,n2", "/", "n3"]));
    for (from, to, expected) in [
        ("n1", "n2", true),
        ("n1", "n3", false),
        ("n3", "n2", false),
        ("n4", "n5", true),
        ("n4", "n1", false),
        ("n5", "n3", false),
    ] {
        assert_eq!(bare.reaches(from, to), expected, "{from} to {to}");
    }
    succeed(lab(&bare.name).args(["partition", "n1", "/", "n2,n3,n4,n5"]));
    assert!(bare.reaches("n2", "n3") && !bare.reaches("n1", "n2"), "a new partition replaces the one before");
    succeed(lab(&bare.name).arg("heal"));
    for to in ["n2", "n3", "n4", "n5"] {
        wait::until_true("a healed network", LIMIT, || bare.reaches("n1", to)).unwrap();
    }
}

#[test]
fn pausing_stops_and_resuming_goes_on() {
    let Some(bare) = Bare::up("pausing_stops_and_resuming_goes_on", 1) else { return };
    let script = "i=0; while true; do i=$((i+1)); echo $i > /var/lib/trellis/count; sleep 0.01; done";
    start(&bare, "counter", &["sh", "-c", script]);
    let file = bare.lab.layout().node("n1").path("data").join("count");
    let count = || fs::read_to_string(&file).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
    wait::until_true("a first count", LIMIT, || count() > 3).unwrap();
    bare.lab.pause("n1").unwrap();
    let stopped = count();
    let moved = wait::until_true("a count while paused", SILENCE, || count() != stopped && count() != 0);
    assert!(moved.is_err(), "it ran on while paused");
    bare.lab.resume("n1").unwrap();
    wait::until_true("counting on", LIMIT, || count() > stopped).unwrap();
}

fn start(bare: &Bare, name: &str, argv: &[&str]) {
    let argv = argv.iter().map(|a| (*a).to_owned()).collect();
    let daemon = DaemonSpec { name: name.to_owned(), argv, env: BTreeMap::new(), user: None };
    bare.lab.start_daemon("n1", daemon).unwrap();
}

#[test]
fn a_daemon_that_is_killed_comes_back_and_one_that_is_stopped_does_not() {
    let test = "a_daemon_that_is_killed_comes_back_and_one_that_is_stopped_does_not";
    let Some(bare) = Bare::up(test, 1) else { return };
    start(&bare, "sleeper", &["sh", "-c", "echo here; exec sleep 1000"]);
    let pid = || bare.lab.daemons("n1").unwrap().into_iter().find(|d| d.name == "sleeper").and_then(|d| d.pid);
    let log = || fs::read_to_string(bare.lab.log("n1", "sleeper")).unwrap_or_default();
    wait::until_true("the daemon", LIMIT, || log() == "here\n").unwrap();
    let first = pid();
    bare.lab.signal_daemon("n1", "sleeper", 9).unwrap();
    wait::until_true("its return", LIMIT, || pid() != first && log() == "here\nhere\n").unwrap();
    bare.lab.stop_daemon("n1", "sleeper").unwrap();
    let state = bare.lab.daemons("n1").unwrap().remove(0);
    assert_eq!((state.pid, state.wanted, state.restarts), (None, false, 1));
    // Orphans of the node end as zombies of nobody.
    assert_eq!(bare.exec("n1", &["sh", "-c", "(sleep 0.05 &) ; exit 0"]).code, 0);
    let zombies = || bare.exec("n1", &["sh", "-c", "grep -l 'State:.Z' /proc/[0-9]*/status"]).stdout;
    wait::until_true("no zombie", LIMIT, || zombies().is_empty()).unwrap();
}

#[test]
fn labs_stand_side_by_side_and_reach_nothing_outside() {
    let Some(one) = Bare::up("labs_stand_side_by_side_and_reach_nothing_outside", 2) else { return };
    let two = Bare::up("labs_stand_side_by_side_and_reach_nothing_outside", 3).unwrap();
    assert!(two.reaches("n1", "n3"), "the positive control");
    assert!(!reaches(&one.lab, "n1", two.lab.topology().node("n3").unwrap().address.into()));
    // The machine's own addresses, from /proc: none is reachable, and there is no default route.
    let routes = one.exec("n1", &["cat", "/proc/net/route"]).stdout;
    assert!(routes.lines().skip(1).all(|l| l.split_whitespace().nth(1) != Some("00000000")), "{routes}");
    let table = fs::read_to_string("/proc/net/fib_trie").unwrap();
    let local: Vec<IpAddr> = own_addresses(&table).into_iter().filter(|a| !a.is_loopback()).collect();
    for address in local {
        assert!(!reaches(&one.lab, "n1", address), "{address}");
    }
    drop(one);
    assert!(two.reaches("n1", "n3"), "the end of one lab is nothing to the other");
}

/// The addresses before "/32 host LOCAL" in /proc/net/fib_trie.
fn own_addresses(table: &str) -> Vec<IpAddr> {
    let lines: Vec<_> = table.lines().collect();
    let local = lines.windows(2).filter(|w| w[1].contains("/32 host LOCAL"));
    local.filter_map(|w| w[0].trim().trim_start_matches("|-- ").parse().ok()).collect()
}

#[test]
fn down_leaves_nothing_whenever_its_maker_was_killed() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: down_leaves_nothing_whenever_its_maker_was_killed: a lab needs root");
        return;
    }
    // After each of these has appeared, the maker is killed.
    for appears in ["unfinished", "lab.json", "underlay.pid", "nodes/n1/init.pid", "nodes/n4/lab/control.sock"] {
        let name = unique();
        let layout = Layout::of(&name);
        let mut maker = lab(&name).args(["up", "--bare"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let path: PathBuf = layout.root.join(appears);
        wait::until_true(appears, LIMIT, || path.exists()).unwrap();
        maker.kill().unwrap();
        maker.wait().unwrap();
        assert!(!remains(&name).is_empty(), "the positive control: {appears}");
        succeed(lab(&name).arg("down"));
        assert_eq!(remains(&name), Vec::<String>::new(), "after {appears}");
        succeed(lab(&name).arg("down"));
    }
}

#[test]
fn down_ends_the_peers_of_a_bench_that_was_killed() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/bin/etcd").exists() {
        eprintln!("SKIPPED: down_ends_the_peers_of_a_bench_that_was_killed: it needs root and etcd");
        return;
    }
    let name = unique();
    let folder = tempfile::tempdir().unwrap();
    let configured = |command: &mut Command| {
        command.env("TRELLIS_CONFIG", folder.path().join("contexts.json"));
    };
    let mut bench = lab(&name);
    configured(&mut bench);
    bench.args(["bench", "--only", "api-writes", "--output"]).arg(folder.path().join("bench.json"));
    let mut bench = bench.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let members = || remains(&name).iter().filter(|r| r.contains(": etcd --name")).count();
    let started = wait::until("three members of etcd", LIMIT * 4, || match (members(), bench.try_wait()) {
        (3, _) => Ok(()),
        (count, ended) => Err(format!("{count} run, the bench: {ended:?}")),
    });
    bench.kill().unwrap();
    bench.wait().unwrap();
    // Its nodes and its peers outlive it.
    let left = members();
    let mut down = lab(&name);
    configured(&mut down);
    succeed(down.arg("down"));
    started.unwrap();
    assert_eq!(left, 3, "the positive control");
    assert_eq!(remains(&name), Vec::<String>::new());
}
