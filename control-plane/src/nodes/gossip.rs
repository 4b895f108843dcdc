//! What gossip says, as the local netd last told it.
//!
//! netd streams whole views (level, not edge); a view holds as long as the stream does. A view
//! whose observer doubts itself (Lifeguard) still says who is alive, but nobody is dead in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

/// What one observer says of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Answers probes, or is only suspected: a suspicion is not a verdict.
    Alive,
    /// Declared dead by an observer that trusts itself.
    Dead,
    /// Not in the view, or the view is gone.
    Unknown,
}

/// One membership view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GossipView {
    /// Declared state by node name: true means dead.
    pub dead: BTreeMap<Arc<str>, bool>,
    /// The observer trusts itself.
    pub healthy: bool,
}

impl GossipView {
    /// What this view says of `node`.
    pub fn liveness(&self, node: &str) -> Liveness {
        match self.dead.get(node) {
            Some(true) if self.healthy => Liveness::Dead,
            Some(true) | None => Liveness::Unknown,
            Some(false) => Liveness::Alive,
        }
    }
}

/// State of the subscription.
#[derive(Debug, Clone, Default)]
pub struct Subscription {
    /// The last view while the stream is up.
    pub view: Option<Arc<GossipView>>,
    /// Since when there is no view; `None` while there is one.
    pub lost_at: Option<Instant>,
    /// Whether this machine ever had a netd that answered: a machine without one is not ill.
    pub seen_netd: bool,
}

impl Subscription {
    /// Whether the view may be acted on.
    pub fn fresh(&self) -> bool {
        self.view.as_ref().is_some_and(|v| v.healthy)
    }
}

/// The subscription's state, shared between its task and its readers.
#[derive(Debug, Clone)]
pub struct SharedGossip {
    state: Arc<watch::Sender<Subscription>>,
}

impl Default for SharedGossip {
    fn default() -> Self {
        let nothing = Subscription { lost_at: Some(Instant::now()), ..Subscription::default() };
        Self { state: Arc::new(watch::Sender::new(nothing)) }
    }
}

impl SharedGossip {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state now; cheap (an Arc and three words).
    pub fn current(&self) -> Subscription {
        self.state.borrow().clone()
    }

    /// A view arrived.
    pub fn publish(&self, view: GossipView) {
        let view = Some(Arc::new(view));
        self.state.send_replace(Subscription { view, lost_at: None, seen_netd: true });
    }

    /// The stream ended.
    pub fn lost(&self, now: Instant) {
        self.state.send_if_modified(|s| {
            let news = s.view.take().is_some();
            s.lost_at.get_or_insert(now);
            news
        });
    }

    /// Follows every change from now on.
    pub fn subscribe(&self) -> watch::Receiver<Subscription> {
        self.state.subscribe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn an_observer_that_doubts_itself_declares_nobody_dead() {
        let dead = BTreeMap::from([(Arc::from("a"), false), (Arc::from("b"), true)]);
        let sure = GossipView { dead: dead.clone(), healthy: true };
        let unsure = GossipView { dead, healthy: false };
        assert_eq!(sure.liveness("a"), Liveness::Alive);
        assert_eq!(sure.liveness("b"), Liveness::Dead);
        assert_eq!(sure.liveness("c"), Liveness::Unknown);
        assert_eq!(unsure.liveness("a"), Liveness::Alive);
        assert_eq!(unsure.liveness("b"), Liveness::Unknown);
    }

    #[test]
    fn the_time_of_loss_is_that_of_the_first_loss() {
        let g = SharedGossip::new();
        let t = Instant::now();
        g.publish(GossipView { healthy: true, ..Default::default() });
        assert!(g.current().fresh() && g.current().seen_netd);
        g.lost(t);
        g.lost(t + std::time::Duration::from_secs(9));
        assert_eq!(g.current().lost_at, Some(t));
        assert!(!g.current().fresh());
    }
}
