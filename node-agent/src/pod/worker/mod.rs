//! The driver of one Pod: feeds its machine, and does what it answers. Steps that wait run as
//! tasks of their own ([`super::steps`]) and tell their outcome as an event; each ends by itself,
//! so the machine never waits for an answer that does not come.
mod adopt;
mod perform;

use super::{
    event::{Event, Now, ProbeKind},
    keeper::Keeper,
    machine::{Machine, State},
    persist::PodDir,
    plan::{PodPlan, seconds},
    registry::{ContainerView, PodView},
    status,
    steps::{self, Context},
};
use crate::{
    api,
    runtime::shim::{self, Shim},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use trellis_image::Image;

pub(super) use adopt::{Report, shim_container};

/// Events waiting for one Pod's machine. Senders wait for room: none is lost.
const QUEUE: usize = 64;

/// What the manager and the Pod's own tasks say to its worker.
#[derive(Debug)]
pub enum Message {
    /// The object's present state.
    Pod(Arc<Pod>),
    /// The object is gone from the API.
    Gone,
    /// netd lost its hold on the Pod's netns (it restarted).
    Reattach,
    /// Something for the machine.
    Event(Event),
    /// The image of a container is here: container, name asked for, image.
    Image(String, String, Arc<Image>),
    /// A container of the shim ended.
    ShimExit(String, trellis_shim_protocol::Exit),
}

/// A worker's mailbox.
pub type Mailbox = mpsc::Sender<Message>;

/// One Pod.
pub struct Worker {
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    dir: PodDir,
    keeper: Keeper,
    machine: Machine,
    shim: Shim,
    tx: Mailbox,
    rx: mpsc::Receiver<Message>,
    tasks: JoinSet<()>,
    probes: HashMap<String, Vec<(ProbeKind, AbortHandle)>>,
    events: Option<AbortHandle>,
    refresher: Option<AbortHandle>,
    images: HashMap<String, Arc<Image>>,
    /// Runtime id → container, attempt.
    ids: HashMap<String, (String, u32)>,
    /// Held by whoever speaks with netd of this Pod: a repeated handoff is over before the Pod is
    /// detached, or netd would attach it again, for good.
    network: Arc<Mutex<()>>,
    wishes: watch::Sender<api::status::Wish>,
    /// The object says it all: nothing is written over it.
    silent: bool,
    /// The object left the API before anything was begun.
    gone: bool,
    finished: bool,
}

impl Worker {
    /// Starts the worker of a Pod; it ends by itself when the Pod is over, and tells `over`.
    pub fn start(ctx: Arc<Context>, pod: Arc<Pod>, over: mpsc::Sender<String>) -> Mailbox {
        let (tx, rx) = mpsc::channel(QUEUE);
        let mailbox = tx.clone();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // Before anybody sweeps, and before anything is fetched.
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        ctx.refs.kept().pin(&uid, namespace, &steps::references(&pod));
        tokio::spawn(async move {
            let worker = Self::recover(ctx.clone(), pod, tx, rx).await;
            worker.run().await;
            ctx.registry.remove(&uid);
            let (kept, over_uid) = (Arc::clone(ctx.refs.kept()), uid.clone());
            // Err: the agent is ending.
            drop(tokio::task::spawn_blocking(move || kept.unpin(&over_uid)).await);
            drop(over.send(uid).await);
        });
        mailbox
    }

    fn label(&self) -> String {
        let meta = &self.pod.metadata;
        format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    async fn run(mut self) {
        let first = match self.deletion() {
            // Before anything is begun: a Pod that is to go must not start first.
            _ if self.gone => Event::Gone,
            Some(grace) => Event::Delete { grace },
            None => Event::Tick,
        };
        self.save_object();
        self.feed(first);
        while !self.finished {
            let deadline = self.machine.next_deadline().map(|at| self.ctx.instant(at));
            let tick = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = self.rx.recv() => match message {
                    Some(message) => self.on_message(message),
                    None => break,
                },
                () = tick => self.feed(Event::Tick),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = done && error.is_panic() {
                        tracing::error!(pod = %self.label(), %error, "a step panicked");
                    }
                }
            }
        }
        self.tasks.shutdown().await;
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.on_pod(pod),
            Message::Gone => self.feed(Event::Gone),
            // A Pod that ends has let go, or is about to.
            Message::Reattach if self.machine.is_ending() => {}
            Message::Reattach => self.reattach(),
            Message::Event(event) => self.feed(event),
            Message::Image(container, asked, _)
                if self.container(&container).is_some_and(|c| c.image.as_deref() != Some(&asked)) =>
            {
                // The spec names another one by now.
                self.ensure_image(container);
            }
            Message::Image(container, _, image) => {
                let full = self.image_name(&container);
                let image_id = crate::image::status_id(&image, &full);
                let stop_signal = image.config.config().as_ref().and_then(|c| c.stop_signal().clone());
                self.images.insert(container.clone(), image);
                self.feed(Event::ImageReady { container, image_id, stop_signal });
            }
            Message::ShimExit(id, exit) => self.on_exit(&id, &exit),
        }
    }

    fn on_pod(&mut self, pod: Arc<Pod>) {
        let old = std::mem::replace(&mut self.pod, pod);
        if old.spec != self.pod.spec || old.metadata.labels != self.pod.metadata.labels {
            self.save_object();
        }
        self.publish();
        if let Some(grace) = self.deletion() {
            self.feed(Event::Delete { grace });
        } else if old.spec != self.pod.spec {
            self.feed(Event::Updated(PodPlan::from_pod(&self.pod)));
        }
    }

    /// The grace period, if the object is marked for deletion.
    fn deletion(&self) -> Option<Duration> {
        let meta = &self.pod.metadata;
        meta.deletion_timestamp.as_ref()?;
        Some(meta.deletion_grace_period_seconds.map_or(super::plan::DEFAULT_GRACE, seconds))
    }

    fn on_exit(&mut self, id: &str, exit: &trellis_shim_protocol::Exit) {
        let Some((container, attempt)) = self.ids.get(id).cloned() else { return };
        let message = steps::container::termination_message(&self.pod, &self.dir, &container, id, attempt, exit.code);
        let started = self.machine.running().find(|(c, _)| c.id == id).and_then(|(c, _)| match c.state {
            State::Running { since } => Some(since),
            _ => None,
        });
        let mut exit = shim::exit(exit, None, message);
        exit.started = started;
        // Persisted by the machine's first effect; only then may the shim forget it.
        self.feed(Event::Exited { container, attempt, id: id.to_owned(), exit });
        self.ids.remove(id);
        let (shim, id, folder) = (self.shim.clone(), id.to_owned(), self.dir.containers());
        self.tasks.spawn(async move {
            match shim.delete(id.clone()).await {
                Ok(()) => drop(tokio::fs::remove_dir_all(folder.join(&id)).await),
                Err(error) => tracing::debug!(%id, %error, "an ended container stays until the Pod goes"),
            }
        });
    }

    /// Gives an event to the machine and does what it answers.
    fn feed(&mut self, event: Event) {
        let effects = self.machine.on_event(event, self.ctx.now());
        for effect in effects {
            self.perform(effect);
        }
    }

    /// Keeps the object for a start without the control plane.
    fn save_object(&mut self) {
        if self.machine.is_removing() {
            return;
        }
        let taken = self.keeper.take(self.pod.clone());
        let (keeper, label) = (self.keeper.clone(), self.label());
        self.tasks.spawn(async move {
            if let Err(error) = taken.and(keeper.keep_object().await) {
                tracing::error!(pod = %label, %error, "cannot keep the Pod's object: it will not start without the control plane");
            }
        });
    }

    fn report(&mut self) {
        self.publish();
        if self.silent || self.finished {
            return;
        }
        let status = status::build(&self.machine, &self.pod, &self.ctx.host_ip);
        let same = |wish: &api::status::Wish| wish.as_ref().is_some_and(|(_, s)| *s == status);
        if !same(&self.wishes.borrow()) && self.pod.status.as_ref() != Some(&status) {
            self.wishes.send_replace(Some((self.pod.clone(), status)));
        }
    }

    /// What the server on 10250 needs to find logs and containers.
    fn publish(&self) {
        let containers = self.machine.containers.iter().map(|c| ContainerView {
            name: c.plan.name.clone(),
            id: c.id.clone(),
            running: matches!(c.state, State::Running { .. }),
            state: c.describe(),
            attempts: c.restart_count()
                + u32::from(c.alive() || c.last.is_some() || matches!(c.state, State::Ended(_))),
            main: c.plan.role == super::plan::Role::Main,
        });
        self.ctx.registry.publish(PodView {
            pod: self.pod.clone(),
            containers: containers.collect(),
            addresses: self.machine.addresses.clone(),
            attached: self.machine.sandbox_ready() && !self.machine.is_kept(),
        });
    }
}

/// The two clocks of this process.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts counting now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.0.elapsed(), wall: Timestamp::now() }
    }

    /// A monotonic time as tokio wants it.
    pub fn instant(&self, at: Duration) -> Instant {
        self.0 + at
    }
}
