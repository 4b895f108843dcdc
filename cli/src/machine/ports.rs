//! Is a port free, and if not, whose is it?

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use trellis_proto::node_config::Role;
use trellis_proto::ports;

/// A port that a node needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Its number.
    pub port: u16,
    /// UDP, else TCP.
    pub udp: bool,
    /// What it is for.
    pub what: &'static str,
}

/// The ports of a node with these roles.
#[must_use]
pub fn needed(roles: &[Role]) -> Vec<Needed> {
    let mut all = vec![Needed { port: ports::GOSSIP, udp: true, what: "gossip" }];
    if roles.contains(&Role::ControlPlane) {
        all.push(Needed { port: ports::API, udp: false, what: "the API" });
        all.push(Needed { port: ports::PEER, udp: false, what: "the control plane's peers" });
    }
    if roles.contains(&Role::Worker) {
        all.push(Needed { port: ports::AGENT, udp: false, what: "the node agent" });
    }
    all
}

/// Those that somebody else holds, in words.
#[must_use]
pub fn taken(roles: &[Role]) -> Vec<String> {
    needed(roles).into_iter().filter(|n| is_taken(*n)).map(words).collect()
}

fn is_taken(needed: Needed) -> bool {
    let at = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), needed.port);
    let tried = if needed.udp { UdpSocket::bind(at).map(drop) } else { TcpListener::bind(at).map(drop) };
    // Any other refusal will be told by the daemon that binds it.
    tried.is_err_and(|e| e.kind() == ErrorKind::AddrInUse)
}

fn words(needed: Needed) -> String {
    let kind = if needed.udp { "udp" } else { "tcp" };
    let holder = holder(needed).map(|h| format!(" by {h}")).unwrap_or_default();
    format!("port {}/{kind} ({}) is taken{holder}", needed.port, needed.what)
}

/// The process that listens there, as far as this user may see it.
fn holder(needed: Needed) -> Option<String> {
    let files: &[&str] = if needed.udp { &["udp", "udp6"] } else { &["tcp", "tcp6"] };
    let inode = files.iter().find_map(|f| {
        let table = fs::read_to_string(format!("/proc/net/{f}")).ok()?;
        inode_of(&table, needed.port, needed.udp)
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let mut links = descriptors.flatten().filter_map(|d| fs::read_link(d.path()).ok());
        if links.any(|l| l.to_string_lossy() == wanted) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// The inode of the socket that listens at a port, in a table of `/proc/net`.
fn inode_of(table: &str, port: u16, udp: bool) -> Option<u64> {
    // proc(5): state 0A is LISTEN; a UDP socket without a peer is in state 07.
    let state = if udp { "07" } else { "0A" };
    let end = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hit = fields.get(1)?.ends_with(&end) && *fields.get(3)? == state;
        if hit { fields.get(9)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let needed = Needed { port, udp: false, what: "this test" };
        assert!(is_taken(needed));
        let told = words(needed);
        assert!(told.contains("is taken by ") && told.contains(&std::process::id().to_string()), "{told}");
        drop(listener);
        let free = Needed { port, udp: false, what: "this test" };
        assert!(!is_taken(free));
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n\
            1: 0100007F:094C 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n";
        assert_eq!(inode_of(table, 6443, false), Some(4711));
        assert_eq!(inode_of(table, 2380, false), None);
    }
}
