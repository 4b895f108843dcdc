//! The task that runs the engine while this member leads.
//!
//! It moves messages: the store's watch, leases and gossip into the engine; its jobs to the
//! writer; results back. It ends at once when leadership does: jobs on their way are dropped,
//! and what of them still reaches the log is refused there, since it is fenced by the term.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trellis_model::Kind;

use super::cache::CacheError;
use super::engine::{Config, Engine, Job};
use super::node::cidr::NEXT;
use super::object::Now;
use super::writer::{ClusterWriter, WriteError, Written, count_of};
use crate::nodes::verdict::Signals;
use crate::nodes::{NodeRegistry, SharedGossip};
use crate::raft::Leadership;
use crate::store::{Compacted, Store, WatchBatch, WatchFilter, Watcher};

/// Leases are looked at this often at least, so that strangers' are forgotten.
const LOOK_AT_LEASES_EVERY: Duration = Duration::from_secs(5);
/// Objects decoded in one turn, some milliseconds: heartbeats may share the thread, and a new leader
/// that sends none is soon none.
const LOADS_A_TURN: usize = 256;
/// A member that could not start leading tries again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What the controllers stand on.
#[derive(Clone)]
pub struct Controllers {
    /// This member's store.
    pub store: Store,
    /// Commits transactions.
    pub writer: Arc<dyn ClusterWriter>,
    /// Who leads.
    pub leadership: watch::Receiver<Leadership>,
    /// Agents' leases.
    pub registry: NodeRegistry,
    /// The local netd's membership view.
    pub gossip: SharedGossip,
}

/// Runs until `stop`: the controllers while this member leads, nothing while it does not.
/// `config` is asked again and again, since it is kept in the store: at first it is not seeded.
pub async fn run(controllers: Controllers, config: impl Fn(&Store) -> Config + Send + Sync, stop: CancellationToken) {
    let mut leadership = controllers.leadership.clone();
    loop {
        let now = leadership.borrow_and_update().clone();
        if now.is_leader {
            controllers.registry.begin(now.term);
            tracing::info!(term = now.term, "leading: controllers start");
            let ended = {
                let leading = controllers.lead(now.term, &config);
                tokio::select! {
                    () = stop.cancelled() => true,
                    () = until_over(&mut leadership, now.term) => false,
                    () = leading => false,
                }
            };
            controllers.registry.end();
            tracing::info!(term = now.term, "controllers stopped");
            if ended {
                return;
            }
            // Fenced although raft has not told yet: do not spin until it does.
            tokio::time::sleep(RETRY_AFTER).await;
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

async fn until_over(leadership: &mut watch::Receiver<Leadership>, term: u64) {
    // An error means that raft has stopped: so has leadership.
    let _ = leadership.wait_for(|l| !l.is_leader || l.term != term).await;
}

/// One leader's term.
struct Session<'a> {
    base: &'a Controllers,
    config: &'a (dyn Fn(&Store) -> Config + Send + Sync),
    term: u64,
    engine: Engine,
    jobs: JoinSet<(u64, Written)>,
}

impl Controllers {
    /// Leads until the term is over; a watch that fell behind starts over from a list.
    async fn lead(&self, term: u64, config: &(dyn Fn(&Store) -> Config + Send + Sync)) {
        loop {
            let now = Now::read();
            let engine = Engine::new(config(&self.store), term, rand::rng().next_u64(), &now);
            let mut session = Session { base: self, config, term, engine, jobs: JoinSet::new() };
            match session.run().await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "controllers list everything again"),
            }
        }
    }
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), Compacted> {
        let mut watcher = self.list().await?;
        let mut gossip = self.base.gossip.subscribe();
        let mut look = Instant::now();
        loop {
            if Instant::now() >= look {
                self.look_at_nodes();
                look = Instant::now() + LOOK_AT_LEASES_EVERY;
            }
            let now = Now::read();
            for job in self.engine.poll(&now) {
                self.commit(job);
            }
            if self.engine.fenced() {
                return Ok(());
            }
            if let Some(at) = self.engine.next_assessment(&now) {
                look = look.min(at.into());
            }
            if self.engine.is_behind() {
                tokio::task::yield_now().await;
            }
            let wake = self.engine.next_deadline(&now).map_or(look, |at| look.min(at.into()));
            tokio::select! {
                batch = watcher.next() => self.take(&batch?),
                Some(done) = self.jobs.join_next() => self.finished(done),
                () = self.base.registry.news() => look = Instant::now(),
                _ = gossip.changed() => look = Instant::now(),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Subscribes, then lists: both of the same revision.
    async fn list(&mut self) -> Result<Watcher, Compacted> {
        let now = Now::read();
        // Owners before dependents, Namespaces and Nodes before all.
        let kinds: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
        let (lists, revision) = self.base.store.list_kinds(&kinds);
        let watcher = self.base.store.watch(WatchFilter::kinds(kinds), revision)?;
        let objects = lists.iter().map(Vec::len).sum::<usize>();
        for (i, object) in lists.iter().flatten().enumerate() {
            if i % LOADS_A_TURN == LOADS_A_TURN - 1 {
                tokio::task::yield_now().await;
            }
            complain(self.engine.load(&object.key, object.revision, &object.object, &now));
        }
        let given = self.base.store.sys_get(NEXT).map_or(0, |v| count_of(&v.value));
        self.engine.resume_cidrs(given, &now);
        self.engine.on_revision(revision);
        tracing::info!(term = self.term, objects, revision, "controllers hold the whole state");
        Ok(watcher)
    }

    fn take(&mut self, batch: &WatchBatch) {
        let now = Now::read();
        for event in &batch.events {
            complain(self.engine.on_event(event, &now));
        }
        self.engine.on_revision(batch.revision);
        if self.engine.lacks_ranges() {
            self.engine.set_config((self.config)(&self.base.store));
        }
    }

    fn look_at_nodes(&mut self) {
        self.engine.set_config((self.config)(&self.base.store));
        let names: Vec<Arc<str>> = self.engine.cache().nodes.iter().map(|n| Arc::from(n.name())).collect();
        self.base.registry.adopt(names.iter());
        let gossip = self.base.gossip.current().view;
        self.engine.on_reach(self.base.registry.reach());
        self.engine.on_signals(Signals { renewed: self.base.registry.renewals(), gossip });
    }

    fn commit(&mut self, job: Job) {
        let (writer, term) = (self.base.writer.clone(), self.term);
        self.jobs.spawn(async move { (job.id, writer.commit(job.writes, term).await) });
    }

    fn finished(&mut self, done: Result<(u64, Written), tokio::task::JoinError>) {
        match done {
            Ok((id, written)) => {
                if let Written::Failed(WriteError::NotCommitted { source, .. }) = &written {
                    tracing::debug!(error = %source, "a transaction was not committed");
                }
                self.engine.on_done(id, written, &Now::read());
            }
            // A panic in the writer would leave its key in flight for ever.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
}

fn complain(result: Result<(), CacheError>) {
    if let Err(error) = result {
        tracing::error!(%error, "an object is left out");
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
