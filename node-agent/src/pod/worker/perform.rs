//! Doing what the machine answers: each effect is one call here, and whatever waits is a task.
use super::{
    super::{
        event::{Effect, Event, ProbeKind, StopKind},
        machine::{Phase, State},
        steps::{self, probe, volumes},
    },
    Message, Worker,
};
use k8s_openapi::api::core::v1::Container;
use std::sync::Arc;

impl Worker {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::PrepareVolumes => {
                self.ctx.warmth.expect_start();
                self.prepare_volumes();
            }
            Effect::CreateSandbox => self.step(|s| Box::pin(steps::sandbox::create(s))),
            Effect::AttachNetwork => {
                self.follow_shim();
                self.attach();
            }
            Effect::EnsureImage { container } => self.ensure_image(container),
            Effect::Start { container, attempt } => {
                self.ctx.warmth.expect_start();
                self.start_container(container, attempt);
            }
            Effect::Stop { container, attempt, kind } => self.stop(&container, attempt, kind),
            Effect::StartProbe { container, attempt, kind } => self.start_probe(&container, attempt, kind),
            Effect::StopProbes { container, readiness } => {
                self.probes.entry(container).or_default().retain(|(kind, task)| {
                    let stays = *kind == ProbeKind::Readiness && !readiness;
                    if !stays {
                        task.abort();
                    }
                    stays
                });
            }
            Effect::DetachNetwork => self.detach(),
            Effect::Cleanup { keep_logs } => self.cleanup(keep_logs),
            Effect::DeleteFromApi => self.step(|s| Box::pin(steps::delete_from_api(s))),
            Effect::Persist if self.machine.is_removing() || self.silent => {}
            Effect::Persist => {
                if let Err(error) = self.dir.save_state(&self.machine) {
                    tracing::error!(pod = %self.label(), %error, "cannot keep the Pod's state: an agent restart may lose exit codes");
                }
                if matches!(self.machine.phase(), Phase::Succeeded | Phase::Failed) {
                    self.keep_end();
                }
            }
            Effect::ReportStatus => self.report(),
            Effect::Note(note) => self.ctx.recorder.note(&self.pod, note),
            Effect::Finished => self.finished = true,
        }
    }

    fn snapshot(&self) -> steps::Step {
        steps::Step {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            dir: self.dir.clone(),
            shim: self.shim.clone(),
            addresses: self.machine.addresses.clone(),
            tx: self.tx.clone(),
        }
    }

    /// Runs a step whose outcome is an event.
    fn step(
        &mut self,
        run: impl FnOnce(steps::Step) -> std::pin::Pin<Box<dyn Future<Output = Event> + Send>> + Send + 'static,
    ) {
        let (snapshot, tx) = (self.snapshot(), self.tx.clone());
        let (uid, began) = (snapshot.uid().to_owned(), std::time::Instant::now());
        self.tasks.spawn(async move {
            let event = run(snapshot).await;
            tracing::debug!(uid, micros = began.elapsed().as_micros(), outcome = ?event, "step");
            drop(tx.send(Message::Event(event)).await);
        });
    }

    fn prepare_volumes(&mut self) {
        let old = self.refresher.take();
        old.into_iter().for_each(|task| task.abort());
        let (snapshot, tx) = (self.snapshot(), self.tx.clone());
        // Stays as long as the Pod does where its content may change.
        self.refresher = Some(self.tasks.spawn(async move {
            match volumes::prepare(&snapshot).await {
                Ok(held) => {
                    drop(tx.send(Message::Event(Event::VolumesReady)).await);
                    volumes::keep_fresh(&snapshot, held).await;
                }
                Err(message) => drop(tx.send(Message::Event(Event::VolumesFailed { message })).await),
            }
        }));
    }

    fn attach(&mut self) {
        let network = Arc::clone(&self.network);
        self.step(move |s| {
            Box::pin(async move {
                let _held = network.lock().await;
                steps::sandbox::attach(s).await
            })
        });
    }

    /// Hands the namespace over once more: netd forgot it. Not while another attach is under way;
    /// if netd needs it then, the manager asks again.
    pub(super) fn reattach(&mut self) {
        let Ok(held) = Arc::clone(&self.network).try_lock_owned() else { return };
        let (snapshot, tx) = (self.snapshot(), self.tx.clone());
        self.tasks.spawn(async move {
            let event = steps::sandbox::attach(snapshot).await;
            // It changes nothing for the machine unless it brings addresses.
            if matches!(event, Event::NetworkAttached { .. }) {
                drop(tx.send(Message::Event(event)).await);
            }
            drop(held);
        });
    }

    fn detach(&mut self) {
        let network = Arc::clone(&self.network);
        self.step(move |s| {
            Box::pin(async move {
                let _held = network.lock().await;
                steps::sandbox::detach(s).await
            })
        });
    }

    pub(super) fn follow_shim(&mut self) {
        if self.events.as_ref().is_some_and(|e| !e.is_finished()) {
            return;
        }
        let (shim, tx) = (self.shim.clone(), self.tx.clone());
        self.events = Some(self.tasks.spawn(steps::sandbox::follow(shim, tx)));
    }

    pub(super) fn container(&self, name: &str) -> Option<Container> {
        let spec = self.pod.spec.as_ref()?;
        spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name).cloned()
    }

    pub(super) fn image_name(&self, container: &str) -> String {
        let image = self.container(container).and_then(|c| c.image).unwrap_or_default();
        trellis_image::normalize(&image).unwrap_or(image)
    }

    pub(super) fn ensure_image(&mut self, container: String) {
        let Some(spec) = self.container(&container) else { return };
        let (snapshot, tx) = (self.snapshot(), self.tx.clone());
        self.tasks.spawn(async move {
            let message = steps::container::ensure_image(snapshot, spec).await;
            drop(tx.send(message).await);
        });
    }

    fn start_container(&mut self, container: String, attempt: u32) {
        let (Some(spec), Some(image)) = (self.container(&container), self.images.get(&container).cloned()) else {
            let message = "its image is not known".to_owned();
            return self.later(Event::ConfigFailed { container, attempt, message });
        };
        let id = steps::container::new_id(&container, attempt);
        // Where the configuration was not there yet, the attempt's number comes again: signals and
        // probes are for this run, not for those that never reached the runtime.
        self.ids.retain(|_, (c, a)| *c != container || *a != attempt);
        self.ids.insert(id.clone(), (container, attempt));
        self.follow_shim();
        self.step(move |s| Box::pin(async move { steps::container::start(s, &spec, &image, id, attempt).await }));
    }

    fn later(&mut self, event: Event) {
        self.step(move |_| Box::pin(async move { event }));
    }

    fn stop(&mut self, container: &str, attempt: u32, kind: StopKind) {
        let (Some(id), Some(spec)) = (self.id_of(container, attempt), self.container(container)) else {
            if kind == StopKind::Kill {
                let message = "this run of it is not known".to_owned();
                self.later(Event::KillFailed { container: container.to_owned(), attempt, message });
            }
            return;
        };
        let signal = match kind {
            StopKind::Ask { .. } => {
                let record = self.machine.containers.iter().find(|c| c.plan.name == container);
                steps::container::stop_signal(&spec, record.and_then(|c| c.stop_signal.as_deref()))
            }
            StopKind::Kill => 9,
        };
        let snapshot = self.snapshot();
        let tx = self.tx.clone();
        self.tasks.spawn(async move {
            let stopped = steps::container::stop(&snapshot, &spec, id, signal, kind).await;
            let container = spec.name;
            let event = match (kind, stopped) {
                // One that was asked in vain is killed when its time is over.
                (StopKind::Ask { .. }, _) => Event::Asked { container, attempt },
                (StopKind::Kill, Err(message)) => Event::KillFailed { container, attempt, message },
                (StopKind::Kill, Ok(())) => return,
            };
            drop(tx.send(Message::Event(event)).await);
        });
    }

    fn id_of(&self, container: &str, attempt: u32) -> Option<String> {
        self.ids.iter().find(|(_, (c, a))| c == container && *a == attempt).map(|(id, _)| id.clone())
    }

    pub(super) fn start_probe(&mut self, container: &str, attempt: u32, kind: ProbeKind) {
        let (Some(id), Some(spec)) = (self.id_of(container, attempt), self.container(container)) else { return };
        let running = self.machine.running().find(|(c, a)| c.plan.name == container && *a == attempt);
        let run = probe::Run {
            id,
            attempt,
            since: running.and_then(|(c, _)| match c.state {
                State::Running { since } => Some(since),
                _ => None,
            }),
            ready: running.is_some_and(|(c, _)| c.ready()),
        };
        let snapshot = self.snapshot();
        let task = self.tasks.spawn(probe::run(snapshot, spec, run, kind));
        self.probes.entry(container.to_owned()).or_default().push((kind, task));
    }

    /// A Pod that is over must not run once more because a power cut took the word of its end.
    fn keep_end(&mut self) {
        let (keeper, label) = (self.keeper.clone(), self.label());
        self.tasks.spawn(async move {
            if let Err(error) = keeper.keep_state().await {
                tracing::error!(pod = %label, %error, "cannot keep the Pod's end: after a power cut it may run once more");
            }
        });
    }

    fn cleanup(&mut self, keep_logs: bool) {
        for task in [self.refresher.take(), self.events.take()].into_iter().flatten() {
            task.abort();
        }
        let keeper = self.keeper.clone();
        self.step(move |s| {
            Box::pin(async move {
                if !keep_logs {
                    keeper.close().await;
                }
                steps::sandbox::cleanup(s, keep_logs).await
            })
        });
    }
}
