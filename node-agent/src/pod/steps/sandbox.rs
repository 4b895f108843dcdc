//! The sandbox: shim, network, and their removal.
use super::{
    super::{
        backoff::Backoff,
        event::Event,
        persist::{Kept, PodDir, read_kept},
        worker::{Mailbox, Message, Report, shim_container},
    },
    Context, Step,
};
use crate::{
    runtime::{etc, shim::Shim, spec::resources},
    volume,
};
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{BTreeMap, HashMap},
    io::ErrorKind,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use trellis_sandbox::{Cleanup, cgroup::CgroupRoot, cleanup as remove_leftovers};
use trellis_shim_protocol::{ContainerState, Happening, Phase, SOCKET, SandboxConfig, SandboxState};

/// How long processes and cgroups may take to vanish.
const VANISH_WITHIN: Duration = Duration::from_secs(10);
/// The format of a shim's state file that this build reads.
const STATE_VERSION: u32 = 1;
/// Between two looks at a shim whose event stream broke.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// The Pod's cgroup below the root.
pub fn cgroup_path(uid: &str) -> String {
    format!("trellis/pod{uid}")
}

/// Starts the shim. What an earlier one left is removed first.
pub async fn create(step: Step) -> Event {
    let Ok(_slot) = step.ctx.starts.acquire().await else {
        return Event::SandboxFailed { message: "the agent is ending".into() };
    };
    // The shim makes its folder before all else, and it is removed after all else: without it there
    // is nothing to look for.
    if step.ctx.shim_dir(step.uid()).exists()
        && let Err(message) = remove(&step.ctx, step.uid()).await
    {
        return Event::SandboxFailed { message };
    }
    let config = config(&step);
    let ips = step.pod_ips();
    if step.host_network()
        && let Err(error) = etc::write(&step.dir.etc(), &step.pod, &ips, &step.ctx.cluster_dns)
    {
        return Event::SandboxFailed { message: format!("{}: {error}", step.dir.etc().display()) };
    }
    match Shim::launch(&step.ctx.shim_program, config).await {
        Ok(_) => Event::SandboxCreated,
        Err(error) => Event::SandboxFailed { message: error.to_string() },
    }
}

fn config(step: &Step) -> SandboxConfig {
    let uid = step.uid();
    let spec = step.pod.spec.clone().unwrap_or_default();
    let host_network = step.host_network();
    let mut config = SandboxConfig::new(uid, step.ctx.shim_dir(uid), &cgroup_path(uid));
    config.cgroup_root = step.ctx.cgroup_root.clone();
    config.pod_namespace = step.namespace().to_owned();
    config.pod_name = step.pod.metadata.name.clone().unwrap_or_default();
    config.filters = Some(step.ctx.run_dir.join("agent").join("filters"));
    config.hostname = if host_network { String::new() } else { etc::hostname(&step.pod) };
    config.limits = resources::pod_cgroup(&step.pod);
    config.host_network = host_network;
    config.host_ipc = spec.host_ipc.unwrap_or(false);
    config.host_pid = spec.host_pid.unwrap_or(false);
    config.share_pid = spec.share_process_namespace.unwrap_or(false);
    let sysctls = spec.security_context.and_then(|c| c.sysctls).unwrap_or_default();
    config.sysctls = sysctls.into_iter().map(|s| (s.name, s.value)).collect::<BTreeMap<_, _>>();
    config
}

/// Hands the netns to netd, awaits its word, and writes what depends on the addresses.
pub async fn attach(step: Step) -> Event {
    let failed = |message: String| Event::NetworkFailed { message };
    let fds = match step.shim.netns().await {
        Ok(fds) => fds,
        Err(error) => return failed(error.to_string()),
    };
    let name = step.pod.metadata.name.clone().unwrap_or_default();
    match step.ctx.netd.attach(step.uid(), step.namespace(), &name, fds).await {
        Ok(reply) => {
            if let Err(e) = etc::write(&step.dir.etc(), &step.pod, &reply.addresses, &step.ctx.cluster_dns) {
                return failed(format!("{}: {e}", step.dir.etc().display()));
            }
            Event::NetworkAttached { addresses: reply.addresses }
        }
        Err(error) => failed(error.to_string()),
    }
}

/// Tells netd that the Pod goes.
pub async fn detach(step: Step) -> Event {
    match step.ctx.netd.detach(step.uid()).await {
        Ok(()) => Event::NetworkDetached,
        Err(error) => Event::TeardownFailed { message: error.to_string() },
    }
}

/// Ends the shim and removes all that the Pod had on this node; a finished Pod's logs and state
/// stay until it is deleted.
pub async fn cleanup(step: Step, keep_logs: bool) -> Event {
    let failed = |message: String| Event::TeardownFailed { message };
    if let Err(message) = remove(&step.ctx, step.uid()).await {
        return failed(message);
    }
    let dir = step.dir.clone();
    let memory = volume::memory_dir(&step.ctx.run_dir, step.uid());
    let removed = tokio::task::spawn_blocking(move || {
        volume::local::remove(&dir.volumes())?;
        volume::local::remove(&memory)?;
        for folder in [dir.containers(), dir.etc()] {
            volume::local::remove(&folder)?;
        }
        if keep_logs { Ok(()) } else { volume::local::remove(dir.path()) }
    });
    match removed.await {
        Ok(Ok(())) => Event::CleanedUp,
        Ok(Err(error)) => failed(format!("removing the Pod's files: {error}")),
        Err(_) => failed("the agent is ending".into()),
    }
}

/// Ends a shim, if there is one, and removes its processes, mounts, cgroup and folder.
pub async fn remove(ctx: &Context, uid: &str) -> Result<(), String> {
    let dir = ctx.shim_dir(uid);
    if dir.exists()
        && let Err(error) = Shim::at(&dir).shutdown().await
    {
        // It may hang; what follows kills it by its cgroup.
        tracing::warn!(uid, %error, "the shim did not end by itself");
    }
    let what = Cleanup {
        cgroup_root: CgroupRoot::parse(&ctx.cgroup_root),
        cgroup_path: cgroup_path(uid),
        dirs: vec![dir],
        within: VANISH_WITHIN,
    };
    let done = tokio::task::spawn_blocking(move || remove_leftovers(&what).map_err(|e| e.to_string()));
    let cleaned = done.await.map_err(|e| e.to_string())??;
    tracing::debug!(uid, ?cleaned, "sandbox removed");
    Ok(())
}

/// What a living shim holds, or a dead one has left of exits; `None` when there is neither.
/// Containers that were made and never started are deleted: their start did not happen.
///
/// A shim that cannot be asked now (no descriptor is free, the machine stalls) is asked again: taken
/// for dead, its Pod would be killed. Once `unwanted`, the Pod goes anyway: a failure is enough then.
pub async fn report(
    shim: &Shim,
    pod: &Pod,
    dir: &PodDir,
    ids: &mut HashMap<String, (String, u32)>,
    unwanted: &AtomicBool,
) -> Option<Report> {
    let mut pause = Backoff::step();
    let state = loop {
        match shim.state().await {
            Ok(state) => break state,
            Err(error) if error.is_gone() => return last_words(shim, pod, dir).await,
            Err(error) if unwanted.load(Ordering::Relaxed) => {
                tracing::error!(%error, "a shim does not answer and its Pod is to go: taken for dead");
                return None;
            }
            Err(error) => {
                let wait = pause.advance();
                tracing::warn!(%error, ?wait, "a shim does not answer: asking again");
                tokio::time::sleep(wait).await;
            }
        }
    };
    let mut report = Report::default();
    for c in &state.containers {
        if c.phase == Phase::Created {
            if let Err(error) = shim.delete(c.id.clone()).await {
                tracing::warn!(id = c.id, %error, "cannot delete a container that was never started");
            }
            continue;
        }
        let message = match &c.exit {
            Some(exit) => super::container::message_of(pod, dir, c, exit.code),
            None => String::new(),
        };
        if let Some(found) = shim_container(c, message) {
            ids.insert(found.id.clone(), (found.name.clone(), found.attempt));
            report.containers.push(found);
        }
    }
    Some(report)
}

/// Is there somebody behind a shim's socket, though he may not answer now?
pub async fn listens(dir: &Path) -> bool {
    match tokio::net::UnixStream::connect(dir.join(SOCKET)).await {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}

/// The exits that a dead shim had seen: nobody else knows them if the agent was away.
async fn last_words(shim: &Shim, pod: &Pod, dir: &PodDir) -> Option<Report> {
    let containers = left(shim).await.into_iter().filter(|c| c.exit.is_some()).filter_map(|c| {
        let message = super::container::message_of(pod, dir, &c, c.exit.as_ref().map_or(0, |e| e.code));
        shim_container(&c, message)
    });
    let containers: Vec<_> = containers.collect();
    (!containers.is_empty()).then_some(Report { containers, dead: true })
}

/// The containers of the state file that a dead shim has left; none where it cannot be read.
async fn left(shim: &Shim) -> Vec<ContainerState> {
    let path = shim.state_file();
    let read = tokio::task::spawn_blocking(move || read_kept::<SandboxState>(&path)).await;
    match read {
        Ok(Kept::Whole(state)) if state.version == STATE_VERSION => state.containers,
        Ok(Kept::Whole(state)) => {
            tracing::warn!(version = state.version, "the state of a dead shim has another format: its exits are lost");
            Vec::new()
        }
        Ok(Kept::Broken(why)) => {
            tracing::warn!(why, "the state of a dead shim cannot be read: its exits are lost");
            Vec::new()
        }
        Ok(Kept::Missing) | Err(_) => Vec::new(),
    }
}

/// Tells the worker of every exit, whatever happens to the stream; returns when the shim is gone.
pub async fn follow(shim: Shim, tx: Mailbox) {
    let mut after = 0;
    loop {
        match shim.events(after).await {
            Ok(mut stream) => {
                // The shim keeps a bounded number of events; its state has every exit.
                if tell_exits(&shim, &tx).await.is_err() {
                    return;
                }
                while let Ok(Some(event)) = stream.next_event().await {
                    after = event.sequence;
                    if let Happening::Exited(exit) = event.what
                        && tx.send(Message::ShimExit(event.id, exit)).await.is_err()
                    {
                        return;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "following a shim"),
        }
        match shim.state().await {
            Err(error) if error.is_gone() => {
                // What it had seen last may not have been told.
                for c in left(&shim).await {
                    if let Some(exit) = c.exit
                        && tx.send(Message::ShimExit(c.id, exit)).await.is_err()
                    {
                        return;
                    }
                }
                drop(tx.send(Message::Event(Event::SandboxLost)).await);
                return;
            }
            _ => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

async fn tell_exits(shim: &Shim, tx: &Mailbox) -> Result<(), ()> {
    let Ok(state) = shim.state().await else { return Ok(()) };
    for c in state.containers {
        if let Some(exit) = c.exit {
            tx.send(Message::ShimExit(c.id, exit)).await.map_err(|_| ())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime::fake_shim::{hello, serve};
    use std::sync::{Arc, atomic::AtomicU32};
    use trellis_shim_protocol::{ErrorCode, Moment, Reply, Request};

    fn state() -> SandboxState {
        SandboxState {
            version: STATE_VERSION,
            pod_uid: "u".into(),
            shim_pid: 1,
            started_at: Moment::default(),
            last_event: 0,
            containers: Vec::new(),
        }
    }

    /// A shim that fails the first `failures` questions for its state.
    fn ailing(dir: &Path, failures: u32) -> Arc<AtomicU32> {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        serve(dir, move |request| match request {
            Request::Hello { .. } => hello(),
            _ if count.fetch_add(1, Ordering::Relaxed) < failures => {
                Reply::Error { code: ErrorCode::Failed, message: "too many open files".into() }
            }
            _ => Reply::State(Box::new(state())),
        });
        asked
    }

    async fn reported(dir: &Path, unwanted: bool) -> Option<Report> {
        let pods = PodDir::new(dir, "u");
        report(&Shim::at(dir), &Pod::default(), &pods, &mut HashMap::new(), &AtomicBool::new(unwanted)).await
    }

    #[tokio::test]
    async fn a_shim_that_fails_to_answer_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let asked = ailing(dir.path(), 2);
        assert!(listens(dir.path()).await);
        let found = reported(dir.path(), false).await.unwrap();
        assert_eq!((found.dead, asked.load(Ordering::Relaxed)), (false, 3));
    }

    #[tokio::test]
    async fn a_pod_that_is_to_go_waits_for_no_shim() {
        let dir = tempfile::tempdir().unwrap();
        let asked = ailing(dir.path(), u32::MAX);
        assert!(reported(dir.path(), true).await.is_none());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn where_nobody_listens_nobody_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!listens(dir.path()).await);
        assert!(reported(dir.path(), false).await.is_none());
        // The socket of one that was killed stays.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        assert!(!listens(dir.path()).await);
        assert!(reported(dir.path(), false).await.is_none());
    }
}
