//! The cluster's programs: beside this one where they were built, in `lib/trellis` where they were installed.
//!
//! A node sees one folder of them ([`crate::node::NODE_BIN`]). Where they lie in several, that folder is made in
//! the lab, of links to the same files (copies on another disk), which an update of the machine's does not change.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, layout::Layout};

/// What needs to be there before anything is made.
pub const NAMES: &[&str] = &["trellis", "trellis-control-plane", "trellis-netd", "trellis-node-agent", "trellis-shim"];

/// Where each of them is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// Those that belong to this program: beside it, or where installations put them.
    pub fn of(exe: &Path) -> Result<Self> {
        let beside = exe.canonicalize().map_err(Error::io(exe.display().to_string()))?;
        let beside = beside.parent().unwrap_or(Path::new("/")).to_path_buf();
        let installed = beside.join("../lib/trellis");
        Self::find(&[beside, installed, "/usr/local/lib/trellis".into(), "/usr/lib/trellis".into()])
    }

    /// All in one folder.
    pub fn within(folder: &Path) -> Result<Self> {
        Self::find(&[folder.canonicalize().map_err(Error::io(folder.display().to_string()))?])
    }

    /// Each in the first of the folders that has it.
    fn find(folders: &[PathBuf]) -> Result<Self> {
        let place = |name: &&str| folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
        let missing: Vec<&str> = NAMES.iter().filter(|n| place(n).is_none()).copied().collect();
        if !missing.is_empty() {
            let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
            return Err(Error::Lacking {
                what: format!("there is no {} in {}", missing.join(", "), looked.join(", ")),
                how: "build them (`cargo build --bins`), install them, or name their folder with --bin-dir".to_owned(),
            });
        }
        let found = NAMES.iter().filter_map(|n| {
            let path = place(n)?;
            Some(((*n).to_owned(), path.canonicalize().unwrap_or(path)))
        });
        Ok(Self(found.collect()))
    }

    /// The one folder that has them all; none where they lie apart.
    fn folder(&self) -> Option<&Path> {
        let mut folders = self.0.iter().map(|(name, path)| path.parent().filter(|p| p.join(name) == *path));
        let first = folders.next()??;
        folders.all(|f| f == Some(first)).then_some(first)
    }

    /// The folder that the lab's nodes are to see.
    #[must_use]
    pub fn bin_dir(&self, layout: &Layout) -> PathBuf {
        self.folder().map_or_else(|| layout.root.join("bin"), Path::to_path_buf)
    }

    /// Puts them into that folder, unless it is where they lie.
    pub fn gather(&self, bin_dir: &Path) -> Result<()> {
        if self.folder() == Some(bin_dir) {
            return Ok(());
        }
        fs::create_dir_all(bin_dir).map_err(Error::io(bin_dir.display().to_string()))?;
        for (name, path) in &self.0 {
            let to = bin_dir.join(name);
            match fs::remove_file(&to) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(to.display().to_string())(e)),
                _ => {}
            }
            if fs::hard_link(path, &to).is_err() {
                fs::copy(path, &to).map_err(Error::io(format!("copy {} to {}", path.display(), to.display())))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn put(folder: &Path, names: &[&str]) {
        fs::create_dir_all(folder).unwrap();
        for name in names {
            fs::write(folder.join(name), name).unwrap();
        }
    }

    #[test]
    fn programs_are_found_where_they_were_built_and_where_they_were_installed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let layout = Layout { root: dir.join("lab"), name: "lab".to_owned() };
        let (built, prefix) = (dir.join("debug"), dir.join("usr"));
        put(&built, &[&["trellis-lab"], NAMES].concat());
        let programs = Programs::of(&built.join("trellis-lab")).unwrap();
        assert_eq!(programs.bin_dir(&layout), built);
        programs.gather(&built).unwrap();
        assert!(!layout.root.exists(), "nothing to gather");

        put(&prefix.join("bin"), &["trellis-lab", "trellis"]);
        put(&prefix.join("lib/trellis"), &NAMES[1..]);
        let programs = Programs::of(&prefix.join("bin/trellis-lab")).unwrap();
        let bin_dir = programs.bin_dir(&layout);
        assert_eq!(bin_dir, layout.root.join("bin"));
        // Twice: a lab whose making was interrupted is made anew.
        programs.gather(&bin_dir).unwrap();
        programs.gather(&bin_dir).unwrap();
        for name in NAMES {
            assert_eq!(fs::read_to_string(bin_dir.join(name)).unwrap(), *name);
        }
        assert_eq!(Programs::within(&bin_dir).unwrap().bin_dir(&layout), bin_dir);
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &NAMES[..3]);
        let told = Programs::within(dir.path()).unwrap_err().to_string();
        assert!(told.contains("no trellis-node-agent, trellis-shim in") && told.contains("--bin-dir"), "{told}");
        assert!(Programs::within(&dir.path().join("none")).is_err());
    }
}
