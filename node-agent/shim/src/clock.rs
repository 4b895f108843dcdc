//! Moments, and RFC 3339 with nanoseconds as CRI logs have it.

use std::io::Write;

use rustix::time::{ClockId, clock_gettime};
use trellis_shim_protocol::Moment;

/// Now, on both clocks.
pub fn now() -> Moment {
    let nanos = |id| {
        let t = clock_gettime(id);
        u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
    };
    Moment { wall_nanos: nanos(ClockId::Realtime), boot_nanos: nanos(ClockId::Boottime) }
}

/// Writes `2026-11-21T09:42:55.123456789Z`.
pub fn write_rfc3339(out: &mut Vec<u8>, wall_nanos: u64) {
    let (seconds, nanos) = (wall_nanos / 1_000_000_000, wall_nanos % 1_000_000_000);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z");
}

/// Days since 1970 as year, month, day (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_are_right_at_the_edges() {
        let text = |nanos: u64| {
            let mut out = Vec::new();
            write_rfc3339(&mut out, nanos);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_767_225_599_999_999_999), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(text(1_795_254_175_123_456_789), "2026-11-21T09:42:55.123456789Z");
    }
}
