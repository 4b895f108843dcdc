//! Who a container runs as: securityContext over the image's USER, names looked up in the image's
//! own `/etc/passwd` and `/etc/group`.
//!
//! The image is not mounted yet at that time (the shim does that), so the two files are looked
//! for in its layers, topmost first, each opened with RESOLVE_IN_ROOT: a symlink in an image
//! leads nowhere but into that layer.
use super::SpecError;
use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::User;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// A user database larger than this is not read: it comes from an image.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// The image's user database.
#[derive(Clone, Debug, Default)]
pub struct UserDb {
    /// `/etc/passwd`
    pub passwd: String,
    /// `/etc/group`
    pub group: String,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory, `/` if unknown.
    pub home: String,
}

impl Resolved {
    /// As the OCI spec has it.
    pub fn to_oci(&self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid).set_gid(self.gid);
        // The primary group is a supplementary one, too, as other runtimes have it.
        let mut groups = vec![self.gid];
        groups.extend(self.groups.iter().filter(|g| **g != self.gid));
        user.set_additional_gids(Some(groups));
        user
    }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl UserDb {
    /// Reads both files out of layers, topmost first. A file that is not there is empty.
    pub fn read(layers_top_first: &[PathBuf]) -> Self {
        Self { passwd: find(layers_top_first, "passwd"), group: find(layers_top_first, "group") }
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let f: Vec<&str> = line.split(':').collect();
            let (name, uid, gid) = (f.first()?, f.get(2)?.parse().ok()?, f.get(3)?.parse().ok()?);
            Some(Account { name, uid, gid, home: f.get(5).copied().unwrap_or("/") })
        })
    }

    /// (name, gid, members)
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let f: Vec<&str> = line.split(':').collect();
            Some((*f.first()?, f.get(2)?.parse().ok()?, f.get(3).copied().unwrap_or_default()))
        })
    }
}

/// Decides who `c` of `pod` runs as, given the image's USER.
pub fn resolve(db: &UserDb, image_user: &str, pod: &Pod, c: &Container) -> Result<Resolved, SpecError> {
    let pod_context = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let context = c.security_context.clone().unwrap_or_default();
    let number = |v: Option<i64>| v.and_then(|v| u32::try_from(v).ok());
    let run_as_user = number(context.run_as_user.or(pod_context.run_as_user));
    let run_as_group = number(context.run_as_group.or(pod_context.run_as_group));
    let (user_text, group_text) = image_user.split_once(':').unwrap_or((image_user, ""));
    let (uid, account) = match run_as_user {
        Some(uid) => (uid, db.accounts().find(|a| a.uid == uid)),
        None if user_text.is_empty() => (0, db.accounts().find(|a| a.uid == 0)),
        None => match (db.accounts().find(|a| a.name == user_text), user_text.parse()) {
            (Some(a), _) => (a.uid, Some(a)),
            (None, Ok(uid)) => (uid, db.accounts().find(|a| a.uid == uid)),
            (None, Err(_)) => return Err(SpecError::NoUser { user: user_text.to_owned() }),
        },
    };
    let gid = match run_as_group {
        Some(gid) => gid,
        None if run_as_user.is_none() && !group_text.is_empty() => {
            let named = db.groups().find(|(name, ..)| *name == group_text).map(|(_, gid, _)| gid);
            named
                .or_else(|| group_text.parse().ok())
                .ok_or_else(|| SpecError::NoGroup { group: group_text.to_owned() })?
        }
        None => account.as_ref().map_or(0, |a| a.gid),
    };
    if context.run_as_non_root.or(pod_context.run_as_non_root) == Some(true) && uid == 0 {
        return Err(SpecError::Root(c.name.clone()));
    }
    let strict = pod_context.supplemental_groups_policy.as_deref() == Some("Strict");
    let mut groups: Vec<u32> = Vec::new();
    if let Some(name) = account.as_ref().map(|a| a.name).filter(|_| !strict) {
        let member = |members: &str| members.split(',').any(|m| m.trim() == name);
        groups.extend(db.groups().filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    let extra = pod_context.supplemental_groups.into_iter().flatten().chain(pod_context.fs_group);
    groups.extend(extra.filter_map(|g| u32::try_from(g).ok()));
    groups.sort_unstable();
    groups.dedup();
    let home = account.map_or("/", |a| a.home);
    Ok(Resolved { uid, gid, groups, home: if home.is_empty() { "/" } else { home }.to_owned() })
}

fn find(layers: &[PathBuf], name: &str) -> String {
    for layer in layers {
        match look(layer, name) {
            Look::Text(text) => return text,
            Look::Hidden => return String::new(),
            Look::Below => {}
        }
    }
    String::new()
}

enum Look {
    Text(String),
    /// A whiteout or an opaque folder: lower layers do not count.
    Hidden,
    Below,
}

fn look(layer: &Path, name: &str) -> Look {
    let Ok(root) = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return Look::Below;
    };
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = format!("etc/{name}");
    // O_PATH first: a device node or pipe from an image must never be opened for reading.
    let handle = OFlags::PATH | OFlags::CLOEXEC;
    if let Ok(fd) = rustix::fs::openat2(&root, &path, handle, Mode::empty(), inside) {
        let Ok(stat) = rustix::fs::fstat(&fd) else { return Look::Hidden };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Look::Hidden;
        }
        let read = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat2(&root, &path, read, Mode::empty(), inside) else { return Look::Hidden };
        let mut bytes = Vec::new();
        return match File::from(fd).take(FILE_LIMIT_BYTES).read_to_end(&mut bytes) {
            Ok(_) => Look::Text(String::from_utf8_lossy(&bytes).into_owned()),
            Err(_) => Look::Hidden,
        };
    }
    let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat2(&root, "etc", folder, Mode::empty(), inside) {
        Ok(etc) => {
            let mut value = [0u8; 4];
            match rustix::fs::fgetxattr(&etc, "trusted.overlay.opaque", &mut value[..]) {
                Ok(n) if value.get(..n) == Some(b"y") => Look::Hidden,
                _ => Look::Below,
            }
        }
        // A whiteout or file where /etc would be.
        Err(rustix::io::Errno::NOTDIR) => Look::Hidden,
        Err(_) => Look::Below,
    }
}
