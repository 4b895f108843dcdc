//! Ending all Pods of this machine from outside the daemon: before the machine goes down (their
//! processes belong to no service, so nobody else would ask them to end before they are killed),
//! and when it leaves its cluster. The daemon must not run: it would start them again.
use crate::{
    pod::{
        persist::{self, PodDir},
        steps::sandbox::cgroup_path,
    },
    volume,
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use trellis_sandbox::{
    Cleanup,
    cgroup::{CgroupRoot, Cgroups},
    cleanup,
};
use trellis_shim_protocol::{Client, ClientError, Phase, SOCKET};

/// Shims asked at once; each takes a thread, and up to the whole grace.
const AT_ONCE: usize = 32;
/// How long processes and cgroups may take to vanish.
const VANISH_WITHIN: Duration = Duration::from_secs(10);
/// Every container of a Pod is below it.
const ALL_PODS: &str = "trellis";

/// What to end, and how.
#[derive(Clone, Debug)]
pub struct Ending {
    /// `/run/trellis`
    pub run_dir: PathBuf,
    /// `/var/lib/trellis/node-agent`
    pub data_dir: PathBuf,
    /// As the daemon's.
    pub cgroup_root: String,
    /// Containers get SIGTERM, and this long to end by themselves.
    pub grace: Duration,
    /// Also remove what the Pods leave: cgroups, mounts, folders.
    pub remove: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Pods that ran.
    pub pods: usize,
    /// Containers that were killed when the grace was over.
    pub killed: usize,
    /// Pods whose leftovers were removed.
    pub removed: usize,
}

/// Ends them all. Idempotent.
///
/// # Errors
/// Those of the first Pod that cannot be ended or removed; the others are ended all the same.
pub fn end_pods(what: &Ending) -> anyhow::Result<Ended> {
    let shims = what.run_dir.join("shims");
    let running: Vec<String> = names(&shims).into_iter().collect();
    let deadline = Instant::now() + what.grace;
    let (mut done, mut failed) = (Ended::default(), None);
    for some in running.chunks(AT_ONCE) {
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|uid| shims.join(uid))
                .map(|dir| scope.spawn(move || end_pod(&dir, deadline)))
                .collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for (uid, result) in some.iter().zip(results) {
            match result {
                Ok(Ok(Some(killed))) => {
                    done.pods += 1;
                    done.killed += killed;
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(uid, %error, "cannot end a Pod through its shim");
                    failed.get_or_insert(anyhow::Error::from(error).context(format!("pod {uid}")));
                }
                Err(_) => tracing::error!(uid, "ending a Pod panicked"),
            }
        }
    }
    if what.remove {
        // Whatever shims refused is killed by its cgroup now.
        done.removed = remove(what)?;
        return Ok(done);
    }
    failed.map_or(Ok(done), Err)
}

/// `None`: no shim lives there; else how many containers had to be killed.
fn end_pod(dir: &Path, deadline: Instant) -> Result<Option<usize>, ClientError> {
    let connected = Client::connect(&dir.join(SOCKET));
    let mut client = match connected {
        Err(e) if e.is_gone() => return Ok(None),
        other => other?,
    };
    let state = client.state()?;
    let alive: Vec<&str> =
        state.containers.iter().filter(|c| c.phase == Phase::Running).map(|c| c.id.as_str()).collect();
    let term = rustix::process::Signal::TERM.as_raw();
    for id in &alive {
        client.signal(id, term, false)?;
    }
    let mut left = 0;
    for id in alive {
        let patience = deadline.saturating_duration_since(Instant::now());
        // A connection whose answer did not come in time cannot be used again.
        if client.wait(id, Some(patience.max(Duration::from_millis(1)))).is_err() {
            left += 1;
            client = Client::connect(&dir.join(SOCKET))?;
        }
    }
    match client.shutdown() {
        Err(e) if !e.is_gone() => Err(e),
        _ => Ok(Some(left)),
    }
}

fn remove(what: &Ending) -> anyhow::Result<usize> {
    let root = CgroupRoot::parse(&what.cgroup_root);
    let shims = what.run_dir.join("shims");
    let memory = what.run_dir.join("agent").join("volumes");
    let mut uids = names(&shims);
    uids.extend(names(&memory));
    uids.extend(persist::known_uids(&what.data_dir));
    for uid in &uids {
        cleanup(&Cleanup {
            cgroup_root: root.clone(),
            cgroup_path: cgroup_path(uid),
            dirs: vec![shims.join(uid)],
            within: VANISH_WITHIN,
        })?;
        volume::local::remove(&volume::memory_dir(&what.run_dir, uid))?;
        volume::local::remove(&PodDir::new(&what.data_dir, uid).volumes())?;
    }
    let all = Cgroups::detect(&root)?.group(ALL_PODS);
    all.kill(VANISH_WITHIN)?;
    all.remove(VANISH_WITHIN)?;
    Ok(uids.len())
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn where_nothing_runs_nothing_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("run/shims/a");
        std::fs::create_dir_all(&shim).unwrap();
        let what = Ending {
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("data"),
            cgroup_root: "own".to_owned(),
            grace: Duration::from_secs(1),
            remove: false,
        };
        assert_eq!(end_pods(&what).unwrap(), Ended::default());
        assert!(shim.exists(), "nothing was to be removed");
    }
}
