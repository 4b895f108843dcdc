//! The set of this node's Pods: one worker each, kept in step with what the control plane binds
//! here and with what netd holds.
//!
//! Nobody plans from an empty cache: until the first complete list, Pods known from the last run
//! go on (those whose shim lives at once; the others when the control plane stays silent for
//! [`STALE_START_AFTER`]), and nothing is removed. After it, Pods that are not in it are ended,
//! and what belongs to no Pod (shims, folders, netd's attachments) is cleaned up.
use super::{
    backoff::Backoff,
    persist::{self, Kept, PodDir},
    steps::{Context, sandbox},
    worker::{Mailbox, Message, Worker},
};
use crate::{
    api::{self, watch::Item},
    runtime::netd::NetdError,
    volume,
};
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use trellis_proto::netd::StatusReply;
use trellis_proto::service::{ALIVE, Watchdog, notify};

/// How long a Pod without a living shim waits for the control plane before it is started from
/// disk: a member answers in milliseconds, a whole control plane that is away does not.
const STALE_START_AFTER: Duration = Duration::from_secs(5);
/// Events of the watch on their way.
const QUEUE: usize = 64;
/// netd is asked this often what it holds.
const NETD_POLL: Duration = Duration::from_secs(1);
/// A Pod whose watch is refused is of no use; the refusal may be a control plane of another age.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// Runs for ever. `network` tells the Node's reporter whether netd works.
pub async fn run(ctx: Arc<Context>, network: watch::Sender<Result<(), String>>) {
    let (over_tx, over_rx) = mpsc::channel(QUEUE);
    let (items_tx, items_rx) = mpsc::channel(QUEUE);
    let mut manager = Manager {
        ctx: ctx.clone(),
        workers: HashMap::new(),
        over: over_tx,
        seen: BTreeSet::new(),
        synced: false,
        stale: Vec::new(),
        detaching: None,
    };
    manager.load().await;
    let (seen_tx, seen_rx) = mpsc::channel(1);
    tokio::spawn(follow_netd(ctx.clone(), seen_tx));
    tokio::spawn(follow_pods(ctx, items_tx));
    manager.run(items_rx, over_rx, seen_rx, network).await;
}

/// Looks at what netd holds, on a task of its own: one that is stopped answers after seconds, if at
/// all, and Pods come and go meanwhile.
async fn follow_netd(ctx: Arc<Context>, tx: mpsc::Sender<Result<StatusReply, NetdError>>) {
    let mut look = tokio::time::interval(NETD_POLL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if tx.send(ctx.netd.status().await).await.is_err() {
            return;
        }
    }
}

/// Takes back what netd holds of Pods that are no more.
async fn detach_orphans(ctx: Arc<Context>, uids: Vec<String>) {
    for uid in uids {
        tracing::info!(uid, "netd holds a Pod that is no more: detaching it");
        if let Err(error) = ctx.netd.detach(&uid).await {
            tracing::warn!(uid, %error, "cannot detach");
        }
    }
}

async fn follow_pods(ctx: Arc<Context>, tx: mpsc::Sender<Item<Pod>>) {
    let selector = format!("spec.nodeName={}", ctx.node_name);
    loop {
        let key = api::key("Pod", "", "");
        match api::watch::follow(ctx.conn.clone(), key, selector.clone(), tx.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::error!(%error, "this node cannot follow its Pods"),
        }
        tokio::time::sleep(REFUSED_PAUSE).await;
    }
}

struct Manager {
    ctx: Arc<Context>,
    workers: HashMap<String, Mailbox>,
    over: mpsc::Sender<String>,
    seen: BTreeSet<String>,
    synced: bool,
    stale: Vec<Arc<Pod>>,
    /// Orphans that netd is being asked to let go: one round at a time.
    detaching: Option<JoinHandle<()>>,
}

impl Manager {
    /// Pods of the last run: adopts those whose shim lives.
    async fn load(&mut self) {
        for uid in persist::known_uids(&self.ctx.data_dir) {
            let dir = PodDir::new(&self.ctx.data_dir, &uid);
            let pod = match persist::read_kept::<Pod>(&dir.object()) {
                Kept::Whole(pod) => pod,
                Kept::Missing => continue,
                Kept::Broken(why) => {
                    let path = dir.object();
                    tracing::error!(uid, path = %path.display(), why, "what was kept of a Pod is broken, as a power cut \
                        leaves it: the Pod is made again from the control plane's object as soon as a member answers");
                    continue;
                }
            };
            if pod.metadata.uid.as_deref() != Some(uid.as_str()) {
                continue;
            }
            let pod = Arc::new(pod);
            if sandbox::listens(&self.ctx.shim_dir(&uid)).await {
                self.start(pod);
            } else {
                self.stale.push(pod);
            }
        }
        tracing::info!(running = self.workers.len(), waiting = self.stale.len(), "Pods known from before");
    }

    fn start(&mut self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mailbox = Worker::start(self.ctx.clone(), pod, self.over.clone());
        self.workers.insert(uid, mailbox);
    }

    async fn run(
        mut self,
        mut items: mpsc::Receiver<Item<Pod>>,
        mut over: mpsc::Receiver<String>,
        mut netd: mpsc::Receiver<Result<StatusReply, NetdError>>,
        network: watch::Sender<Result<(), String>>,
    ) {
        let stale = tokio::time::sleep(STALE_START_AFTER);
        tokio::pin!(stale);
        let mut watchdog = Watchdog::from_env();
        loop {
            tokio::select! {
                () = watchdog.due() => notify(ALIVE),
                item = items.recv() => match item {
                    Some(item) => self.on_item(item).await,
                    None => return,
                },
                Some(uid) = over.recv() => drop(self.workers.remove(&uid)),
                Some(held) = netd.recv() => self.on_netd(held, &network),
                () = &mut stale, if !self.stale.is_empty() => {
                    tracing::warn!(pods = self.stale.len(), "no control plane: starting Pods as last known");
                    for pod in std::mem::take(&mut self.stale) {
                        self.start(pod);
                    }
                }
            }
        }
    }

    async fn on_item(&mut self, item: Item<Pod>) {
        match item {
            Item::Relist => self.seen.clear(),
            Item::Present(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if !self.synced {
                    self.stale.retain(|p| p.metadata.uid != pod.metadata.uid);
                }
                self.seen.insert(uid.clone());
                let pod = Arc::new(pod);
                match self.workers.get(&uid) {
                    // A worker that has just ended takes no more mail: the object is as good as gone,
                    // or it comes again with the next event.
                    Some(mailbox) => drop(mailbox.send(Message::Pod(pod)).await),
                    None => self.start(pod),
                }
            }
            Item::Gone(pod) => {
                let uid = pod.metadata.uid.unwrap_or_default();
                self.seen.remove(&uid);
                if let Some(mailbox) = self.workers.get(&uid) {
                    drop(mailbox.send(Message::Gone).await);
                }
            }
            Item::Synced => self.on_synced().await,
        }
    }

    async fn on_synced(&mut self) {
        for (uid, mailbox) in &self.workers {
            if !self.seen.contains(uid) {
                drop(mailbox.send(Message::Gone).await);
            }
        }
        if std::mem::replace(&mut self.synced, true) {
            return;
        }
        self.stale.clear();
        let keep: BTreeSet<String> = self.workers.keys().cloned().collect();
        tokio::spawn(remove_orphans(self.ctx.clone(), keep));
    }

    /// Hands netns over again after netd's restart, and takes back what nobody wants any more.
    fn on_netd(&mut self, held: Result<StatusReply, NetdError>, network: &watch::Sender<Result<(), String>>) {
        let status = match held {
            Ok(status) => status,
            Err(error) => {
                let text = error.to_string();
                network.send_if_modified(|now| {
                    let change = now.is_ok() || now.as_ref().err() != Some(&text);
                    *now = Err(text);
                    change
                });
                return;
            }
        };
        let ready =
            if status.pod_cidr.is_empty() { Err("netd has no pod CIDR for this node yet".to_owned()) } else { Ok(()) };
        network.send_if_modified(|now| {
            let change = *now != ready;
            *now = ready;
            change
        });
        let held: HashMap<&str, bool> = status.attached.iter().map(|a| (a.pod_uid.as_str(), a.netns_held)).collect();
        for (uid, mailbox) in &self.workers {
            let Some(view) = self.ctx.registry.get(uid) else { continue };
            let host_network = view.pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
            if view.attached && !host_network && held.get(uid.as_str()) != Some(&true) {
                tracing::info!(uid, "netd lost its hold on the Pod's network namespace: handing it over again");
                // A full mailbox gets it with the next look.
                drop(mailbox.try_send(Message::Reattach));
            }
        }
        if !self.synced || self.detaching.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let unknown = |uid: &&str| !self.workers.contains_key(*uid) && !self.seen.contains(*uid);
        let orphans: Vec<String> = held.into_keys().filter(unknown).map(str::to_owned).collect();
        if !orphans.is_empty() {
            self.detaching = Some(tokio::spawn(detach_orphans(self.ctx.clone(), orphans)));
        }
    }
}

/// Shims, folders and kept objects that belong to no Pod of this node.
async fn remove_orphans(ctx: Arc<Context>, keep: BTreeSet<String>) {
    let kept = Arc::clone(ctx.refs.kept());
    // Err: the agent is ending.
    drop(tokio::task::spawn_blocking(move || kept.sweep()).await);
    let names = |dir: std::path::PathBuf| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    let mut all: BTreeSet<String> = names(ctx.run_dir.join("shims")).into_iter().collect();
    all.extend(persist::known_uids(&ctx.data_dir));
    all.extend(names(ctx.run_dir.join("agent").join("volumes")));
    all.retain(|uid| !keep.contains(uid));
    until_done(all, |uid| remove_orphan(Arc::clone(&ctx), uid)).await;
}

/// Does what is to be done for each; again, after a growing wait, where it failed.
async fn until_done<F: Future<Output = bool>>(mut left: BTreeSet<String>, remove: impl Fn(String) -> F) {
    let mut pause = Backoff::step();
    loop {
        let mut failed = BTreeSet::new();
        for uid in left {
            if !remove(uid.clone()).await {
                failed.insert(uid);
            }
        }
        if failed.is_empty() {
            return;
        }
        left = failed;
        tokio::time::sleep(pause.advance()).await;
    }
}

/// True when nothing is left of it.
async fn remove_orphan(ctx: Arc<Context>, uid: String) -> bool {
    // One that was bound here in the meantime has a worker, and is in the registry.
    if ctx.registry.get(&uid).is_some() {
        return true;
    }
    tracing::info!(uid, "removing what belongs to no Pod");
    if let Err(error) = sandbox::remove(&ctx, &uid).await {
        tracing::warn!(uid, %error, "cannot remove a stale sandbox, will be tried again");
        return false;
    }
    let dir = PodDir::new(&ctx.data_dir, &uid);
    let memory = volume::memory_dir(&ctx.run_dir, &uid);
    let removed = tokio::task::spawn_blocking(move || {
        volume::local::remove(&dir.volumes())?;
        volume::local::remove(&memory)?;
        volume::local::remove(dir.path())
    });
    match removed.await {
        Ok(Err(error)) => {
            tracing::warn!(uid, %error, "cannot remove a stale Pod folder, will be tried again");
            false
        }
        // Err: the agent is ending.
        Ok(Ok(())) | Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn what_could_not_be_removed_is_tried_again_and_nothing_else() {
        let tried = Mutex::new(Vec::new());
        let all = ["a", "b", "c"].map(str::to_owned).into_iter().collect();
        let remove = |uid: String| {
            let mut tried = tried.lock().unwrap();
            tried.push(uid.clone());
            let times = tried.iter().filter(|t| **t == uid).count();
            std::future::ready(uid == "a" || times == 3)
        };
        until_done(all, remove).await;
        assert_eq!(*tried.lock().unwrap(), ["a", "b", "c", "b", "c", "b", "c"]);
    }
}
