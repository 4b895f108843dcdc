//! How long silence is borne. The defaults suit machines that answer within milliseconds; on one that is
//! emulated, or starved, they would take every pause for a death. `TRELLIS_PATIENCE=N` in the environment of
//! the daemons and the command line, the same on all machines of a cluster, makes each of these limits N times as
//! long: HTTP/2 keepalive, connecting and TLS handshakes, calls, Raft's heartbeat and election, gossip's probes,
//! the nodes' leases. Failover takes as much longer.

use std::sync::OnceLock;
use std::time::Duration;

/// The agent gives netd this long to connect a Pod, and then asks again. netd answers earlier, if only
/// by saying what it waits for.
pub const ATTACH_LIMIT: Duration = Duration::from_secs(5);
/// More would no longer be a cluster that fails over.
const MOST: u32 = 20;

/// By what the limits are multiplied: 1 unless the environment says otherwise.
#[must_use]
pub fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| read(std::env::var("TRELLIS_PATIENCE").ok().as_deref()))
}

fn read(text: Option<&str>) -> u32 {
    let Some(text) = text else { return 1 };
    match text.parse::<u32>() {
        Ok(n @ 1..=MOST) => n,
        _ => {
            tracing::warn!("TRELLIS_PATIENCE={text}: expected a whole number from 1 to {MOST}; taken for 1");
            1
        }
    }
}

/// A limit of silence, as patience has it.
#[must_use]
pub fn stretched(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sensible_numbers_count() {
        for (text, want) in [(None, 1), (Some("4"), 4), (Some("0"), 1), (Some("1000"), 1), (Some("much"), 1)] {
            assert_eq!(read(text), want, "{text:?}");
        }
    }
}
