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

/// Shims spoken to at once; each takes a thread.
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

/// Ends them all: first all are asked, then each has had its time. Idempotent.
///
/// # Errors
/// Those of the first Pod that cannot be ended or removed; the others are ended all the same.
pub fn end_pods(what: &Ending) -> anyhow::Result<Ended> {
    let shims = what.run_dir.join("shims");
    let (mut done, mut failed) = (Ended::default(), None);
    let dirs: Vec<PathBuf> = names(&shims).iter().map(|uid| shims.join(uid)).collect();
    let asked = side_by_side(dirs, |dir| ask(dir, what.grace), &mut failed);
    let asked: Vec<Asked> = asked.into_iter().flatten().collect();
    done.pods = asked.len();
    done.killed = side_by_side(asked, finish, &mut failed).into_iter().sum();
    if what.remove {
        // Whatever shims refused is killed by its cgroup now.
        done.removed = remove(what)?;
        return Ok(done);
    }
    failed.map_or(Ok(done), Err)
}

/// Does it for all, [`AT_ONCE`] at a time; keeps the first failure.
fn side_by_side<I: AsRef<Path> + Sync, T: Send>(
    all: Vec<I>,
    work: impl Fn(&I) -> Result<T, ClientError> + Sync,
    failed: &mut Option<anyhow::Error>,
) -> Vec<T> {
    let (mut done, work) = (Vec::new(), &work);
    for some in all.chunks(AT_ONCE) {
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|one| scope.spawn(move || work(one))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for (one, result) in some.iter().zip(results) {
            let uid = one.as_ref().file_name().unwrap_or_default().to_string_lossy();
            match result {
                Ok(Ok(outcome)) => done.push(outcome),
                Ok(Err(error)) => {
                    tracing::warn!(%uid, %error, "cannot end a Pod through its shim");
                    failed.get_or_insert(anyhow::Error::from(error).context(format!("pod {uid}")));
                }
                Err(_) => tracing::error!(%uid, "ending a Pod panicked"),
            }
        }
    }
    done
}

/// A Pod whose containers have got SIGTERM.
struct Asked {
    dir: PathBuf,
    /// Those that ran.
    alive: Vec<String>,
    /// Until then they may end by themselves.
    deadline: Instant,
}

impl AsRef<Path> for Asked {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

/// `None`: no shim lives there.
fn ask(dir: &Path, grace: Duration) -> Result<Option<Asked>, ClientError> {
    let connected = Client::connect(&dir.join(SOCKET));
    let mut client = match connected {
        Err(e) if e.is_gone() => return Ok(None),
        other => other?,
    };
    let state = client.state()?;
    let running = state.containers.into_iter().filter(|c| c.phase == Phase::Running);
    let alive: Vec<String> = running.map(|c| c.id).collect();
    let term = rustix::process::Signal::TERM.as_raw();
    for id in &alive {
        client.signal(id, term, false)?;
    }
    Ok(Some(Asked { dir: dir.to_owned(), alive, deadline: Instant::now() + grace }))
}

/// Waits as long as it may, then ends the shim; how many containers had to be killed.
fn finish(asked: &Asked) -> Result<usize, ClientError> {
    let connect = || Client::connect(&asked.dir.join(SOCKET));
    let mut client = match connect() {
        // It ended with its last container, or somebody killed it.
        Err(e) if e.is_gone() => return Ok(0),
        other => other?,
    };
    let mut left = 0;
    for id in &asked.alive {
        let patience = asked.deadline.saturating_duration_since(Instant::now());
        // A connection whose answer did not come in time cannot be used again.
        if client.wait(id, Some(patience.max(Duration::from_millis(1)))).is_err() {
            left += 1;
            client = connect()?;
        }
    }
    match client.shutdown() {
        Err(e) if !e.is_gone() => Err(e),
        _ => Ok(left),
    }
}

fn remove(what: &Ending) -> anyhow::Result<usize> {
    let root = CgroupRoot::parse(&what.cgroup_root);
    let mut uids = names(&what.run_dir.join("shims"));
    uids.extend(names(&what.run_dir.join("agent").join("volumes")));
    uids.extend(persist::known_uids(&what.data_dir));
    let (mut removed, mut failed) = (0, None);
    for uid in &uids {
        match remove_one(what, &root, uid) {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(uid, %error, "cannot remove what a Pod has left");
                failed.get_or_insert(error.context(format!("pod {uid}")));
            }
        }
    }
    let all = Cgroups::detect(&root)?.group(ALL_PODS);
    let emptied = all.kill(VANISH_WITHIN).and_then(|_| all.remove(VANISH_WITHIN));
    match failed {
        Some(error) => Err(error),
        None => emptied.map(|_| removed).map_err(Into::into),
    }
}

fn remove_one(what: &Ending, root: &CgroupRoot, uid: &str) -> anyhow::Result<()> {
    cleanup(&Cleanup {
        cgroup_root: root.clone(),
        cgroup_path: cgroup_path(uid),
        dirs: vec![what.run_dir.join("shims").join(uid)],
        within: VANISH_WITHIN,
    })?;
    volume::local::remove(&volume::memory_dir(&what.run_dir, uid))?;
    Ok(volume::local::remove(&PodDir::new(&what.data_dir, uid).volumes())?)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::runtime::fake_shim::{hello, serve};
    use std::sync::{Arc, Condvar, Mutex};
    use trellis_shim_protocol::{Exit, Moment, Reply, Request};

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

    /// As a shim with one container would, which ends once `all` Pods have been asked to.
    fn answer(request: &Request, asked: &(Mutex<usize>, Condvar), all: usize) -> Reply {
        match request {
            Request::Hello { .. } => hello(),
            Request::State => Reply::State(Box::new(
                serde_json::from_value(serde_json::json!({"version": 1,
                "pod_uid": "u", "shim_pid": 1, "started_at": {"wall_nanos": 0, "boot_nanos": 0}, "last_event": 0,
                "containers": [{"id": "a", "labels": {}, "phase": "running", "pid": 2, "host_pid": 2,
                    "created_at": {"wall_nanos": 0, "boot_nanos": 0}, "log": {"path": null},
                    "cgroup_path": "", "rootfs": ""}]}))
                .unwrap(),
            )),
            Request::Signal { .. } => {
                *asked.0.lock().unwrap() += 1;
                asked.1.notify_all();
                Reply::Done
            }
            Request::Wait { .. } => {
                let count = asked.0.lock().unwrap();
                drop(asked.1.wait_while(count, |count| *count < all).unwrap());
                Reply::Exited(Exit { code: 0, signal: None, oom_killed: false, at: Moment::default() })
            }
            _ => Reply::Done,
        }
    }

    #[test]
    fn all_are_asked_before_anyone_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (pods, asked) = (AT_ONCE + 3, Arc::default());
        for n in 0..pods {
            let asked: Arc<(Mutex<usize>, Condvar)> = Arc::clone(&asked);
            serve(&dir.path().join(format!("run/shims/u{n}")), move |request| answer(request, &asked, pods));
        }
        let what = Ending {
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("data"),
            cgroup_root: "own".to_owned(),
            // More than enough where all are asked; where some are not, it is waited for in vain.
            grace: Duration::from_secs(20),
            remove: false,
        };
        assert_eq!(end_pods(&what).unwrap(), Ended { pods, killed: 0, removed: 0 });
    }
}
