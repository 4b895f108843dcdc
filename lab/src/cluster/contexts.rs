//! The lab's context in the command line's configuration.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use trellis_proto::client::{ClusterContext, ContextError, Contexts};

use crate::{Error, Result};

/// The name of a lab's context.
#[must_use]
pub fn name_of(lab: &str) -> String {
    format!("lab-{lab}")
}

fn bad(path: &Path) -> impl FnOnce(ContextError) -> Error {
    let what = path.display().to_string();
    move |e| Error::Format { what, why: e.to_string() }
}

/// Reads the only (or the current) context of a file.
pub fn read(path: &Path) -> Result<ClusterContext> {
    let contexts = Contexts::load(path).map_err(bad(path))?;
    let only = contexts.contexts.values().next().filter(|_| contexts.contexts.len() == 1).cloned();
    match only {
        Some(context) => Ok(context),
        None => contexts.pick(None, path).map(|(_, c)| c.clone()).map_err(bad(path)),
    }
}

/// Puts a context into a file and makes it the current one.
pub fn add(path: &Path, name: &str, context: ClusterContext) -> Result<()> {
    change(path, |contexts| {
        contexts.current = name.to_owned();
        contexts.contexts.insert(name.to_owned(), context);
    })
}

/// Labs are made and removed side by side: each changes what the one before has stored.
fn change(path: &Path, how: impl FnOnce(&mut Contexts)) -> Result<()> {
    let changed: Result<(), ContextError> = Contexts::change(path, |contexts| {
        how(contexts);
        Ok(())
    });
    changed.map_err(bad(path))?;
    give_to_caller(path)
}

/// Under sudo the file lies in the home of the one who called it, and is theirs to read.
fn give_to_caller(path: &Path) -> Result<()> {
    let id = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) else { return Ok(()) };
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|h| path.starts_with(h));
    // Outside a home it is nobody's; a home of root's stays root's.
    let Some(home) = home.filter(|h| std::fs::metadata(h).is_ok_and(|m| m.uid() == user)) else { return Ok(()) };
    for place in path.ancestors().take_while(|p| *p != home) {
        std::os::unix::fs::chown(place, Some(user), Some(group)).map_err(Error::io(place.display().to_string()))?;
    }
    Ok(())
}

/// Takes the lab's context out of a file again. When it was the current one and another lab's
/// context is left, that one becomes current.
pub fn remove(path: &Path, lab: &str) -> Result<()> {
    let name = name_of(lab);
    if !Contexts::load(path).map_err(bad(path))?.contexts.contains_key(&name) {
        return Ok(());
    }
    change(path, |contexts| {
        contexts.contexts.remove(&name);
        if contexts.current == name {
            let other = contexts.contexts.keys().find(|k| k.starts_with("lab-"));
            contexts.current = other.cloned().unwrap_or_default();
        }
    })
}

/// The file that `trellis` reads when nobody says otherwise.
#[must_use]
pub fn users_file() -> PathBuf {
    Contexts::default_path()
}
