//! Finding a Pod's network namespace from outside: the one, among those of the node's processes,
//! in which the Pod's address is an address of the machine itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, UdpSocket},
    os::unix::fs::MetadataExt,
};

use crate::{Error, Result, netns};

/// A process of the node whose init is `init` that is in the namespace of that address.
pub(super) fn process_of(init: i32, address: IpAddr) -> Result<i32> {
    let parents = parents().map_err(Error::io("/proc"))?;
    let mut seen = BTreeSet::new();
    for pid in descendants(&parents, init) {
        // A process that ended meanwhile is none of the Pod's.
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
        if !seen.insert(namespace.ino()) {
            continue;
        }
        let here = netns::inside(pid, move || Ok(UdpSocket::bind((address, 0)).is_ok()));
        if here.unwrap_or(false) {
            return Ok(pid);
        }
    }
    Err(Error::Format { what: format!("the Pod at {address}"), why: "no process of its node has that address".into() })
}

/// Each process' parent.
fn parents() -> io::Result<BTreeMap<i32, i32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some(parent) = parent_of(&stat) {
            parents.insert(pid, parent);
        }
    }
    Ok(parents)
}

/// Field 4 of proc(5)'s stat; the name before it may hold anything.
fn parent_of(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// All below `root`, itself included.
fn descendants(parents: &BTreeMap<i32, i32>, root: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, up)| found.contains(*up) && !found.contains(*pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tree_is_followed_to_its_leaves() {
        let parents = BTreeMap::from([(2, 1), (9, 2), (3, 9), (4, 1), (5, 4)]);
        assert_eq!(descendants(&parents, 2), BTreeSet::from([2, 3, 9]));
        assert_eq!(parent_of("12 (a) b) (c) S 7 12 12 0"), Some(7));
    }
}
