//! The scheduler's part of the engine: its decisions as transactions, of a size that the store takes,
//! and what becomes of them.

use super::{Engine, Job};
use crate::controllers::object::{Note, Now, TRANSACTION_BYTES};
use crate::controllers::work::Origin;
use crate::controllers::writer::{WriteError, Written};
use crate::scheduler::pod::PodKey;
use crate::scheduler::{Decision, write as scheduling};

/// Bindings in one transaction.
pub(super) const BIND_BATCH: usize = 128;
/// Transactions of bindings on their way at a time.
pub(super) const MAX_BIND_JOBS: usize = 4;

impl Engine {
    /// Decides while there is something to decide, and room for it on its way.
    pub(super) fn schedule(&mut self, now: &Now, jobs: &mut Vec<Job>) {
        while self.binds_in_flight < MAX_BIND_JOBS && !self.words_in_flight && self.scheduler.has_work(now.mono) {
            let decisions = self.scheduler.schedule(self.bind_batch, now.mono);
            let (mut binds, mut words) = (Vec::new(), Vec::new());
            let (mut bind_bytes, mut word_bytes) = (0, 0);
            let (mut bind_writes, mut bind_notes) = (Vec::new(), Vec::new());
            let (mut word_writes, mut word_notes) = (Vec::new(), Vec::new());
            for decision in decisions {
                match decision {
                    // What does not fit the transaction has its turn in the next one.
                    Decision::Bind { pod, .. } if bind_bytes >= TRANSACTION_BYTES => {
                        self.scheduler.bind_failed(&pod.key, None);
                    }
                    Decision::Unschedulable { pod, .. } if word_bytes >= TRANSACTION_BYTES => {
                        self.scheduler.words_failed(&pod.key);
                    }
                    Decision::Bind { pod, node } => {
                        let (write, note) = scheduling::bind(&pod, &node, now);
                        bind_bytes += write.weight();
                        binds.push((pod.key.clone(), pod.item.revision));
                        bind_writes.push(write);
                        bind_notes.push(note);
                    }
                    Decision::Unschedulable { pod, message } => {
                        let Some((write, note)) = scheduling::unschedulable(&pod.item, &message, now) else { continue };
                        word_bytes += write.weight();
                        words.push(pod.key.clone());
                        word_writes.push(write);
                        word_notes.push(note);
                    }
                }
            }
            if !binds.is_empty() {
                self.binds_in_flight += 1;
                self.fly(Origin::Binds(binds), bind_writes, bind_notes, jobs);
            }
            if !words.is_empty() {
                self.words_in_flight = true;
                self.fly(Origin::Words(words), word_writes, word_notes, jobs);
            }
        }
    }

    /// What became of bindings.
    pub(super) fn binds_done(&mut self, pods: &[(PodKey, u64)], notes: Vec<Note>, written: &Written) {
        self.note_fence(written);
        let stale = match written {
            Written::Done(_) => {
                self.grow_batch();
                self.recorder.tell(notes);
                return;
            }
            Written::Conflict(at, _) => Some(*at),
            Written::Failed(WriteError::NotCommitted { .. }) | Written::Fenced => None,
            Written::Failed(error @ WriteError::TooLarge { .. }) => {
                tracing::warn!(%error, "bindings failed");
                self.bind_batch = (pods.len() / 2).max(1);
                // Alone it will never fit: it waits for a smaller version.
                (pods.len() == 1).then_some(0)
            }
            Written::Failed(error) => {
                tracing::warn!(%error, "bindings failed");
                None
            }
        };
        for (i, (key, revision)) in pods.iter().enumerate() {
            self.scheduler.bind_failed(key, (stale == Some(i)).then_some(*revision));
        }
    }

    /// What became of the words about Pods that wait.
    pub(super) fn words_done(&mut self, pods: &[PodKey], notes: Vec<Note>, written: &Written) {
        self.note_fence(written);
        match written {
            Written::Done(_) => {
                self.grow_batch();
                self.recorder.tell(notes);
                return;
            }
            Written::Failed(error @ WriteError::TooLarge { .. }) => {
                tracing::warn!(%error, "why Pods wait is not written");
                self.bind_batch = (pods.len() / 2).max(1);
                if pods.len() == 1 {
                    return;
                }
            }
            _ => {}
        }
        pods.iter().for_each(|p| self.scheduler.words_failed(p));
    }

    fn grow_batch(&mut self) {
        self.bind_batch = (self.bind_batch * 2).min(BIND_BATCH);
    }
}
