//! Self-doubt: is it they who do not answer, or we who do not listen?
//!
//! After Lifeguard (Dadgar, Phillips, Currey 2018), with the observer's own timers as the first
//! witness:
//!
//! ```text
//!            timer ≥ PAUSE late                       acks to FRESH_ACKS new probes
//!  sound ───────────────────────────► doubting ──────────────────────────────────► sound
//!    │ ▲                                  │            or MAX_DOUBT without lateness
//!    │ └── acknowledged probe: score - 1 ─┘
//!    └──── timer late, or nobody at all heard during a failed probe: score + 1
//! ```
//! The score multiplies how long a suspect may take to refute. While doubting, the observer
//! declares nobody dead, and forgets whom it suspected itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// A timer later than this costs a point: half a probe's round trip allowance is gone.
pub(crate) const LATE: Duration = Duration::from_millis(100);
/// A timer later than this means we were stopped or starved for longer than whole probe periods:
/// everything that was underway is worthless.
pub(crate) const PAUSE: Duration = Duration::from_millis(400);
/// The most points; Lifeguard's saturation S. Suspicion then takes 1 + 8 times as long.
const MAX_SCORE: u32 = 8;
/// Members that must answer a fresh probe before an observer trusts itself again.
const FRESH_ACKS: usize = 2;
/// Longest doubt with punctual timers: by then the others are really gone.
const MAX_DOUBT: Duration = Duration::from_secs(10);
/// Failed probes in a row, with nothing heard from anybody, before it is rather us. One can be
/// the only other member that died.
const SILENT_FAILURES: u32 = 2;

/// The observer's opinion of itself.
#[derive(Debug)]
pub(crate) struct Health {
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
    pub fn new() -> Self {
        Self { score: 0, silent_failures: 0, doubting: None }
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
        if late < LATE {
            return false;
        }
        self.score = (self.score + 1).min(MAX_SCORE);
        if late < PAUSE {
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
            && now.saturating_sub(doubt.since) >= MAX_DOUBT
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
        let mut health = Health::new();
        assert!(!health.on_lateness(at(20), at(0)));
        assert_eq!(health.multiplier(), 1);
        assert!(!health.on_lateness(at(150), at(0)));
        assert_eq!((health.multiplier(), health.is_sound()), (2, true));
        assert!(health.on_lateness(at(5000), at(1000)));
        assert!(!health.is_sound());
    }

    #[test]
    fn only_fresh_acks_of_several_members_end_doubt() {
        let mut health = Health::new();
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
        let mut health = Health::new();
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
        let mut health = Health::new();
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
