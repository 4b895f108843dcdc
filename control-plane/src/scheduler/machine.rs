//! The scheduler's state machine; see the module above for its diagram.
//!
//! Costs, N nodes, W waiting Pods: a changed Pod or Node O(log n); one Pod scheduled O(N), of
//! which at most [`feasible_limit`] are scored; a node that changed in favour of Pods O(W).

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};

use super::explain::explain;
use super::filter;
use super::node::{NodeInfo, Offer};
use super::pod::{PodInfo, PodKey};
use super::score::{Score, score};
use crate::controllers::object::Item;

/// After nodes changed, how long until the words about waiting Pods are brought up to date:
/// long enough for a burst of changes to count once.
const RETELL_AFTER: Duration = Duration::from_secs(1);
/// Waiting Pods whose words are brought up to date at a time.
const RETELL_BATCH: usize = 200;

/// Words about waiting Pods are written at once for this many Pods …
const WORDS_AT_ONCE: usize = 200;
/// … and then for this many …
const WORDS_A_LUMP: usize = 20;
/// … each of these: 100 a second, twice what Kubernetes' scheduler may send (50 a second, all its
/// writes together). A flood of Pods that fit nowhere shall not triple its own writes.
const LUMP_EVERY: Duration = Duration::from_millis(200);

/// How many words may be written now.
#[derive(Debug, Default)]
struct Words {
    used: usize,
    /// When the next lump is given back; `None`: nothing is used.
    lump_at: Option<Instant>,
}

impl Words {
    fn left(&self, now: Instant) -> usize {
        let lumps = match self.lump_at {
            Some(at) if at <= now => 1 + (now - at).as_millis() / LUMP_EVERY.as_millis(),
            _ => 0,
        };
        let given_back = usize::try_from(lumps).unwrap_or(usize::MAX).saturating_mul(WORDS_A_LUMP);
        WORDS_AT_ONCE - self.used.saturating_sub(given_back)
    }

    fn take(&mut self, now: Instant) -> bool {
        let left = self.left(now);
        if left == 0 {
            return false;
        }
        self.used = WORDS_AT_ONCE - left + 1;
        if self.lump_at.is_none_or(|at| at <= now) {
            self.lump_at = Some(now + LUMP_EVERY);
        }
        true
    }
}

/// What the machine wants written.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Bind it. The machine counts it as bound until [`Scheduler::bind_failed`].
    Bind {
        /// The Pod.
        pod: Arc<PodInfo>,
        /// The node.
        node: Arc<str>,
    },
    /// Say why it waits.
    Unschedulable {
        /// The Pod.
        pod: Arc<PodInfo>,
        /// Kubernetes' words.
        message: String,
    },
}

/// Orders Pods that want a node: the more important first, then the one that came first.
type Turn = (Reverse<i32>, u64, PodKey);

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Not this scheduler's business.
    Idle,
    /// In `active`.
    Active(u64),
    /// In `waiting`; the words that were decided last.
    Waiting(u64, Arc<str>),
    /// Counted on a node, not yet seen there.
    Assumed(u64, Arc<str>),
    /// Seen bound, counted on the node.
    Placed(Arc<str>),
}

#[derive(Debug)]
struct Entry {
    info: Arc<PodInfo>,
    state: State,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Scheduler {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, usize>,
    pods: HashMap<PodKey, Entry>,
    active: BTreeSet<Turn>,
    waiting: BTreeSet<Turn>,
    /// Nodes that changed in favour of waiting Pods.
    better: BTreeSet<Arc<str>>,
    retell_at: Option<Instant>,
    retell: VecDeque<PodKey>,
    words: Words,
    sequence: u64,
    /// Where the search for nodes begins: equal nodes take turns.
    rotation: usize,
}

impl Scheduler {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A Pod changed; `None`: it is gone.
    pub fn pod_changed(&mut self, key: &PodKey, item: Option<&Arc<Item<Pod>>>, now: Instant) {
        let info = item.map(|i| Arc::new(PodInfo::new(i)));
        let old = self.pods.remove(key);
        let Some(info) = info else {
            if let Some(entry) = old {
                self.leave(&entry);
            }
            return;
        };
        let state = match old {
            // The same Pod, still without node: keep its turn, its words, its assumed node.
            Some(entry) if entry.info.uid == info.uid && info.pending => self.still_pending(entry, &info),
            old => {
                if let Some(entry) = &old {
                    self.leave(entry);
                }
                self.enter(&info)
            }
        };
        if matches!(state, State::Active(_)) && self.nodes.is_empty() {
            self.retell_at.get_or_insert(now + RETELL_AFTER);
        }
        self.pods.insert(key.clone(), Entry { info, state });
    }

    /// A Node changed; `None`: it is gone.
    pub fn node_changed(&mut self, name: &Arc<str>, node: Option<&Node>, now: Instant) {
        let offer = node.map(Offer::read);
        let index = match self.by_name.get(name) {
            Some(i) => *i,
            None if offer.is_none() => return,
            None => self.new_node(name),
        };
        if self.nodes[index].offer == offer {
            return;
        }
        if offer.is_some() {
            self.better.insert(name.clone());
        }
        self.nodes[index].offer = offer;
        self.forget_if_empty(name);
        if !self.waiting.is_empty() {
            self.retell_at.get_or_insert(now + RETELL_AFTER);
        }
    }

    /// Decides about at most `max` Pods.
    pub fn schedule(&mut self, max: usize, now: Instant) -> Vec<Decision> {
        let mut out = Vec::new();
        self.retry_waiting(max, &mut out, now);
        let mut looked = 0;
        while out.len() < max
            && looked < max
            && let Some((priority, seq, key)) = self.active.pop_first()
        {
            looked += 1;
            let Some(info) = self.pods.get(&key).map(|e| e.info.clone()) else { continue };
            if let Some(index) = self.choose(&info) {
                out.push(self.assume(info, seq, index));
                continue;
            }
            self.waiting.insert((priority, seq, key.clone()));
            if !self.words.take(now) {
                self.set_state(&key, State::Waiting(seq, Arc::from("")));
                self.retell.push_back(key);
                continue;
            }
            let message = explain(&info, self.nodes.iter());
            self.set_state(&key, State::Waiting(seq, Arc::from(message.as_str())));
            out.push(Decision::Unschedulable { pod: info, message });
        }
        self.tell_again(max, now, &mut out);
        out
    }

    /// Whether [`Scheduler::schedule`] has something to decide now.
    pub fn has_work(&self, now: Instant) -> bool {
        !self.active.is_empty()
            || (!self.better.is_empty() && !self.waiting.is_empty())
            || (!self.retell.is_empty() && self.words.left(now) > 0)
            || (self.retell_at.is_some_and(|t| t <= now) && !self.waiting.is_empty())
    }

    /// When it will have something to decide by time alone.
    pub fn next_deadline(&self) -> Option<Instant> {
        let words = if self.retell.is_empty() { None } else { self.words.lump_at };
        let retell = if self.waiting.is_empty() { None } else { self.retell_at };
        words.into_iter().chain(retell).min()
    }

    /// A binding was not written: the Pod's turn comes again. `stale`: the version that turned
    /// out to be old; the Pod then waits for the newer one, which the cache is about to bring.
    pub fn bind_failed(&mut self, key: &PodKey, stale: Option<u64>) {
        let Some(entry) = self.pods.get(key) else { return };
        let State::Assumed(seq, node) = entry.state.clone() else { return };
        let info = entry.info.clone();
        self.unaccount(&node, &info);
        if stale == Some(info.item.revision) {
            self.set_state(key, State::Idle);
        } else {
            self.active.insert((Reverse(info.priority), seq, key.clone()));
            self.set_state(key, State::Active(seq));
        }
    }

    /// The words about a waiting Pod were not written: decide them again.
    pub fn words_failed(&mut self, key: &PodKey) {
        if let Some(entry) = self.pods.get_mut(key)
            && let State::Waiting(_, told) = &mut entry.state
        {
            *told = Arc::from("");
            self.retell.push_back(key.clone());
        }
    }

    /// Pods without a node that fits.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether this Pod is one of them.
    pub fn is_waiting(&self, key: &PodKey) -> bool {
        self.pods.get(key).is_some_and(|e| matches!(e.state, State::Waiting(..)))
    }

    /// A node's account, for tests and metrics.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).and_then(|i| self.nodes.get(*i))
    }

    fn still_pending(&mut self, entry: Entry, info: &Arc<PodInfo>) -> State {
        let same = entry.info.same_needs(info);
        match entry.state {
            // Its binding was made from an older version and will be refused; until then the
            // account holds what was assumed.
            State::Assumed(seq, node) => {
                if !same {
                    self.unaccount(&node, &entry.info);
                    self.account(&node, info);
                }
                State::Assumed(seq, node)
            }
            state @ (State::Active(_) | State::Waiting(..)) if same => state,
            _ => {
                self.leave(&entry);
                self.enter(info)
            }
        }
    }

    fn enter(&mut self, info: &Arc<PodInfo>) -> State {
        if info.pending {
            self.sequence += 1;
            self.active.insert((Reverse(info.priority), self.sequence, info.key.clone()));
            return State::Active(self.sequence);
        }
        match &info.node {
            Some(node) if info.counts => {
                self.account(node, info);
                State::Placed(node.clone())
            }
            _ => State::Idle,
        }
    }

    fn leave(&mut self, entry: &Entry) {
        let turn = |seq: u64| (Reverse(entry.info.priority), seq, entry.info.key.clone());
        match &entry.state {
            State::Idle => {}
            State::Active(seq) => {
                self.active.remove(&turn(*seq));
            }
            State::Waiting(seq, _) => {
                self.waiting.remove(&turn(*seq));
            }
            State::Assumed(_, node) | State::Placed(node) => {
                let node = node.clone();
                self.unaccount(&node, &entry.info);
            }
        }
    }

    fn retry_waiting(&mut self, max: usize, out: &mut Vec<Decision>, now: Instant) {
        if self.better.is_empty() || self.waiting.is_empty() {
            self.better.clear();
            return;
        }
        let candidates: Vec<usize> = self.better.iter().filter_map(|n| self.by_name.get(n).copied()).collect();
        let turns: Vec<Turn> = self.waiting.iter().cloned().collect();
        for turn in turns {
            if out.len() >= max {
                // The rest has its turn in the next call: `better` stays.
                return;
            }
            let Some(info) = self.pods.get(&turn.2).map(|e| e.info.clone()) else { continue };
            let best = candidates
                .iter()
                .filter(|i| filter::fits(&info, &self.nodes[**i]))
                .min_by_key(|i| score(&info, &self.nodes[**i]));
            if let Some(index) = best.copied() {
                self.waiting.remove(&turn);
                out.push(self.assume(info, turn.1, index));
            }
        }
        self.better.clear();
        if !self.waiting.is_empty() {
            self.retell_at.get_or_insert(now + RETELL_AFTER);
        }
    }

    fn tell_again(&mut self, max: usize, now: Instant, out: &mut Vec<Decision>) {
        if self.retell_at.is_some_and(|t| t <= now) {
            self.retell_at = None;
            self.retell = self.waiting.iter().map(|(_, _, k)| k.clone()).collect();
        }
        let room = max.saturating_sub(out.len()).min(RETELL_BATCH);
        for _ in 0..room {
            if self.words.left(now) == 0 {
                return;
            }
            let Some(key) = self.retell.pop_front() else { return };
            let Some(entry) = self.pods.get(&key) else { continue };
            let State::Waiting(seq, told) = &entry.state else { continue };
            let (seq, info) = (*seq, entry.info.clone());
            let message = explain(&info, self.nodes.iter());
            if **told != *message {
                self.words.take(now);
                self.set_state(&key, State::Waiting(seq, Arc::from(message.as_str())));
                out.push(Decision::Unschedulable { pod: info, message });
            }
        }
    }

    /// The best node of a rotating sample.
    fn choose(&mut self, pod: &PodInfo) -> Option<usize> {
        let n = self.nodes.len();
        if n == 0 {
            return None;
        }
        let start = self.rotation % n;
        self.rotation = self.rotation.wrapping_add(1);
        let limit = feasible_limit(n);
        let mut best: Option<(Score, usize)> = None;
        let mut found = 0;
        for step in 0..n {
            let index = (start + step) % n;
            if !filter::fits(pod, &self.nodes[index]) {
                continue;
            }
            let s = score(pod, &self.nodes[index]);
            if best.is_none_or(|(b, _)| s < b) {
                best = Some((s, index));
            }
            found += 1;
            if found == limit {
                self.rotation = self.rotation.wrapping_add(step);
                break;
            }
        }
        best.map(|(_, i)| i)
    }

    fn assume(&mut self, pod: Arc<PodInfo>, seq: u64, index: usize) -> Decision {
        let node = self.nodes[index].name.clone();
        self.nodes[index].add(&pod);
        self.set_state(&pod.key, State::Assumed(seq, node.clone()));
        Decision::Bind { pod, node }
    }

    fn account(&mut self, node: &Arc<str>, pod: &PodInfo) {
        let index = match self.by_name.get(node) {
            Some(i) => *i,
            None => self.new_node(node),
        };
        self.nodes[index].add(pod);
    }

    fn unaccount(&mut self, node: &Arc<str>, pod: &PodInfo) {
        if let Some(i) = self.by_name.get(node).copied() {
            self.nodes[i].remove(pod);
            self.better.insert(node.clone());
            self.forget_if_empty(node);
        }
    }

    fn new_node(&mut self, name: &Arc<str>) -> usize {
        self.nodes.push(NodeInfo::new(name.clone()));
        self.by_name.insert(name.clone(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn forget_if_empty(&mut self, name: &str) {
        let Some(index) = self.by_name.get(name).copied() else { return };
        if self.nodes[index].offer.is_some() || self.nodes[index].pods > 0 {
            return;
        }
        self.by_name.remove(name);
        self.better.remove(name);
        self.nodes.swap_remove(index);
        if let Some(moved) = self.nodes.get(index) {
            self.by_name.insert(moved.name.clone(), index);
        }
    }

    fn set_state(&mut self, key: &PodKey, state: State) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.state = state;
        }
    }
}

/// How many nodes that fit are enough: all of up to 100, of more a share that shrinks to 5 %
/// (Kubernetes' percentageOfNodesToScore).
pub fn feasible_limit(nodes: usize) -> usize {
    if nodes <= 100 {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(100)
}
