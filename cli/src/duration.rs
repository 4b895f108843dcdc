//! Durations as a person or a script writes them: Go's (`1h30m`, `500ms`, `1.5s`, `-1s`), days, and bare seconds.

use std::time::Duration;

const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// In nanoseconds; the longer ones first where one begins like another.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
const DAY: u128 = 86_400_000_000_000;
/// What Go's hold, 292 years: far enough from where adding to now would end.
const MAX: u128 = 9_223_372_036_854_775_807;
/// More digits say nothing: nanoseconds of a day are fewer.
const FRACTION_DIGITS: usize = 15;

/// How long to wait: a negative duration is a week, as kubectl has it.
pub fn limit(text: &str) -> Result<Duration, String> {
    let (negative, duration) = signed(text)?;
    Ok(if negative && !duration.is_zero() { WEEK } else { duration })
}

/// Whole seconds, a fraction of one counted as one.
pub fn seconds(text: &str) -> Result<u64, String> {
    match signed(text)? {
        (true, duration) if !duration.is_zero() => Err(format!("{text:?} is negative: write a duration such as 30s")),
        (_, duration) => Ok(duration.as_secs() + u64::from(duration.subsec_nanos() > 0)),
    }
}

/// Whether it is negative, and the duration without its sign.
fn signed(text: &str) -> Result<(bool, Duration), String> {
    let (negative, rest) = match (text.strip_prefix('-'), text.strip_prefix('+')) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => (false, text),
    };
    let bad = || format!("{text:?} is no duration: write 30s, 500ms, 1h30m");
    // Seconds without a unit.
    let all = if rest.bytes().all(|b| b.is_ascii_digit()) { format!("{rest}s") } else { rest.to_owned() };
    let nanos = nanoseconds(&all).ok_or_else(bad)?;
    if nanos > MAX {
        return Err(format!("{text:?} is too long: at most 292 years"));
    }
    let nanos = u64::try_from(nanos).map_err(|_| bad())?;
    Ok((negative, Duration::from_nanos(nanos)))
}

/// The sum of its parts, each a number with a unit; none when it is not made of such.
fn nanoseconds(text: &str) -> Option<u128> {
    if text.is_empty() {
        return None;
    }
    let (mut rest, mut total) = (text, 0_u128);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (whole, after) = rest.split_at(digits);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit())?),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let unit = if unit == "d" { DAY } else { UNITS.iter().find(|(name, _)| *name == unit)?.1 };
        let fraction = &fraction[..fraction.len().min(FRACTION_DIGITS)];
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        // A number beyond all bounds is told of as too long, not as no number.
        let whole = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(u128::MAX) };
        let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        total = total.saturating_add(whole.saturating_mul(unit)).saturating_add(part * unit / scale);
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them_and_bare_seconds_and_days() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("90", 90_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("500ms", 500_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+2s", 2_000_000_000),
            ("3us", 3_000),
            ("3\u{b5}s", 3_000),
            ("1m0.000000001s", 60_000_000_001),
            ("2d", 172_800_000_000_000),
        ] {
            assert_eq!(limit(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for bad in ["", "-", "5x", "m", "1h30", "1.5", ".s", "1..5s", "s1", "--1s", "1 s"] {
            assert!(limit(bad).is_err_and(|e| e.contains("is no duration")), "{bad:?}: {:?}", limit(bad));
        }
        for long in ["293000d", "99999999999999999999999999999999999999999999h", "18446744073709551615"] {
            assert!(limit(long).is_err_and(|e| e.contains("292 years")), "{long:?}: {:?}", limit(long));
        }
    }

    #[test]
    fn a_negative_limit_is_a_week_and_a_negative_age_is_refused() {
        assert_eq!((limit("-1s"), limit("-1"), limit("-0s")), (Ok(WEEK), Ok(WEEK), Ok(Duration::ZERO)));
        assert_eq!((seconds("500ms"), seconds("2s"), seconds("365d")), (Ok(1), Ok(2), Ok(31_536_000)));
        assert!(seconds("-5m").is_err_and(|e| e.contains("negative")));
    }
}
