//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`), exact to a billionth.
//!
//! Follows apimachinery's `resource.Quantity`: what is finer than 1n is rounded away from zero,
//! what is greater than 2^63-1 is capped, and the kind of suffix is remembered for printing.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Add;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;

const NANO: i128 = 1_000_000_000;
const MAX_NANO: i128 = (i64::MAX as i128) * NANO;

/// How a quantity was written, and is printed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An exact amount of a resource.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is none that Kubernetes knows.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// A whole number of units (bytes, cores, pods).
    pub const fn from_units(n: i64) -> Self {
        Quantity { nano: n as i128 * NANO, format: Format::DecimalSi }
    }

    /// Thousandths, as CPU is counted.
    pub const fn from_milli(n: i64) -> Self {
        Quantity { nano: n as i128 * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Bytes, printed with binary suffixes.
    pub const fn from_bytes(n: i64) -> Self {
        Quantity { nano: n as i128 * NANO, format: Format::BinarySi }
    }

    /// Reads the text of a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (unit, format) = parse_suffix(suffix)?;
        let nano = scaled(whole, fraction, unit);
        Ok(Quantity { nano: if negative { -nano } else { nano }, format })
    }

    /// Whole units, rounded up (away from zero), as Kubernetes' `Value()`.
    pub fn value(self) -> i64 {
        narrow(div_away(self.nano, NANO))
    }

    /// The same as [`Quantity::value`], named for what memory and storage count.
    pub fn bytes(self) -> i64 {
        self.value()
    }

    /// Thousandths, rounded up (away from zero), as Kubernetes' `MilliValue()`.
    pub fn milli(self) -> i64 {
        narrow(div_away(self.nano, NANO / 1000))
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// Whether it is less than nothing.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }

    /// The difference, in the format of `self`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Quantity { nano: self.nano - other.nano, format: self.format }
    }
}

fn narrow(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

fn div_away(n: i128, d: i128) -> i128 {
    let (q, r) = (n / d, n % d);
    if r == 0 { q } else { q + n.signum() }
}

/// What one unit with this suffix is worth, in billionths; below that, as a power of ten to divide
/// by.
#[derive(Clone, Copy)]
struct Unit {
    nano: i128,
    shift_right: u32,
}

fn parse_suffix(suffix: &str) -> Result<(Unit, Format), QuantityError> {
    let unit = |nano| Unit { nano, shift_right: 0 };
    let power = |e: u32| unit(10_i128.pow(e) * NANO);
    let binary = |e: u32| unit((1_i128 << (10 * e)) * NANO);
    Ok(match suffix {
        "n" => (unit(1), Format::DecimalSi),
        "u" => (unit(1_000), Format::DecimalSi),
        "m" => (unit(1_000_000), Format::DecimalSi),
        "" => (unit(NANO), Format::DecimalSi),
        "k" => (power(3), Format::DecimalSi),
        "M" => (power(6), Format::DecimalSi),
        "G" => (power(9), Format::DecimalSi),
        "T" => (power(12), Format::DecimalSi),
        "P" => (power(15), Format::DecimalSi),
        "E" => (power(18), Format::DecimalSi),
        "Ki" => (binary(1), Format::BinarySi),
        "Mi" => (binary(2), Format::BinarySi),
        "Gi" => (binary(3), Format::BinarySi),
        "Ti" => (binary(4), Format::BinarySi),
        "Pi" => (binary(5), Format::BinarySi),
        "Ei" => (binary(6), Format::BinarySi),
        other => {
            let exponent =
                other.strip_prefix(['e', 'E']).and_then(|e| e.parse::<i32>().ok()).ok_or(QuantityError::Suffix)?;
            // Beyond these powers every non-zero number is capped, or rounded up to 1n.
            let e = exponent.clamp(-60, 19) + 9;
            let unit = match u32::try_from(e) {
                Ok(e) => Unit { nano: 10_i128.pow(e), shift_right: 0 },
                Err(_) => Unit { nano: 1, shift_right: e.unsigned_abs() },
            };
            (unit, Format::DecimalExponent)
        }
    })
}

/// `whole.fraction × unit` in billionths, rounded up and capped.
fn scaled(whole: &str, fraction: &str, unit: Unit) -> i128 {
    let digit = |b: u8| i128::from(b - b'0');
    // Horner's rule from the last digit keeps every step exact within i128: nested floors equal
    // the floor of the whole, and `sticky` knows whether anything was cut off.
    let (mut below_one, mut sticky) = (0_i128, false);
    for b in fraction.bytes().rev() {
        below_one += digit(b) * unit.nano;
        sticky |= below_one % 10 != 0;
        below_one /= 10;
    }
    let mut total = 0_i128;
    for b in whole.bytes() {
        // 10^40 would overflow: once above the cap, further digits change nothing but the
        // amount to be shifted away again.
        total = (total * 10 + digit(b) * unit.nano).min(MAX_NANO * 1_000);
    }
    total += below_one;
    for _ in 0..unit.shift_right {
        sticky |= total % 10 != 0;
        total /= 10;
    }
    (total + i128::from(sticky)).min(MAX_NANO)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nano == 0 { other.format } else { self.format };
        Quantity { nano: (self.nano + other.nano).clamp(-MAX_NANO, MAX_NANO), format }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        Quantity::parse(s)
    }
}

impl TryFrom<&K8sQuantity> for Quantity {
    type Error = QuantityError;
    fn try_from(q: &K8sQuantity) -> Result<Self, QuantityError> {
        Quantity::parse(&q.0)
    }
}

impl From<Quantity> for K8sQuantity {
    fn from(q: Quantity) -> K8sQuantity {
        K8sQuantity(q.to_string())
    }
}

/// Canonical form: no fraction, the largest suffix that loses nothing.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let (mut n, mut e) = (self.nano / NANO, 0);
            while n % 1024 == 0 && e < 6 {
                n /= 1024;
                e += 1;
            }
            return write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][e]);
        }
        let (mut n, mut e) = (self.nano, 0_usize);
        while n % 1000 == 0 && e < 9 {
            n /= 1000;
            e += 1;
        }
        if self.format == Format::DecimalExponent && e != 3 {
            return write!(f, "{n}e{}", (i64::try_from(e).unwrap_or(0) - 3) * 3);
        }
        write!(f, "{n}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][e])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.1m", "100u"),
            ("1024Ki", "1Mi"),
            ("1000Ki", "1000Ki"),
            ("512", "512"),
            ("1000", "1k"),
            ("2e3", "2e3"),
            ("2000e0", "2e3"),
            ("1E", "1E"),
            ("1E3", "1e3"),
            ("1e-3", "1e-3"),
            (".5", "500m"),
            ("5.", "5"),
            ("+1", "1"),
            ("-1.5Ki", "-1536"),
            ("0.5Ki", "512"),
            ("0.0000000001", "1n"),
            ("100Ei", "9223372036854775807"),
            ("99999999999999999999999999999999999999999999", "9223372036854775807"),
            ("1e-40", "1e-9"),
            ("12e-10", "2e-9"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "-", "abc", "1.2.3", "1 Gi", "1KiB", "1K", "1e", "1x", "e3", "1gi"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rounding() {
        let q = Quantity::parse("1.0001").unwrap();
        assert_eq!((q.value(), q.milli()), (2, 1001));
        assert_eq!(Quantity::parse("128Mi").unwrap().bytes(), 134_217_728);
        assert_eq!(Quantity::parse("250m").unwrap().milli(), 250);
        assert_eq!(Quantity::parse("-0.5").unwrap().value(), -1);
        assert_eq!(Quantity::from_bytes(64 << 20).to_string(), "64Mi");
    }

    proptest::proptest! {
        #[test]
        fn printing_loses_nothing(n in proptest::num::i64::ANY, pick in 0_usize..17) {
            let suffix = ["n","u","m","","k","M","G","T","P","E","Ki","Mi","Gi","Ti","Pi","Ei","e2"][pick];
            let q = Quantity::parse(&format!("{}{suffix}", n % 1_000_000)).unwrap();
            let again = Quantity::parse(&q.to_string()).unwrap();
            proptest::prop_assert_eq!(q, again);
            proptest::prop_assert_eq!(q.to_string(), again.to_string());
        }

        #[test]
        fn any_text_is_answered(text in "[-+0-9.eEKMinum]{0,40}") {
            if let Ok(q) = Quantity::parse(&text) {
                proptest::prop_assert_eq!(Quantity::parse(&q.to_string()).unwrap(), q);
            }
        }

        #[test]
        fn order_is_that_of_numbers(a in -10_000_i64..10_000, b in -10_000_i64..10_000) {
            let (x, y) = (Quantity::parse(&format!("{a}m")).unwrap(), Quantity::parse(&format!("{b}m")).unwrap());
            proptest::prop_assert_eq!(a.cmp(&b), x.cmp(&y));
        }
    }
}
