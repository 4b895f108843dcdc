//! Where a lab lies on disk, and the one file that says what belongs to it.
//!
//! ```text
//! /var/lib/trellis-lab/<lab>/
//!   unfinished               who makes it: written first; gone when it is up
//!   lab.json                 written before anything else is made: `down` needs nothing more
//!   config.json              contexts with the administrator's certificate
//!   underlay.pid             who holds the underlay's network namespace
//!   nodes/<node>/etc         the node's /etc/trellis
//!               /data        the node's /var/lib/trellis
//!               /run         the node's /run/trellis, emptied when the node starts
//!               /logs        the node's /var/log/trellis, a file a daemon
//!               /lab         the node's /run/lab: the control socket of its init
//!               /init.pid    its init, as this machine numbers it
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, cgroup::CgroupDir, process::Process, topology::Topology};

/// All labs of this machine; another place may be named in TRELLIS_LAB_DIR.
const DEFAULT_BASE: &str = "/var/lib/trellis-lab";
const VERSION: u32 = 1;
const UNFINISHED: &str = "unfinished";

/// What is written in `lab.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabFile {
    /// Format version.
    pub version: u32,
    /// What was asked for.
    pub topology: Topology,
    /// The cluster's binaries.
    pub bin_dir: PathBuf,
    /// The lab's cgroups, one in each hierarchy, whether made yet or not.
    pub cgroups: Vec<CgroupDir>,
}

/// Whether a lab is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is not.
    Not,
    /// Its making was interrupted, or failed.
    Half,
    /// It came up.
    Whole,
}

/// Paths of one lab.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The lab's folder.
    pub root: PathBuf,
    /// The lab's name.
    pub name: String,
}

/// Paths of one node of a lab.
#[derive(Clone, Debug)]
pub struct NodeLayout {
    /// The node's folder.
    pub root: PathBuf,
}

impl Layout {
    /// Where all labs of this machine lie.
    #[must_use]
    pub fn base() -> PathBuf {
        std::env::var_os("TRELLIS_LAB_DIR").map_or_else(|| PathBuf::from(DEFAULT_BASE), PathBuf::from)
    }

    /// The lab of that name, there or not.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self { root: Self::base().join(name), name: name.to_owned() }
    }

    /// Names of the labs that there are, and of those whose making had but begun.
    pub fn all() -> Result<Vec<String>> {
        let base = Self::base();
        let entries = match fs::read_dir(&base) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(base.display().to_string())(e)),
        };
        let mut names: Vec<_> = entries
            .filter_map(std::result::Result::ok)
            .filter(|e| ["lab.json", UNFINISHED].iter().any(|name| e.path().join(name).exists()))
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// `lab.json`.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// The contexts file with the administrator's certificate.
    #[must_use]
    pub fn contexts(&self) -> PathBuf {
        self.root.join("config.json")
    }

    /// Who holds the underlay.
    #[must_use]
    pub fn underlay_pid(&self) -> PathBuf {
        self.root.join("underlay.pid")
    }

    /// The folder of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeLayout {
        NodeLayout { root: self.root.join("nodes").join(name) }
    }

    fn unfinished(&self) -> PathBuf {
        self.root.join(UNFINISHED)
    }

    fn part(&self) -> PathBuf {
        self.root.join("lab.json.part")
    }

    /// Notes that this process makes the lab; refuses one that is there.
    pub fn begin(&self) -> Result<()> {
        self.refuse_twice()?;
        fs::create_dir_all(&self.root).map_err(Error::io(self.root.display().to_string()))?;
        match Process::of(std::process::id().cast_signed()) {
            Some(me) => me.store(&self.unfinished()),
            None => Ok(()),
        }
    }

    /// Notes that it is up.
    pub fn finished(&self) -> Result<()> {
        match fs::remove_file(self.unfinished()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(self.unfinished().display().to_string())(e))
            }
            _ => Ok(()),
        }
    }

    /// Whether it is there, as a whole; an error while somebody is making it.
    pub fn made(&self) -> Result<Made> {
        if !self.file().exists() {
            return Ok(Made::Not);
        }
        if !self.unfinished().exists() {
            return Ok(Made::Whole);
        }
        match Process::load(&self.unfinished()) {
            None => Ok(Made::Half),
            Some(maker) => Err(self.being_made_by(maker)),
        }
    }

    fn being_made_by(&self, maker: Process) -> Error {
        Error::Lacking {
            what: format!("lab {} is being made by process {}", self.name, maker.pid),
            how: "wait for it".to_owned(),
        }
    }

    /// Removes the folder of a lab whose maker was killed before `lab.json` was written, so that nothing else was
    /// made; false when there is no such folder.
    pub fn sweep(&self) -> Result<bool> {
        let is_empty = || fs::read_dir(&self.root).is_ok_and(|mut entries| entries.next().is_none());
        if self.file().exists() || !(self.unfinished().exists() || is_empty()) {
            return Ok(false);
        }
        if let Some(maker) = Process::load(&self.unfinished()) {
            return Err(self.being_made_by(maker));
        }
        for file in [self.part(), self.unfinished()] {
            match fs::remove_file(&file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", file.display()))(e));
                }
                _ => {}
            }
        }
        // Whatever else lies in it is not the lab's: it stays, and is told of.
        fs::remove_dir(&self.root).map_err(Error::io(format!("remove {}", self.root.display())))?;
        self.sweep_base();
        Ok(true)
    }

    /// Removes the folder with all that is in it, `lab.json` last: a removal that is interrupted can be repeated.
    pub fn remove(&self) -> Result<()> {
        let what = || format!("remove {}", self.root.display());
        let done = |result: std::io::Result<()>| match result {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(what())(e)),
            _ => Ok(()),
        };
        let entries = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io(what()))?,
        };
        for entry in entries {
            let path = entry.map_err(Error::io(what()))?.path();
            if path == self.file() {
                continue;
            }
            let is_dir = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir());
            done(if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) })?;
        }
        done(fs::remove_dir_all(&self.root))?;
        self.sweep_base();
        Ok(())
    }

    /// The folder of all labs goes with the last one.
    fn sweep_base(&self) {
        if let Some(base) = self.root.parent() {
            // Refused while there are others.
            let _ = fs::remove_dir(base);
        }
    }

    fn refuse_twice(&self) -> Result<()> {
        if self.file().exists() {
            return Err(Error::Exists { name: self.name.clone(), path: self.root.clone() });
        }
        Ok(())
    }

    /// Makes the folder and writes `lab.json`; refuses a lab that is there.
    pub fn create(&self, file: &LabFile) -> Result<()> {
        let shown = |p: &Path| p.display().to_string();
        self.refuse_twice()?;
        fs::create_dir_all(&self.root).map_err(Error::io(shown(&self.root)))?;
        let text = serde_json::to_vec_pretty(file)
            .map_err(|e| Error::Format { what: shown(&self.file()), why: e.to_string() })?;
        let part = self.part();
        fs::write(&part, text).map_err(Error::io(shown(&part)))?;
        fs::rename(&part, self.file()).map_err(Error::io(shown(&self.file())))
    }

    /// Reads `lab.json`.
    pub fn load(&self) -> Result<LabFile> {
        let path = self.file();
        let bad = |why: String| Error::Format { what: path.display().to_string(), why };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoLab { name: self.name.clone(), path: self.root.clone() });
            }
            Err(e) => return Err(Error::io(path.display().to_string())(e)),
        };
        let file: LabFile = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if file.version > VERSION {
            return Err(bad(format!("format version {} is newer than {VERSION}", file.version)));
        }
        Ok(file)
    }

    /// What [`Layout::create`] writes.
    #[must_use]
    pub fn file_of(topology: Topology, bin_dir: PathBuf, cgroups: Vec<CgroupDir>) -> LabFile {
        LabFile { version: VERSION, topology, bin_dir, cgroups }
    }
}

impl NodeLayout {
    /// A file or folder of the node.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The API's unix socket of a control-plane node, as this machine sees it.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.root.join("run/api.sock")
    }

    /// netd's membership socket, as this machine sees it.
    #[must_use]
    pub fn membership_socket(&self) -> PathBuf {
        self.root.join("run/netd-public/membership.sock")
    }

    /// A daemon's log.
    #[must_use]
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.root.join("logs").join(format!("{daemon}.log"))
    }

    /// Makes the node's folders.
    pub fn create(&self) -> Result<()> {
        for name in ["etc", "data", "run", "logs", "lab", "root"] {
            let path = self.path(name);
            fs::create_dir_all(&path).map_err(Error::io(path.display().to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_lab_whose_making_was_interrupted_is_told_from_one_that_is_up() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { root: dir.path().join("l"), name: "l".to_owned() };
        let file = Layout::file_of(Topology::simple("l", 1, 0).unwrap(), "/".into(), Vec::new());
        assert_eq!(layout.made().unwrap(), Made::Not);
        layout.begin().unwrap();
        layout.create(&file).unwrap();
        let told = layout.made().unwrap_err().to_string();
        assert!(told.contains("is being made by process"), "{told}");
        // As a maker leaves it that was killed.
        fs::write(layout.unfinished(), "1 0\n").unwrap();
        assert_eq!(layout.made().unwrap(), Made::Half);
        layout.finished().unwrap();
        assert_eq!(layout.made().unwrap(), Made::Whole);
        assert!(layout.begin().is_err() && layout.create(&file).is_err(), "it is there");
        assert_eq!(layout.made().unwrap(), Made::Whole, "and stays whole");
    }

    #[test]
    fn a_lab_whose_making_had_but_begun_is_swept_away_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        // A base of its own: it goes with the last lab.
        let layout = Layout { root: dir.path().join("base/l"), name: "l".to_owned() };
        assert!(!layout.sweep().unwrap(), "there is nothing");
        layout.begin().unwrap();
        let told = layout.sweep().unwrap_err().to_string();
        assert!(told.contains("is being made by process"), "{told}");
        // As a maker leaves it that was killed, a little earlier or later.
        for files in [&[][..], &["unfinished"], &["unfinished", "lab.json.part"]] {
            fs::create_dir_all(&layout.root).unwrap();
            let _ = fs::remove_file(layout.unfinished());
            for file in files {
                fs::write(layout.root.join(file), "1 0\n").unwrap();
            }
            assert!(layout.sweep().unwrap(), "{files:?}");
            assert!(!layout.root.exists(), "{files:?}");
        }
        assert!(!dir.path().join("base").exists(), "nor is the folder of all labs left");
        // A folder that is nobody's lab, and a lab.
        fs::create_dir_all(&layout.root).unwrap();
        fs::write(layout.root.join("mine"), "").unwrap();
        assert!(!layout.sweep().unwrap());
        fs::write(layout.unfinished(), "1 0\n").unwrap();
        assert!(layout.sweep().is_err(), "what else is in it stays");
        assert!(layout.root.join("mine").exists());
        let file = Layout::file_of(Topology::simple("l", 1, 0).unwrap(), "/".into(), Vec::new());
        layout.create(&file).unwrap();
        assert!(!layout.sweep().unwrap());
        layout.remove().unwrap();
        assert!(!dir.path().join("base").exists());
        layout.remove().unwrap();
    }
}
