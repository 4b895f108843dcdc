//! Exponential waiting, with Kubernetes' figures.
use std::time::Duration;

/// First wait before a crashed container is started again, and before an image is pulled again
/// (Kubernetes: 10 s).
pub const FIRST: Duration = Duration::from_secs(10);
/// Longest wait (Kubernetes: `MaxContainerBackOff`, 300 s).
pub const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts afresh (Kubernetes: twice the longest wait).
pub const RESET_AFTER: Duration = Duration::from_secs(600);
/// First wait after a local step (sandbox, network, volumes, teardown) failed: such steps fail
/// because something else on the node is late, which heals fast.
pub const STEP_FIRST: Duration = Duration::from_millis(250);
/// Longest wait of a local step.
pub const STEP_LONGEST: Duration = Duration::from_secs(20);

/// A wait that doubles from `first` to `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    current: Duration,
}

impl Backoff {
    /// Of a container that exits or an image that cannot be pulled.
    pub fn standard() -> Self {
        Self { first: FIRST, longest: LONGEST, current: Duration::ZERO }
    }

    /// Of a step on this node.
    pub fn step() -> Self {
        Self { first: STEP_FIRST, longest: STEP_LONGEST, current: Duration::ZERO }
    }

    /// The wait now due, and doubles the one after it.
    pub fn advance(&mut self) -> Duration {
        self.current = match self.current {
            Duration::ZERO => self.first,
            c => (c * 2).min(self.longest),
        };
        self.current
    }

    /// The wait that was last handed out.
    pub fn current(&self) -> Duration {
        self.current
    }

    /// Continues from a wait remembered on disk.
    pub fn resume(&mut self, current: Duration) {
        self.current = current.min(self.longest);
    }

    /// Forgets what went wrong.
    pub fn reset(&mut self) {
        self.current = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_ten_to_three_hundred_seconds_and_starts_over() {
        let mut b = Backoff::standard();
        let waits: Vec<u64> = (0..7).map(|_| b.advance().as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        b.reset();
        assert_eq!(b.advance().as_secs(), 10);
    }
}
