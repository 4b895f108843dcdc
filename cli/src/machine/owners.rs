//! Who owns which file of the configuration. The control plane and netd are ordinary users where
//! an installation has made them; each may read and renew what is its own and nothing else.
//!
//! ```text
//! trellis       the control plane; its group is that of both
//! trellis-netd  netd
//! root          the agent, and who runs this program
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid, chmod, chown};

use crate::error::CliError;

/// The control plane's user and group.
pub const CONTROL_PLANE: &str = "trellis";
/// netd's user.
pub const NETD: &str = "trellis-netd";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Root,
    ControlPlane,
    Netd,
}

/// Path below the configuration folder, user, mode. All belong to group `trellis`.
type Rule = (&'static str, User, u32);

/// The folder `pki` is everybody's to write in, and sticky: each replaces its own files only.
const RULES: &[Rule] = &[
    ("", User::ControlPlane, 0o755),
    ("node.json", User::ControlPlane, 0o644),
    ("bootstrap.json", User::ControlPlane, 0o600),
    ("pki", User::Root, 0o1770),
    ("pki/ca.crt", User::Root, 0o644),
    ("pki/member.crt", User::ControlPlane, 0o600),
    ("pki/member.key", User::ControlPlane, 0o600),
    ("pki/netd.crt", User::Netd, 0o600),
    ("pki/netd.key", User::Netd, 0o600),
    ("pki/agent.crt", User::Root, 0o600),
    ("pki/agent.key", User::Root, 0o600),
    ("keys", User::ControlPlane, 0o750),
    ("keys/kek", User::ControlPlane, 0o600),
    ("keys/gossip", User::ControlPlane, 0o640),
];

/// Gives every file to its daemon. Does nothing where this is not root's to do, or where no
/// installation has made the users.
pub fn settle(config_dir: &Path) -> Result<(), CliError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let read = |p: &str| fs::read_to_string(p).unwrap_or_default();
    let (users, groups) = (read("/etc/passwd"), read("/etc/group"));
    let (Some(member), Some(netd)) = (id(&users, CONTROL_PLANE), id(&users, NETD)) else { return Ok(()) };
    let group = id(&groups, CONTROL_PLANE).unwrap_or(member);
    for (name, user, mode) in RULES {
        let path: PathBuf = if name.is_empty() { config_dir.to_owned() } else { config_dir.join(name) };
        if !path.exists() {
            continue;
        }
        let uid = match user {
            User::Root => 0,
            User::ControlPlane => member,
            User::Netd => netd,
        };
        chown(&path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(group)))
            .and_then(|()| chmod(&path, Mode::from_raw_mode(*mode)))
            .map_err(|e| CliError::Local(format!("give {} to its daemon: {e}", path.display())))?;
    }
    Ok(())
}

/// The number of a name in `/etc/passwd` or `/etc/group`.
fn id(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_both_tables() {
        let table = "root:x:0:0:root:/root:/bin/sh\ntrellis-netd:x:996:997::/:/bin/false\ntrellis:x:997:997::/:/x\n";
        assert_eq!(id(table, CONTROL_PLANE), Some(997));
        assert_eq!(id(table, NETD), Some(996));
        assert_eq!(id(table, "nobody"), None);
        assert_eq!(id("trellis:x:995:\n", CONTROL_PLANE), Some(995));
    }

    #[test]
    fn every_key_is_its_daemons_alone() {
        for (name, _, mode) in RULES.iter().filter(|(n, ..)| n.ends_with(".key") || n.ends_with("kek")) {
            assert_eq!(mode & 0o077, 0, "{name}");
        }
        let of = |name: &str| RULES.iter().find(|(n, ..)| *n == name).map(|(_, user, _)| *user);
        assert_eq!(of("pki/agent.key"), Some(User::Root));
        assert_eq!(of("pki/netd.key"), Some(User::Netd));
        assert_eq!(of("pki/member.key"), Some(User::ControlPlane));
    }
}
