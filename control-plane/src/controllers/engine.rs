//! All controllers and the scheduler as one machine without I/O: changes and signals go in,
//! transactions come out, their results go in again.
//!
//! ```text
//!   watch ──on_event──> cache ──route──> queue ──poll: plan──> Job ──(driver commits)──┐
//!   leases, gossip ──on_signals──> assessor ──^                                         │
//!                                    ^─────────────────on_done──────────────────────────┘
//! ```
//!
//! The driver beside it ([`super::driver`]) only moves messages.

mod binding;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use binding::{BIND_BATCH, MAX_BIND_JOBS};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use trellis_model::Kind;

use super::cache::{Cache, CacheError};
use super::node::cidr::{CidrAllocator, PodRange};
use super::object::{Note, Now, ObjKey, Plan, TRANSACTION_BYTES, Write};
use super::pod_gc::PodGc;
use super::queue::Queue;
use super::recorder::Recorder;
use super::work::{Origin, Work};
use super::writer::{WriteError, Written};
use super::{dispatch, plans, retention};
use crate::nodes::Assessor;
use crate::nodes::reach::{Reach, Reports};
use crate::nodes::verdict::Signals;
use crate::scheduler::Scheduler;
use crate::store::{Event, Key, MAX_TRANSACTION_OPS, Stored};

/// Transactions of controllers on their way at a time: enough to fill one fsync, few enough
/// that a leader that is losing its majority does not pile them up.
const MAX_IN_FLIGHT: usize = 64;
/// Keys planned in one turn: a new leader has one for each object, and the member's other tasks,
/// heartbeats among them, may share its thread.
const PLANS_A_TURN: usize = 256;

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pod CIDRs and how they are cut into Nodes'.
    pub pod_ranges: Vec<PodRange>,
    /// How long Events are kept.
    pub event_ttl: Duration,
    /// How many Events are kept.
    pub max_events: usize,
    /// How many finished Pods are kept; Kubernetes' `--terminated-pod-gc-threshold`.
    pub max_finished_pods: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pod_ranges: Vec::new(),
            event_ttl: retention::EVENT_TTL,
            max_events: retention::MAX_EVENTS,
            max_finished_pods: 12_500,
        }
    }
}

/// One transaction to commit.
#[derive(Debug)]
pub struct Job {
    /// To be given back with the result.
    pub id: u64,
    /// All or nothing.
    pub writes: Vec<Write>,
}

struct Flight {
    origin: Origin,
    notes: Vec<Note>,
}

/// See the module.
pub struct Engine {
    pub(super) cache: Cache,
    pub(super) config: Config,
    pub(super) queue: Queue<Work>,
    pub(super) scheduler: Scheduler,
    pub(super) assessor: Assessor,
    pub(super) cidrs: CidrAllocator,
    pub(super) pod_gc: PodGc,
    pub(super) recorder: Recorder,
    /// When this leader first saw a NoExecute taint, by node, key and effect.
    pub(super) taints_seen: HashMap<Arc<str>, BTreeMap<(String, String), Instant>>,
    /// Since when this leader sees a Node not Ready.
    pub(super) not_ready: HashMap<Arc<str>, Instant>,
    pub(super) assess_due: bool,
    /// Whom each netd finds no route to.
    pub(super) reach: Reports,
    pub(super) rng: StdRng,
    flights: HashMap<u64, Flight>,
    next_id: u64,
    works_in_flight: usize,
    binds_in_flight: usize,
    words_in_flight: bool,
    events_in_flight: bool,
    fenced: bool,
    /// Decisions of the scheduler in one transaction: less than [`BIND_BATCH`] after one that was too large.
    bind_batch: usize,
    /// Writes in one transaction of a work whose last one was too large.
    shortened: HashMap<Work, usize>,
}

impl Engine {
    /// An engine for `term`. `seed` makes the names of Pods.
    pub fn new(config: Config, term: u64, seed: u64, now: &Now) -> Self {
        let mut queue = Queue::default();
        queue.add(Work::Retention);
        queue.add_at(Work::PodGc, now.mono + super::pod_gc::EVERY);
        Self {
            cidrs: CidrAllocator::new(config.pod_ranges.clone()),
            recorder: Recorder::new(format!("{term:x}{:08x}", seed as u32)),
            cache: Cache::default(),
            config,
            queue,
            scheduler: Scheduler::new(),
            assessor: Assessor::default(),
            pod_gc: PodGc::default(),
            taints_seen: HashMap::new(),
            not_ready: HashMap::new(),
            assess_due: true,
            reach: Reports::new(),
            rng: StdRng::seed_from_u64(seed),
            flights: HashMap::new(),
            next_id: 0,
            works_in_flight: 0,
            binds_in_flight: 0,
            words_in_flight: false,
            events_in_flight: false,
            fenced: false,
            bind_batch: BIND_BATCH,
            shortened: HashMap::new(),
        }
    }

    /// The cache, to be read.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The scheduler, to be read.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// A transaction was refused because the term is over: nothing more will succeed.
    pub fn fenced(&self) -> bool {
        self.fenced
    }

    /// What an operator set has changed.
    pub fn set_config(&mut self, config: Config) {
        if self.config.pod_ranges != config.pod_ranges {
            self.cidrs.set_ranges(config.pod_ranges.clone());
            for node in self.cache.nodes.iter() {
                self.queue.add(Work::Node(Arc::from(node.name())));
            }
        }
        self.config = config;
    }

    /// How far an earlier leader came in giving pod CIDRs.
    pub fn resume_cidrs(&mut self, next: u64, now: &Now) {
        self.cidrs.resume(next, now.mono);
    }

    /// Whether there is no pod CIDR to give: the cluster is not seeded yet.
    pub fn lacks_ranges(&self) -> bool {
        self.config.pod_ranges.is_empty()
    }

    /// One object of the first list.
    pub fn load(&mut self, key: &Key, revision: u64, object: &Stored, now: &Now) -> Result<(), CacheError> {
        if let Some(change) = self.cache.put(key, revision, Some(object))? {
            dispatch::changed(self, &change, now);
        }
        Ok(())
    }

    /// One change.
    pub fn on_event(&mut self, event: &Event, now: &Now) -> Result<(), CacheError> {
        if let Some(change) = self.cache.apply(event)? {
            dispatch::changed(self, &change, now);
        }
        Ok(())
    }

    /// Everything up to `revision` was given.
    pub fn on_revision(&mut self, revision: u64) {
        self.cache.set_revision(revision);
        self.queue.reached(revision);
    }

    /// Leases and gossip as they are now.
    pub fn on_signals(&mut self, signals: Signals) {
        self.assessor.set_signals(signals);
        self.assess_due = true;
    }

    /// What netds say of their routes, as it is now. Costs O(nodes).
    pub fn on_reach(&mut self, reach: Reports) {
        if reach == self.reach {
            return;
        }
        // A node's word also changes what is held of those who cannot reach it.
        let concerned = |name: &Arc<str>, r: &Reach| !r.unrouted.is_empty() || reach.get(name) != self.reach.get(name);
        let both = self.reach.iter().chain(&reach);
        let names: Vec<Arc<str>> = both.filter(|(name, r)| concerned(name, r)).map(|(name, _)| name.clone()).collect();
        names.into_iter().for_each(|name| self.queue.add(Work::Node(name)));
        self.reach = reach;
    }

    /// Whether the last turn left something that could be planned at once.
    pub fn is_behind(&self) -> bool {
        self.works_in_flight < MAX_IN_FLIGHT && !self.queue.is_empty()
    }

    /// Plans what is due, as much as one turn may. Never plans one key twice at a time.
    pub fn poll(&mut self, now: &Now) -> Vec<Job> {
        if self.assess_due || self.assessor.next_deadline(now.mono).is_some_and(|t| t <= now.mono) {
            self.assess_due = false;
            dispatch::assess(self, now);
        }
        let mut jobs = Vec::new();
        let mut planned = 0;
        while planned < PLANS_A_TURN
            && self.works_in_flight < MAX_IN_FLIGHT
            && let Some(work) = self.queue.pop(now.mono)
        {
            planned += 1;
            let plan = plans::plan(self, &work, now);
            self.start(work, plan, &mut jobs);
        }
        self.schedule(now, &mut jobs);
        self.record(now, &mut jobs);
        jobs
    }

    /// The result of a job.
    pub fn on_done(&mut self, id: u64, written: Written, now: &Now) {
        let Some(flight) = self.flights.remove(&id) else { return };
        match flight.origin {
            Origin::Work(work) => self.work_done(work, flight.notes, written, now),
            Origin::Binds(pods) => {
                self.binds_in_flight -= 1;
                self.binds_done(&pods, flight.notes, &written);
            }
            Origin::Words(pods) => {
                self.words_in_flight = false;
                self.words_done(&pods, flight.notes, &written);
            }
            Origin::Events => {
                self.events_in_flight = false;
                self.note_fence(&written);
                if let Written::Conflict(..) | Written::Failed(_) = written {
                    tracing::debug!(?written, "events were not recorded");
                }
            }
        }
    }

    /// When time alone gives it something to do.
    pub fn next_deadline(&self, now: &Now) -> Option<Instant> {
        let queue = if self.works_in_flight < MAX_IN_FLIGHT { self.queue.next_deadline(now.mono) } else { None };
        let mut all = [queue, self.assessor.next_deadline(now.mono), None];
        if !self.words_in_flight && self.binds_in_flight < MAX_BIND_JOBS {
            all[2] = self.scheduler.next_deadline();
        }
        all.into_iter().flatten().min()
    }

    /// When leases must be looked at again.
    pub fn next_assessment(&self, now: &Now) -> Option<Instant> {
        self.assessor.next_deadline(now.mono)
    }

    fn start(&mut self, work: Work, mut plan: Plan, jobs: &mut Vec<Job>) {
        if let Some(at) = plan.again_at {
            self.queue.add_at(work.clone(), at);
        }
        // A step of a rollout is one, or its bounds do not hold; its objects are few.
        if !matches!(work, Work::Deployment(_)) {
            plan.cut(self.shortened.get(&work).copied().unwrap_or(MAX_TRANSACTION_OPS), TRANSACTION_BYTES);
        }
        let acts = plan.writes.iter().any(|w| !w.is_check());
        if !acts || !self.guard_creations(&mut plan) {
            self.shortened.remove(&work);
            self.queue.done(&work, None, self.cache.revision());
            return;
        }
        self.works_in_flight += 1;
        self.fly(Origin::Work(work), plan.writes, plan.notes, jobs);
    }

    /// Nothing is created in a Namespace that is going: its revision is checked with the
    /// creation, so that it cannot begin to go in between either.
    fn guard_creations(&self, plan: &mut Plan) -> bool {
        let creates = plan.writes.iter().find_map(|w| match w {
            Write::Create(o) => Some(o.namespace().to_owned()),
            _ => None,
        });
        let Some(name) = creates else { return true };
        let Some(namespace) = self.cache.namespaces.get("", &name).filter(|n| !n.deleting()) else { return false };
        let key = ObjKey::new(Kind::Namespace, "", name);
        plan.writes.push(Write::Check { key, revision: namespace.revision });
        true
    }

    fn record(&mut self, now: &Now, jobs: &mut Vec<Job>) {
        if self.events_in_flight || self.recorder.is_empty() {
            return;
        }
        let cache = &self.cache;
        let open = |ns: &str| cache.namespaces.get("", ns).is_some_and(|n| !n.deleting());
        let writes = self.recorder.batch(now, open);
        if !writes.is_empty() {
            self.events_in_flight = true;
            self.fly(Origin::Events, writes, Vec::new(), jobs);
        }
    }

    fn fly(&mut self, origin: Origin, writes: Vec<Write>, notes: Vec<Note>, jobs: &mut Vec<Job>) {
        self.next_id += 1;
        self.flights.insert(self.next_id, Flight { origin, notes });
        jobs.push(Job { id: self.next_id, writes });
    }

    fn work_done(&mut self, work: Work, notes: Vec<Note>, written: Written, now: &Now) {
        self.works_in_flight -= 1;
        self.note_fence(&written);
        match written {
            Written::Done(revision) => {
                self.lengthen(&work);
                self.recorder.tell(notes);
                // What was too much for one transaction goes on; else the next plan is empty.
                self.queue.add(work.clone());
                self.queue.done(&work, Some(revision), self.cache.revision());
            }
            Written::Conflict(write, why) => {
                tracing::debug!(?work, write, %why, "planned from an older state: again");
                self.queue.failed(&work, now.mono);
            }
            Written::Fenced => self.queue.failed(&work, now.mono),
            Written::Failed(error) => {
                if let WriteError::TooLarge { writes, .. } = &error {
                    self.shortened.insert(work.clone(), (writes / 2).max(1));
                }
                tracing::warn!(?work, %error, "a transaction failed");
                self.recorder.tell(plans::failure_note(self, &work, &error));
                self.queue.failed(&work, now.mono);
            }
        }
    }

    /// What was too large is halved until it fits, and doubled again while it does.
    fn lengthen(&mut self, work: &Work) {
        if let Some(count) = self.shortened.get_mut(work) {
            *count *= 2;
            if *count >= MAX_TRANSACTION_OPS {
                self.shortened.remove(work);
            }
        }
    }

    fn note_fence(&mut self, written: &Written) {
        self.fenced |= matches!(written, Written::Fenced);
    }

    pub(super) fn random(&mut self) -> u64 {
        self.rng.random()
    }
}
