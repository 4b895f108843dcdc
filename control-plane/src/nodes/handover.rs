//! When a leader that has lost its gossip view gives leadership away.
//!
//! It can then no longer tell a dead node from a silent one, and every node's death would take
//! 40 s instead of 2. It hands over only to a member that says it has a view, and the cluster
//! as a whole does so at most once a minute, so that two members with failing netds do not
//! play ball with it.

use std::time::Duration;

/// Long enough for netd to be restarted without anybody noticing.
pub const WITHOUT_VIEW: Duration = Duration::from_secs(3);
/// A leader settles first: its own subscription may be reconnecting after the same event that
/// made it leader.
pub const SETTLE: Duration = Duration::from_secs(3);
/// Pause between two handovers of the whole cluster, by the log's time.
pub const PAUSE: Duration = Duration::from_secs(60);

/// What the decision is made from.
#[derive(Debug, Clone, Default)]
pub struct Situation {
    /// How long there has been no view here; `None`: there is one.
    pub without_view: Option<Duration>,
    /// A netd answered here since this process started.
    pub seen_netd: bool,
    /// How long this member has led.
    pub leading: Duration,
    /// How long ago the last handover of any member was recorded.
    pub since_last: Option<Duration>,
    /// Other voters that answer and say they have a view, by id.
    pub candidates: Vec<u64>,
}

/// Whom to hand leadership to now.
pub fn decide(s: &Situation) -> Option<u64> {
    let blind = s.seen_netd && s.without_view.is_some_and(|d| d >= WITHOUT_VIEW);
    let settled = s.leading >= SETTLE && s.since_last.is_none_or(|d| d >= PAUSE);
    if blind && settled { s.candidates.first().copied() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn the_table() {
        let s = |n: u64| Duration::from_secs(n);
        let blind = Situation {
            without_view: Some(s(3)),
            seen_netd: true,
            leading: s(10),
            since_last: None,
            candidates: vec![2, 3],
        };
        assert_eq!(decide(&blind), Some(2));
        assert_eq!(decide(&Situation { without_view: None, ..blind.clone() }), None);
        assert_eq!(decide(&Situation { without_view: Some(s(2)), ..blind.clone() }), None);
        assert_eq!(decide(&Situation { seen_netd: false, ..blind.clone() }), None, "a machine without netd");
        assert_eq!(decide(&Situation { leading: s(1), ..blind.clone() }), None);
        assert_eq!(decide(&Situation { since_last: Some(s(59)), ..blind.clone() }), None, "no ball games");
        assert_eq!(decide(&Situation { since_last: Some(s(60)), ..blind.clone() }), Some(2));
        assert_eq!(decide(&Situation { candidates: vec![], ..blind }), None, "nobody sees better");
    }
}
