//! Times as kubectl shows them.

use jiff::Timestamp;
use serde_json::Value;

/// A duration in at most two units, as apimachinery's `HumanDuration`.
pub fn human(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let two = |a: i64, au: &str, b: i64, bu: &str| match b {
        0 => format!("{a}{au}"),
        b => format!("{a}{au}{b}{bu}"),
    };
    let s = seconds.max(0);
    let (minutes, hours, days) = (s / 60, s / 3600, s / 86_400);
    match () {
        () if s < 120 => format!("{s}s"),
        () if minutes < 10 => two(minutes, "m", s % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The time in a field, if there is one.
pub fn time(value: &Value) -> Option<Timestamp> {
    value.as_str().and_then(|t| t.parse().ok())
}

/// How long ago the time in a field is.
pub fn since(value: &Value, now: Timestamp) -> String {
    time(value).map_or_else(|| "<unknown>".to_owned(), |t| human(now.as_second() - t.as_second()))
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn as_kubectl() {
        for (s, want) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (86_400, "24h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (86_400 * 800, "2y70d"),
            (86_400 * 3650, "10y"),
        ] {
            assert_eq!(human(s), want, "{s}");
        }
    }
}
