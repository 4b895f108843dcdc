//! The ConfigMaps and Secrets that Pods of this node use, on this node's disk, so that the Pods
//! start again after a reboot without the control plane.
//!
//! `<data>/objects/<kind>/<namespace>/<name>`, folders 0700, files 0600: root's alone. A Secret is
//! sealed besides, bound to its place, with a key that lies outside the data folder
//! (`<config>/keys/node-agent`, made here): who gets hold of the data folder alone (a backup, a
//! disk put away) reads nothing. Root of this node can read it, as it can read the Pods' memory.
//!
//! What is kept: the objects that a Pod of this node refers to ([`Kept::pin`]), in the state last
//! acted on. What no Pod refers to any more is removed, and so is an object that the control plane
//! says is gone.
use super::{describe, key};
use crate::runtime::spec::env::RefKind;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use trellis_proto::pki::{Key, open, seal};

/// First byte of a file in the clear; the envelope of [`seal`] has a version of its own.
const VERSION: u8 = 1;
/// Kubernetes' bound on an object's name, which a file's name must hold.
const NAME_MAX_BYTES: usize = 253;

/// A ConfigMap or Secret: kind, namespace, name.
pub type Id = (RefKind, String, String);

/// Why an object is not kept, or cannot be had back.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what this agent wrote, or written with another key.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No object has such a name.
    #[error("{0}: not a name that an object can have")]
    Name(String),
}

/// The folder, and which Pod needs what of it.
#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// `None` when there is none and none can be made: Secrets are not kept then.
    key: Option<Key>,
    pinned: Mutex<HashMap<Id, BTreeSet<String>>>,
}

impl Kept {
    /// Opens the folder, and makes the key if there is none. Blocking.
    pub fn open(data_dir: &Path, config_dir: &Path) -> Self {
        let key = load_key(&config_dir.join("keys").join("node-agent"))
            .inspect_err(|error| {
                tracing::error!(%error, "Secrets are not kept: Pods that need them will not start without the control plane");
            })
            .ok();
        Self { dir: data_dir.join("objects"), key, pinned: Mutex::default() }
    }

    /// A Pod needs these: its earlier needs are replaced.
    pub fn pin(&self, uid: &str, namespace: &str, wanted: &BTreeSet<(RefKind, String)>) {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        unpin(&mut pinned, uid);
        for (kind, name) in wanted {
            let id = (*kind, namespace.to_owned(), name.clone());
            pinned.entry(id).or_default().insert(uid.to_owned());
        }
    }

    /// A Pod is over. Blocking: what nobody needs then is removed.
    pub fn unpin(&self, uid: &str) {
        let free = unpin(&mut self.pinned.lock().unwrap_or_else(PoisonError::into_inner), uid);
        for id in free {
            self.remove(&id);
        }
    }

    /// Does a Pod of this node need it?
    pub fn is_pinned(&self, id: &Id) -> bool {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    /// Writes an object that a Pod needs. Blocking; on disk when it returns.
    pub fn save<T: Serialize>(&self, id: &Id, object: &T) -> Result<(), KeptError> {
        let path = self.path(id)?;
        let json = serde_json::to_vec(object)
            .map_err(|e| KeptError::Unreadable { path: path.clone(), reason: e.to_string() })?;
        if self.plain(id, &path).is_ok_and(|old| old.as_ref() == Some(&json)) {
            return Ok(());
        }
        let bytes = match (id.0, &self.key) {
            (RefKind::Secret, Some(key)) => seal(key, context(id).as_bytes(), &json),
            (RefKind::Secret, None) => return Ok(()),
            (RefKind::ConfigMap, _) => [&[VERSION][..], &json].concat(),
        };
        let io = |source| KeptError::Io { path: path.clone(), source };
        let folder = path.parent().unwrap_or(&self.dir);
        private(folder).map_err(io)?;
        replace(folder, &path, &bytes).map_err(io)
    }

    /// What was kept of an object. Blocking.
    pub fn load<T: DeserializeOwned>(&self, id: &Id) -> Result<Option<T>, KeptError> {
        let path = self.path(id)?;
        let Some(json) = self.plain(id, &path)? else { return Ok(None) };
        serde_json::from_slice(&json).map(Some).map_err(|e| KeptError::Unreadable { path, reason: e.to_string() })
    }

    fn plain(&self, id: &Id, path: &Path) -> Result<Option<Vec<u8>>, KeptError> {
        let unreadable = |reason: String| KeptError::Unreadable { path: path.to_owned(), reason };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(KeptError::Io { path: path.to_owned(), source }),
        };
        match (id.0, &self.key) {
            (RefKind::Secret, Some(key)) => {
                let json = open(key, context(id).as_bytes(), &bytes).map_err(|e| unreadable(e.to_string()))?;
                Ok(Some(json.to_vec()))
            }
            (RefKind::Secret, None) => Ok(None),
            (RefKind::ConfigMap, _) => match bytes.split_first() {
                Some((&VERSION, json)) => Ok(Some(json.to_vec())),
                _ => Err(unreadable("written by another release".to_owned())),
            },
        }
    }

    /// Removes an object. Blocking.
    pub fn remove(&self, id: &Id) {
        let Ok(path) = self.path(id) else { return };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove what no Pod needs");
            }
            // Its folder goes with the last one.
            _ => drop(path.parent().map(fs::remove_dir)),
        }
    }

    /// Removes everything that no Pod needs: what an agent left that ended in between. Blocking.
    pub fn sweep(&self) {
        for (word, kind) in [(RefKind::ConfigMap.word(), RefKind::ConfigMap), (RefKind::Secret.word(), RefKind::Secret)]
        {
            for namespace in names(&self.dir.join(word)) {
                for name in names(&self.dir.join(word).join(&namespace)) {
                    if name.starts_with('.') {
                        // Half written when the power went.
                        drop(fs::remove_file(self.dir.join(word).join(&namespace).join(&name)));
                        continue;
                    }
                    let id = (kind, namespace.clone(), name);
                    if !self.is_pinned(&id) {
                        self.remove(&id);
                    }
                }
            }
        }
    }

    /// Names come from Pods' specs: one that is no name must not become a path.
    fn path(&self, id: &Id) -> Result<PathBuf, KeptError> {
        let fits = |part: &str| {
            !part.is_empty() && part.len() <= NAME_MAX_BYTES && !part.starts_with('.') && !part.contains(['/', '\0'])
        };
        if !fits(&id.1) || !fits(&id.2) {
            return Err(KeptError::Name(context(id)));
        }
        Ok(self.dir.join(id.0.word()).join(&id.1).join(&id.2))
    }
}

fn unpin(pinned: &mut HashMap<Id, BTreeSet<String>>, uid: &str) -> Vec<Id> {
    let mut free = Vec::new();
    pinned.retain(|id, uids| {
        if uids.remove(uid) && uids.is_empty() {
            free.push(id.clone());
            return false;
        }
        true
    });
    free
}

fn context(id: &Id) -> String {
    describe(&key(id.0.word(), &id.1, &id.2))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn replace(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Begins with a dot, as no object's name does; the sweep gets one that a crash left.
    let next = folder.join(format!(".{}", uuid::Uuid::new_v4().simple()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    let done = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&next, path));
    if done.is_err() {
        drop(fs::remove_file(&next));
    }
    done?;
    File::open(folder)?.sync_all()
}

fn load_key(path: &Path) -> Result<Key, KeptError> {
    let io = |source| KeptError::Io { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => {
            fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(io)?;
            Key::from_hex(&text).map_err(|e| KeptError::Unreadable { path: path.to_owned(), reason: e.to_string() })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = Key::generate();
            let folder = path.parent().unwrap_or(Path::new("/"));
            private(folder).map_err(io)?;
            replace(folder, path, key.to_hex().as_bytes()).map_err(io)?;
            Ok(key)
        }
        Err(source) => Err(io(source)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::json;

    fn id(kind: RefKind, name: &str) -> Id {
        (kind, "default".to_owned(), name.to_owned())
    }

    fn secret(value: &str) -> Secret {
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"k": value}})).unwrap()
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() { all.extend(files(&entry.path())) } else { all.push(entry.path()) }
        }
        all
    }

    #[test]
    fn objects_come_back_after_a_restart_and_are_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, config) = (dir.path().join("data"), dir.path().join("etc"));
        let map: ConfigMap = serde_json::from_value(json!({"data": {"color": "canary-green"}})).unwrap();
        let kept = Kept::open(&data, &config);
        kept.save(&id(RefKind::Secret, "s"), &secret("canary-secret")).unwrap();
        kept.save(&id(RefKind::ConfigMap, "m"), &map).unwrap();
        let kept = Kept::open(&data, &config);
        assert_eq!(kept.load::<Secret>(&id(RefKind::Secret, "s")).unwrap(), Some(secret("canary-secret")));
        assert_eq!(kept.load::<ConfigMap>(&id(RefKind::ConfigMap, "m")).unwrap(), Some(map));
        assert_eq!(kept.load::<Secret>(&id(RefKind::Secret, "other")).unwrap(), None);
        let holds = |needle: &str| {
            files(&data).iter().filter(|f| String::from_utf8_lossy(&fs::read(f).unwrap()).contains(needle)).count()
        };
        assert_eq!((holds("canary-secret"), holds("canary-green")), (0, 1), "the Secret is sealed, the map is not");
        for path in files(dir.path()) {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
        assert_eq!(fs::metadata(data.join("objects")).unwrap().permissions().mode() & 0o777, 0o700);
        // The data folder without the key is worth nothing, and a Secret cannot be passed off as another.
        let thief = Kept::open(&data, &dir.path().join("elsewhere"));
        assert!(thief.load::<Secret>(&id(RefKind::Secret, "s")).is_err());
        let folder = data.join("objects/Secret/default");
        fs::copy(folder.join("s"), folder.join("t")).unwrap();
        assert!(kept.load::<Secret>(&id(RefKind::Secret, "t")).is_err());
    }

    #[test]
    fn only_what_a_pod_needs_stays() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path(), &dir.path().join("etc"));
        let wanted = |names: &[&str]| names.iter().map(|n| (RefKind::Secret, (*n).to_owned())).collect();
        kept.pin("one", "default", &wanted(&["a", "b"]));
        kept.pin("two", "default", &wanted(&["b", "c"]));
        for name in ["a", "b", "c", "stale"] {
            kept.save(&id(RefKind::Secret, name), &secret(name)).unwrap();
        }
        let there = || {
            let mut all = names(&dir.path().join("objects/Secret/default"));
            all.sort();
            all
        };
        kept.sweep();
        assert_eq!(there(), ["a", "b", "c"]);
        kept.unpin("one");
        assert_eq!(there(), ["b", "c"]);
        kept.pin("two", "default", &wanted(&["c"]));
        kept.sweep();
        assert_eq!(there(), ["c"]);
        kept.unpin("two");
        assert_eq!(there(), Vec::<String>::new());
    }

    #[test]
    fn a_name_that_is_none_becomes_no_path() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path(), &dir.path().join("etc"));
        for name in ["../../x", "..", ".hidden", "", "a/b", &"x".repeat(254)] {
            assert!(matches!(kept.save(&id(RefKind::Secret, name), &secret("x")), Err(KeptError::Name(_))), "{name}");
        }
    }
}
