//! Phase and conditions, derived from the containers' states as the kubelet derives them.
use super::{super::plan::Role, DownStep, Machine, Record, State, Then, advance::restarts};
use jiff::Timestamp;

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Something has not been started yet.
    Pending,
    /// All have been started; at least one runs or will run again.
    Running,
    /// All ended well, for good.
    Succeeded,
    /// All ended, at least one badly.
    Failed,
}

impl Phase {
    /// As Kubernetes writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// One of `status.conditions`, without its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// "True" or "False".
    pub status: bool,
    /// Why it is not True; empty otherwise.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When `status` last changed.
    pub since: Timestamp,
}

impl Machine {
    /// The Pod's phase.
    pub fn phase(&self) -> Phase {
        let going = self.ending.as_ref().is_some_and(|e| e.then >= Then::Keep);
        if self.deadline_exceeded || self.init_failed() {
            return Phase::Failed;
        }
        let mains: Vec<&Record> = self.containers.iter().filter(|c| c.plan.role == Role::Main).collect();
        let stopped = self.ending.as_ref().is_some_and(|e| e.down != DownStep::Stop);
        let policy = self.plan.restart;
        let ended_for_good = mains.iter().all(|c| match &c.state {
            State::Ended(e) => going || !restarts(c, e, policy),
            State::Waiting { .. } => going && stopped && c.last.is_some(),
            _ => false,
        });
        if ended_for_good {
            let failed = mains.iter().any(|c| match &c.state {
                State::Ended(e) => e.exit.code != 0,
                _ => c.last.as_ref().is_some_and(|e| e.exit.code != 0),
            });
            return if failed { Phase::Failed } else { Phase::Succeeded };
        }
        let started = mains.iter().all(|c| match &c.state {
            State::Running { .. } | State::Ended(_) => true,
            State::Waiting { .. } | State::Starting => c.last.is_some(),
        });
        match (started && self.initialized, going && stopped) {
            (true, _) => Phase::Running,
            // Deleted before it ever ran.
            (false, true) => Phase::Failed,
            (false, false) => Phase::Pending,
        }
    }

    /// Nothing of the Pod will run again, by its restart policy or its deadline.
    pub(super) fn is_finished(&self) -> bool {
        let policy = self.plan.restart;
        if self.deadline_exceeded || self.init_failed() {
            return true;
        }
        let mut mains = self.containers.iter().filter(|c| c.plan.role == Role::Main).peekable();
        mains.peek().is_some() && mains.all(|c| matches!(&c.state, State::Ended(e) if !restarts(c, e, policy)))
    }

    fn init_failed(&self) -> bool {
        let policy = self.plan.restart;
        !self.initialized
            && self
                .containers
                .iter()
                .filter(|c| c.plan.role == Role::Init)
                .any(|c| matches!(&c.state, State::Ended(e) if e.exit.code != 0 && !restarts(c, e, policy)))
    }

    /// All init containers have done their work.
    pub fn initialized(&self) -> bool {
        self.initialized
    }

    /// The sandbox stands and its network has been acknowledged.
    pub fn sandbox_ready(&self) -> bool {
        self.sandbox.is_done() && (self.plan.host_network || self.attached)
    }

    /// Everything local is over, the object may go (or stay, if finished).
    pub fn is_kept(&self) -> bool {
        self.ending.as_ref().is_some_and(|e| e.down == DownStep::Kept)
    }

    /// The Pod is on its way out of the API.
    pub fn is_removing(&self) -> bool {
        self.ending.as_ref().is_some_and(|e| e.then == Then::Remove)
    }

    /// It is being stopped, taken down, or has been.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn update_conditions(&mut self, now: Timestamp) {
        let phase = self.phase();
        let over = matches!(phase, Phase::Succeeded | Phase::Failed);
        let sandbox = self.sandbox_ready() && !self.is_kept();
        self.condition("PodReadyToStartContainers", sandbox, "", String::new(), now);
        let completed = if phase == Phase::Succeeded { "PodCompleted" } else { "" };
        let uninit: Vec<String> = self
            .unready(|c| {
                c.plan.role == Role::Init && !matches!(&c.state, State::Ended(e) if e.exit.code == 0)
                    || c.plan.role == Role::Sidecar && !c.started
            })
            .into_iter()
            .map(str::to_owned)
            .collect();
        let (reason, message) = if self.initialized {
            (completed, String::new())
        } else {
            ("ContainersNotInitialized", format!("containers with incomplete status: [{}]", uninit.join(" ")))
        };
        let message = if uninit.is_empty() { String::new() } else { message };
        let initialized = self.initialized || uninit.is_empty();
        let reason = if initialized && !self.initialized { "" } else { reason };
        self.condition("Initialized", initialized, reason, message, now);
        let unready: Vec<String> =
            self.unready(|c| c.plan.role != Role::Init && !c.ready()).into_iter().map(str::to_owned).collect();
        let ready = unready.is_empty() && !over && sandbox;
        let (reason, message) = match phase {
            _ if ready => ("", String::new()),
            Phase::Succeeded => ("PodCompleted", String::new()),
            Phase::Failed => ("PodFailed", String::new()),
            _ => ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
        };
        self.condition("ContainersReady", ready, reason, message.clone(), now);
        self.condition("Ready", ready, reason, message, now);
    }

    fn unready(&self, which: impl Fn(&Record) -> bool) -> Vec<&str> {
        self.containers.iter().filter(|c| which(c)).map(|c| c.plan.name.as_str()).collect()
    }

    fn condition(&mut self, kind: &'static str, status: bool, reason: &str, message: String, now: Timestamp) {
        let since = match self.conditions.get(kind) {
            Some(old) if old.status == status => old.since,
            _ => now,
        };
        self.conditions.insert(kind, Condition { status, reason: reason.to_owned(), message, since });
    }
}
