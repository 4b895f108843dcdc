//! Bad wires between bare nodes of this machine: cut one way, lossy, late. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use trellis_lab::{
    Error,
    backend::{Backend, Namespaces},
    cluster::up,
    fault::state::WHOLE,
    netns,
    progress::Progress,
    topology::Topology,
    wait,
};

const EXE: &str = env!("CARGO_BIN_EXE_trellis-lab");
/// A packet that has not arrived by then does not.
const SILENCE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(20);

struct Bare(Namespaces);

impl Bare {
    /// None, and a word why, where this machine cannot carry a lab.
    fn up(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: {test}: a lab needs root");
            return None;
        }
        let topology = Topology::simple(&format!("w{}-{}", std::process::id(), test.len()), 1, 2).unwrap();
        let bare = Self(Namespaces::new(topology, "/".into(), EXE.into()).unwrap());
        bare.0.create().unwrap();
        up::power_on(&bare.0, &Progress::new()).unwrap();
        Some(bare)
    }

    fn socket(&self, node: &str) -> UdpSocket {
        let address: Ipv4Addr = self.0.topology().node(node).unwrap().address;
        let socket = netns::inside(self.0.init_of(node).unwrap().pid, move || {
            UdpSocket::bind((address, 0)).map_err(Error::io("a socket of the test"))
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    }

    /// How many of so many packets arrive.
    fn arrive(&self, from: &str, to: &str, count: usize) -> usize {
        let (from, to) = (self.socket(from), self.socket(to));
        let address: SocketAddr = to.local_addr().unwrap();
        let mut arrived = 0;
        // A few at a time: what is lost must be lost on the way, not in a full buffer.
        for _ in 0..count.div_ceil(50) {
            for _ in 0..50.min(count) {
                from.send_to(b"packet", address).unwrap();
            }
            to.set_nonblocking(false).unwrap();
            for _ in 0..50.min(count) {
                if to.recv(&mut [0; 16]).is_err() {
                    break;
                }
                arrived += 1;
            }
        }
        arrived
    }

    /// Waits until packets pass: the link of a node that was just plugged in needs a moment.
    #[track_caller]
    fn passes(&self, from: &str, to: &str) {
        let what = format!("packets from {from} to {to}");
        wait::until_true(&what, LIMIT, || self.arrive(from, to, 3) == 3).unwrap();
    }

    fn command(&self, args: &[&str]) -> std::process::Output {
        Command::new(EXE).args(["--name", &self.0.topology().name]).args(args).output().unwrap()
    }

    #[track_caller]
    fn succeed(&self, args: &[&str]) {
        let output = self.command(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Err(e) = self.0.destroy() {
            eprintln!("{e}");
        }
    }
}

#[test]
fn a_one_way_partition_drops_one_direction_and_lasts_over_a_restart() {
    let Some(bare) = Bare::up("a_one_way_partition_drops_one_direction_and_lasts_over_a_restart") else { return };
    for (from, to) in [("n1", "n2"), ("n1", "n3"), ("n3", "n2")] {
        bare.passes(from, to);
    }
    bare.succeed(&["partition", "--one-way", "n1", "/", "n2"]);
    for (from, to, expected) in [("n1", "n2", 0), ("n2", "n1", 3), ("n1", "n3", 3), ("n3", "n2", 3)] {
        assert_eq!(bare.arrive(from, to, 3), expected, "{from} to {to}");
    }
    bare.0.kill("n2").unwrap();
    bare.0.start("n2").unwrap();
    bare.passes("n2", "n1");
    assert_eq!(bare.arrive("n1", "n2", 3), 0, "its port is a new one");
    // Another partition ends it, and so does healing.
    bare.succeed(&["partition", "--one-way", "n2,n3", "/", "n1"]);
    assert_eq!((bare.arrive("n1", "n2", 3), bare.arrive("n2", "n1", 3), bare.arrive("n3", "n1", 3)), (3, 0, 0));
    bare.succeed(&["heal"]);
    assert_eq!((bare.arrive("n2", "n1", 3), bare.arrive("n3", "n1", 3)), (3, 3));
    let three = bare.command(&["partition", "--one-way", "n1", "/", "n2", "/", "n3"]);
    assert!(String::from_utf8_lossy(&three.stderr).contains("two groups are wanted"), "{three:?}");
}

#[test]
fn a_partition_into_groups_lasts_over_a_restart() {
    let Some(bare) = Bare::up("a_partition_into_groups_lasts_over_a_restart") else { return };
    let all = [("n1", "n2"), ("n1", "n3"), ("n2", "n3")];
    for (from, to) in all {
        bare.passes(from, to);
    }
    // One off while it is made, one that dies and comes back in it.
    bare.0.kill("n3").unwrap();
    bare.succeed(&["partition", "n1", "/", "n2,n3"]);
    bare.0.start("n3").unwrap();
    bare.passes("n2", "n3");
    bare.0.kill("n2").unwrap();
    bare.0.start("n2").unwrap();
    bare.passes("n2", "n3");
    for (from, to, expected) in [("n1", "n2", 0), ("n1", "n3", 0), ("n2", "n3", 3)] {
        assert_eq!(bare.arrive(from, to, 3), expected, "{from} to {to}");
    }
    bare.succeed(&["heal"]);
    for (from, to) in all {
        bare.passes(from, to);
    }
}

#[test]
fn a_share_of_the_packets_is_lost_each_way() {
    let Some(bare) = Bare::up("a_share_of_the_packets_is_lost_each_way") else { return };
    bare.passes("n1", "n2");
    bare.passes("n1", "n3");
    bare.succeed(&["loss", "n2", "30"]);
    // Of 400 packets 280 arrive; the standard deviation is 9, so six of it are never seen.
    for (from, to) in [("n1", "n2"), ("n2", "n1")] {
        let arrived = bare.arrive(from, to, 400);
        assert!((225..335).contains(&arrived), "{arrived} of 400 arrived from {from} to {to}");
    }
    assert_eq!(bare.arrive("n1", "n3", 400), 400, "the others' wires are good");
    bare.0.lose("n2", WHOLE).unwrap();
    assert_eq!(bare.arrive("n1", "n2", 50), 0);
    bare.succeed(&["loss", "n2", "0"]);
    assert_eq!(bare.arrive("n1", "n2", 400), 400);
    let wrong = bare.command(&["loss", "n2", "120"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("more than 100"), "{wrong:?}");
}

#[test]
fn packets_are_late_or_the_kernel_says_what_it_lacks() {
    let test = "packets_are_late_or_the_kernel_says_what_it_lacks";
    let Some(bare) = Bare::up(test) else { return };
    let round_trip = |bare: &Bare| {
        let (a, b) = (bare.socket("n1"), bare.socket("n2"));
        let begin = std::time::Instant::now();
        a.send_to(b"there", b.local_addr().unwrap()).unwrap();
        b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        a.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (_, from) = b.recv_from(&mut [0; 16]).unwrap();
        b.send_to(b"back", from).unwrap();
        a.recv(&mut [0; 16]).unwrap();
        begin.elapsed()
    };
    bare.passes("n1", "n2");
    match bare.0.delay("n2", Duration::from_millis(150)) {
        Ok(()) => {}
        Err(e) => {
            assert!(e.to_string().contains("lacks sch_netem"), "{e}");
            assert_eq!(bare.0.wires().unwrap().delay_millis.len(), 0, "what was refused is not remembered");
            eprintln!("SKIPPED: {test}: the delay itself: {e}");
            return;
        }
    }
    assert!(round_trip(&bare) >= Duration::from_millis(300), "150 ms each way");
    bare.0.kill("n2").unwrap();
    bare.0.start("n2").unwrap();
    bare.passes("n1", "n2");
    assert!(round_trip(&bare) >= Duration::from_millis(300), "after its return as well");
    bare.succeed(&["heal"]);
    // The first packets ask for hardware addresses.
    round_trip(&bare);
    assert!(round_trip(&bare) < Duration::from_millis(150));
}
