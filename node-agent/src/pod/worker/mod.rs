//! The driver of one Pod: feeds its machine, and does what it answers. Steps that wait run as
//! tasks of their own ([`super::steps`]) and tell their outcome as an event; each ends by itself,
//! so the machine never waits for an answer that does not come.
mod perform;

use super::{
    event::{Event, Now, ProbeKind},
    keeper::Keeper,
    machine::{Condition, Machine, ShimContainer, ShimReport, State},
    persist::{PodDir, read_json},
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
use trellis_shim_protocol::Phase;

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
    probes: HashMap<String, Vec<AbortHandle>>,
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

    async fn recover(ctx: Arc<Context>, pod: Arc<Pod>, tx: Mailbox, rx: mpsc::Receiver<Message>) -> Self {
        let plan = PodPlan::from_pod(&pod);
        let dir = PodDir::new(&ctx.data_dir, &plan.uid);
        let shim = Shim::at(&ctx.shim_dir(&plan.uid));
        let now = ctx.now();
        let saved = read_json::<super::machine::Persisted>(&dir.state()).filter(|s| s.fits(&plan.uid));
        let mut ids = HashMap::new();
        let report = steps::sandbox::report(&shim, &pod, &dir, &mut ids).await;
        let adopted = report.as_ref().is_some_and(|r| !r.dead);
        let silent = saved.is_none() && !adopted && status::is_terminal(&pod);
        let mut machine = match (&saved, &report) {
            _ if silent => Machine::finished_elsewhere(plan, now),
            (Some(saved), report) => Machine::recover(plan, saved, report.as_ref(), now),
            // The data folder was lost, the shim was not: what it says is all there is.
            (None, Some(report)) if adopted => Machine::adopt_blind(plan, report, now),
            (None, _) => Machine::new(plan, now),
        };
        seed_conditions(&mut machine, &pod);
        let (wishes, wished) = watch::channel(None);
        tokio::spawn(api::status::run(ctx.conn.clone(), wished));
        let mut worker = Self {
            ctx,
            keeper: Keeper::new(dir.clone(), pod.clone()),
            pod,
            dir,
            machine,
            shim,
            tx,
            rx,
            tasks: JoinSet::new(),
            probes: HashMap::new(),
            events: None,
            refresher: None,
            images: HashMap::new(),
            ids,
            network: Arc::default(),
            wishes,
            silent,
            finished: false,
        };
        if adopted {
            worker.adopted();
        }
        worker
    }

    /// Watches the shim again, and probes what runs.
    fn adopted(&mut self) {
        self.follow_shim();
        let running: Vec<(String, u32, bool, bool, bool)> = self
            .machine
            .running()
            .map(|(c, attempt)| {
                let p = &c.plan;
                (p.name.clone(), attempt, p.startup_probe && !c.started, p.readiness_probe, p.liveness_probe)
            })
            .collect();
        tracing::info!(pod = %self.label(), running = running.len(), "adopted");
        for (name, attempt, startup, readiness, liveness) in running {
            if startup {
                self.start_probe(&name, attempt, ProbeKind::Startup);
                continue;
            }
            for (_, kind) in
                [(readiness, ProbeKind::Readiness), (liveness, ProbeKind::Liveness)].into_iter().filter(|(w, _)| *w)
            {
                self.start_probe(&name, attempt, kind);
            }
        }
    }

    fn label(&self) -> String {
        let meta = &self.pod.metadata;
        format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }

    async fn run(mut self) {
        let first = match self.deletion() {
            // Before anything is begun: a Pod that is to go must not start first.
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

fn seed_conditions(machine: &mut Machine, pod: &Pod) {
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"] {
        let old = pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == kind);
        if let Some(c) = old
            && let Some(since) = &c.last_transition_time
        {
            let condition = Condition {
                status: c.status == "True",
                reason: c.reason.clone().unwrap_or_default(),
                message: c.message.clone().unwrap_or_default(),
                since: since.0,
            };
            machine.seed_condition(kind, condition);
        }
    }
}

/// A container of a shim's state, for the machine.
pub(super) fn shim_container(state: &trellis_shim_protocol::ContainerState, message: String) -> Option<ShimContainer> {
    let (name, attempt) = shim::labels(state)?;
    if state.phase == Phase::Created {
        return None;
    }
    Some(ShimContainer {
        name,
        attempt,
        id: state.id.clone(),
        started: state.started_at.map(shim::wall),
        exit: state.exit.as_ref().map(|e| shim::exit(e, state.started_at, message)),
    })
}

/// Used by [`steps::sandbox::report`].
pub(super) type Report = ShimReport;

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
