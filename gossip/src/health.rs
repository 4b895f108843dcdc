//! Self-doubt: is it they who do not answer, or we who do not listen?
//!
//! After Lifeguard (Dadgar, Phillips, Currey 2018), with the observer's own timers as the first
//! witness:
//!
//! ```text
//!            timer ≥ `pause` late                     acks to FRESH_ACKS new probes
//!  sound ───────────────────────────► doubting ──────────────────────────────────► sound
//!    │ ▲                                  │            or `max_doubt` without lateness
//!    │ └── acknowledged probe: score - 1 ─┘
//!    └──── timer late, or nobody at all heard during a failed probe: score + 1
//! ```
//! The score multiplies how long a suspect may take to refute. While doubting, the observer
//! declares nobody dead, and forgets whom it suspected itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Config;

/// The most points; Lifeguard's saturation S. Suspicion then takes 1 + 8 times as long.
const MAX_SCORE: u32 = 8;
/// Members that must answer a fresh probe before an observer trusts itself again.
const FRESH_ACKS: usize = 2;
/// Failed probes in a row, with nothing heard from anybody, before it is rather us. One can be
/// the only other member that died.
const SILENT_FAILURES: u32 = 2;

/// The observer's opinion of itself.
#[derive(Debug)]
pub(crate) struct Health {
    late: Duration,
    pause: Duration,
    max_doubt: Duration,
    score: u32,
    silent_failures: u32,
    doubting: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    since: Duration,
    answered: BTreeSet<SocketAddr>,
}

impl Health {
    pub fn new(config: &Config) -> Self {
        let Config { late, pause, max_doubt, .. } = *config;
        Self { late, pause, max_doubt, score: 0, silent_failures: 0, doubting: None }
    }

    /// Does a timer that is this late say anything about us?
    pub fn is_late(&self, late: Duration) -> bool {
        late >= self.late
    }

    /// Are verdicts to be believed?
    pub fn is_sound(&self) -> bool {
        self.doubting.is_none()
    }

    /// By how much suspicion is lengthened.
    pub fn multiplier(&self) -> u32 {
        1 + self.score
    }

    /// A timer fired `late`. True: doubt begins (again).
    pub fn on_lateness(&mut self, late: Duration, now: Duration) -> bool {
        if !self.is_late(late) {
            return false;
        }
        self.score = (self.score + 1).min(MAX_SCORE);
        if late < self.pause {
            return false;
        }
        self.doubting = Some(Doubt { since: now, answered: BTreeSet::new() });
        true
    }

    /// `member` answered the probe that was sent at `sent`.
    pub fn on_ack(&mut self, member: SocketAddr, sent: Duration, members: usize) {
        self.score = self.score.saturating_sub(1);
        self.silent_failures = 0;
        if let Some(doubt) = &mut self.doubting
            && sent >= doubt.since
        {
            doubt.answered.insert(member);
            if doubt.answered.len() >= FRESH_ACKS.min(members.max(1)) {
                self.doubting = None;
            }
        }
    }

    /// A probe failed. `silent`: nothing at all arrived from anybody since it was sent;
    /// `members`: how many others were thought to be there to be heard.
    pub fn on_probe_failed(&mut self, silent: bool, members: usize) {
        if !silent || members < 2 {
            self.silent_failures = 0;
            return;
        }
        self.silent_failures += 1;
        if self.silent_failures >= SILENT_FAILURES {
            self.score = (self.score + 1).min(MAX_SCORE);
        }
    }

    /// Time passes; ends a doubt that nobody is left to end.
    pub fn on_tick(&mut self, now: Duration) {
        if let Some(doubt) = &self.doubting
            && now.saturating_sub(doubt.since) >= self.max_doubt
        {
            self.doubting = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn member(n: u8) -> SocketAddr {
        SocketAddr::from(([172, 30, 0, n], 7946))
    }

    #[test]
    fn lateness_costs_points_and_a_pause_brings_doubt() {
        let mut health = Health::new(&Config::default());
        assert!(!health.on_lateness(at(20), at(0)));
        assert_eq!(health.multiplier(), 1);
        assert!(!health.on_lateness(at(150), at(0)));
        assert_eq!((health.multiplier(), health.is_sound()), (2, true));
        assert!(health.on_lateness(at(5000), at(1000)));
        assert!(!health.is_sound());
    }

    #[test]
    fn patience_stretches_what_counts_as_late_and_how_long_doubt_lasts() {
        let usual = Config::default();
        let mut health = Health::new(&usual.stretched(4));
        assert!(!health.on_lateness(usual.pause - at(1), at(0)), "a pause there is none here");
        assert_eq!((health.multiplier(), health.is_sound()), (1, true));
        assert!(health.on_lateness(usual.pause * 4, at(0)));
        health.on_tick(usual.max_doubt * 4 - at(1));
        assert!(!health.is_sound());
        health.on_tick(usual.max_doubt * 4);
        assert!(health.is_sound());
    }

    #[test]
    fn only_fresh_acks_of_several_members_end_doubt() {
        let mut health = Health::new(&Config::default());
        health.on_lateness(at(5000), at(1000));
        health.on_ack(member(1), at(999), 4);
        health.on_ack(member(2), at(998), 4);
        assert!(!health.is_sound(), "answers to probes from before the pause prove nothing");
        health.on_ack(member(1), at(1001), 4);
        health.on_ack(member(1), at(1200), 4);
        assert!(!health.is_sound(), "one member is not enough");
        health.on_ack(member(2), at(1400), 4);
        assert!(health.is_sound());
    }

    #[test]
    fn a_lone_peer_suffices_and_a_lone_survivor_comes_to_terms() {
        let mut health = Health::new(&Config::default());
        health.on_lateness(at(5000), at(1000));
        health.on_ack(member(1), at(1001), 1);
        assert!(health.is_sound());
        health.on_lateness(at(5000), at(1000));
        health.on_tick(at(10_999));
        assert!(!health.is_sound());
        health.on_tick(at(11_000));
        assert!(health.is_sound());
    }

    #[test]
    fn silence_of_everybody_is_held_against_oneself() {
        let mut health = Health::new(&Config::default());
        for _ in 0..20 {
            health.on_probe_failed(true, 4);
        }
        assert_eq!(health.multiplier(), 1 + MAX_SCORE);
        for _ in 0..8 {
            health.on_ack(member(1), at(0), 4);
        }
        assert_eq!(health.multiplier(), 1);
        for _ in 0..20 {
            health.on_probe_failed(false, 4);
            health.on_probe_failed(true, 1);
        }
        assert_eq!(health.multiplier(), 1, "a single death, or the only peer's, is no self-doubt");
    }
}
