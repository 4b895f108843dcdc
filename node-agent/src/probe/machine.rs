//! When a probe is due, and when its results add up to a verdict. Pure; thresholds as the
//! kubelet's prober applies them.
//!
//! A readiness probe runs outside its period while the container has not been ready: Kubernetes
//! allows it ("to make the Pod ready faster"), and the kubelet does it at each change of the Pod.
//! Here it is tried again soon after the start, then later and later, until the period is reached.
use k8s_openapi::api::core::v1::Probe;
use std::time::Duration;

/// Between the first two tries of an eager probe; doubles. A program that has just been started
/// listens within some ten milliseconds or within seconds.
const EAGER_FIRST: Duration = Duration::from_millis(20);

/// The figures of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first try.
    pub initial_delay: Duration,
    /// Between tries.
    pub period: Duration,
    /// After which a try has failed.
    pub timeout: Duration,
    /// Successes in a row that make it healthy.
    pub successes: u32,
    /// Failures in a row that make it unhealthy.
    pub failures: u32,
}

impl Timing {
    /// Reads a probe; what is unset gets Kubernetes' default.
    pub fn from_probe(p: &Probe) -> Self {
        let secs = |v: Option<i32>, default: u64| {
            let v = v.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
            Duration::from_secs(v.unwrap_or(default))
        };
        let count =
            |v: Option<i32>, default: u32| v.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default);
        Self {
            initial_delay: secs(p.initial_delay_seconds, 0),
            period: secs(p.period_seconds, 10),
            timeout: secs(p.timeout_seconds, 1),
            successes: count(p.success_threshold, 1),
            failures: count(p.failure_threshold, 3),
        }
    }
}

/// One probe of one run of a container.
#[derive(Clone, Debug)]
pub struct ProbeMachine {
    timing: Timing,
    next: Duration,
    row: u32,
    last: Option<bool>,
    verdict: Option<bool>,
    /// The pause after the next failure, as long as tries are made outside the period.
    eager: Option<Duration>,
}

impl ProbeMachine {
    /// A probe begun at `now` (monotonic) of a container that has run for `age` by then.
    pub fn new(timing: Timing, now: Duration, age: Duration) -> Self {
        let next = now + timing.initial_delay.saturating_sub(age);
        Self { timing, next, row: 0, last: None, verdict: None, eager: None }
    }

    /// Tries again sooner than after the period, until it has once been healthy: for readiness,
    /// where failures before that change nothing.
    pub fn eager(mut self) -> Self {
        self.eager = Some(EAGER_FIRST);
        self
    }

    /// The next try is one outside the period: a failure before it is nothing to tell.
    pub fn is_eager(&self) -> bool {
        self.eager.is_some()
    }

    /// When the next try is due.
    pub fn next_deadline(&self) -> Duration {
        self.next
    }

    /// The figures.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Records a try that was begun at `began`; answers the verdict when it changes. A liveness or
    /// startup probe's first failure verdict comes from "unknown" too.
    pub fn on_result(&mut self, healthy: bool, began: Duration) -> Option<bool> {
        // From beginning to beginning, so that slow answers do not stretch the period; missed
        // tries are not made up for.
        self.eager = self.eager.filter(|pause| !healthy && *pause < self.timing.period);
        self.next = (began + self.eager.unwrap_or(self.timing.period)).max(self.next);
        self.eager = self.eager.map(|pause| pause * 2);
        if self.last == Some(healthy) {
            self.row = self.row.saturating_add(1);
        } else {
            self.last = Some(healthy);
            self.row = 1;
        }
        let needed = if healthy { self.timing.successes } else { self.timing.failures };
        if self.row < needed || self.verdict == Some(healthy) {
            return None;
        }
        self.verdict = Some(healthy);
        Some(healthy)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn timing(successes: u32, failures: u32) -> Timing {
        Timing {
            initial_delay: Duration::from_secs(5),
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            successes,
            failures,
        }
    }

    fn verdicts(successes: u32, failures: u32, results: &[bool]) -> Vec<Option<bool>> {
        let mut m = ProbeMachine::new(timing(successes, failures), Duration::ZERO, Duration::ZERO);
        results.iter().map(|r| m.on_result(*r, Duration::ZERO)).collect()
    }

    #[test]
    fn thresholds_count_in_a_row() {
        let (t, f) = (true, false);
        assert_eq!(verdicts(1, 3, &[f, f, f]), [None, None, Some(false)]);
        assert_eq!(verdicts(1, 3, &[f, f, t, f, f]), [None, None, Some(true), None, None]);
        assert_eq!(verdicts(2, 1, &[t, t, f, t, t]), [None, Some(true), Some(false), None, Some(true)]);
        assert_eq!(verdicts(1, 1, &[t, t, t]), [Some(true), None, None]);
    }

    #[test]
    fn tries_follow_the_period_from_their_beginning() {
        let mut m = ProbeMachine::new(timing(1, 1), Duration::from_secs(100), Duration::ZERO);
        assert_eq!(m.next_deadline(), Duration::from_secs(105));
        m.on_result(true, Duration::from_secs(105));
        assert_eq!(m.next_deadline(), Duration::from_secs(115));
        m.on_result(true, Duration::from_secs(140));
        assert_eq!(m.next_deadline(), Duration::from_secs(150));
    }

    #[test]
    fn the_initial_delay_counts_from_the_containers_start() {
        let secs = Duration::from_secs;
        for (age, due) in [(0, 105), (3, 102), (5, 100), (4000, 100)] {
            assert_eq!(ProbeMachine::new(timing(1, 1), secs(100), secs(age)).next_deadline(), secs(due), "{age} s old");
        }
    }

    #[test]
    fn an_eager_probe_tries_again_soon_until_it_was_healthy_once() {
        let millis = |d: Duration| d.as_millis();
        let tried = |healthy: &[bool]| {
            let mut m = ProbeMachine::new(timing(1, 3), Duration::ZERO, Duration::ZERO).eager();
            let mut gaps = Vec::new();
            for h in healthy {
                let began = m.next_deadline();
                m.on_result(*h, began);
                gaps.push(millis(m.next_deadline() - began));
            }
            gaps
        };
        let (t, f) = (true, false);
        assert_eq!(tried(&[f, f, f, t, f]), [20, 40, 80, 10_000, 10_000]);
        let slow = tried(&[f; 12]);
        assert_eq!(slow[8..], [5_120, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn unset_and_zero_figures_are_kubernetes_defaults() {
        let t = Timing::from_probe(&Probe { period_seconds: Some(0), ..Default::default() });
        assert_eq!((t.period.as_secs(), t.timeout.as_secs(), t.successes, t.failures), (10, 1, 1, 3));
        assert_eq!(t.initial_delay, Duration::ZERO);
    }
}
