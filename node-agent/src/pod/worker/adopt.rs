//! How a worker begins: with what is on disk, what the Pod's shim says, and what the object says.
use super::{
    super::{
        event::ProbeKind,
        keeper::Keeper,
        machine::{Condition, Machine, Persisted, ShimContainer, ShimReport},
        persist::{PodDir, read_json},
        plan::PodPlan,
        status,
        steps::{self, Context},
    },
    Mailbox, Message, Worker,
};
use crate::{
    api,
    runtime::shim::{self, Shim},
};
use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use trellis_shim_protocol::Phase;

impl Worker {
    pub(super) async fn recover(
        ctx: Arc<Context>,
        pod: Arc<Pod>,
        tx: Mailbox,
        mut rx: mpsc::Receiver<Message>,
    ) -> Self {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = PodDir::new(&ctx.data_dir, &uid);
        let shim = Shim::at(&ctx.shim_dir(&uid));
        let mut ids = HashMap::new();
        let (report, pod, gone) = ask(&shim, pod, &dir, &mut ids, &mut rx).await;
        let plan = PodPlan::from_pod(&pod);
        let now = ctx.now();
        let saved = read_json::<Persisted>(&dir.state()).filter(|s| s.fits(&plan.uid));
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
            gone,
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
}

/// What the shim says, however long that takes; meanwhile the mailbox is read, or whoever writes to it
/// would wait with all other Pods. Answers also the newest object, and whether it left the API.
async fn ask(
    shim: &Shim,
    mut pod: Arc<Pod>,
    dir: &PodDir,
    ids: &mut HashMap<String, (String, u32)>,
    rx: &mut mpsc::Receiver<Message>,
) -> (Option<Report>, Arc<Pod>, bool) {
    let going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    let (first, unwanted) = (pod.clone(), AtomicBool::new(going(&pod)));
    let found = steps::sandbox::report(shim, &first, dir, ids, &unwanted);
    tokio::pin!(found);
    let mut gone = false;
    loop {
        tokio::select! {
            report = &mut found => return (report, pod, gone),
            Some(message) = rx.recv() => match message {
                Message::Pod(newer) => pod = newer,
                Message::Gone => gone = true,
                // netd's wish comes again; nothing else is told of a Pod that is not looked after yet.
                _ => {}
            },
        }
        unwanted.store(gone || going(&pod), Ordering::Relaxed);
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
pub(in crate::pod) fn shim_container(
    state: &trellis_shim_protocol::ContainerState,
    message: String,
) -> Option<ShimContainer> {
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
pub(in crate::pod) type Report = ShimReport;
