//! Label selectors: kubectl's syntax (`app=web,tier in (a,b),!canary`) and metav1.LabelSelector.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::{Labels, SelectorError};
use crate::names;

/// What a requirement asks of the label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The value is one of these.
    In(Vec<String>),
    /// The label is absent or its value none of these.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The value is an integer greater than this.
    Gt(i64),
    /// The value is an integer less than this.
    Lt(i64),
}

/// One requirement; a selector matches when all of its requirements do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What it must be.
    pub op: Op,
}

impl Requirement {
    fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let value = labels.label(&self.key);
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.op {
            Op::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Op::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::Gt(n) => number().is_some_and(|v| v > *n),
            Op::Lt(n) => number().is_some_and(|v| v < *n),
        }
    }
}

/// A label selector, ready to match. The empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of these must hold.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Reads kubectl's syntax; the empty text matches everything.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(bad(text, "a requirement is missing beside a comma"));
            }
            let r = requirement(part).map_err(|why| bad(text, &why))?;
            requirements.push(r);
        }
        Ok(LabelSelector { requirements })
    }

    /// From the selector of an object's spec. An empty one matches everything.
    pub fn from_k8s(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement { key: key.clone(), op: Op::In(vec![value.clone()]) });
        }
        for e in selector.match_expressions.iter().flatten() {
            let values = e.values.clone().unwrap_or_default();
            let op = match (e.operator.as_str(), values.is_empty()) {
                ("In", false) => Op::In(values),
                ("NotIn", false) => Op::NotIn(values),
                ("Exists", true) => Op::Exists,
                ("DoesNotExist", true) => Op::DoesNotExist,
                ("In" | "NotIn", true) => {
                    return Err(bad(&e.key, "for In and NotIn, values must not be empty"));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(bad(&e.key, "for Exists and DoesNotExist, values must be empty"));
                }
                (other, _) => {
                    return Err(bad(&e.key, &format!("{other:?} is not a valid operator")));
                }
            };
            requirements.push(Requirement { key: e.key.clone(), op });
        }
        Ok(LabelSelector { requirements })
    }

    /// Whether labels fulfil every requirement.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}

fn bad(text: &str, why: &str) -> SelectorError {
    SelectorError::Label { text: text.to_owned(), why: why.to_owned() }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth <= 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    if let Some(key) = part.strip_prefix('!') {
        return build(key, Op::DoesNotExist);
    }
    if let Some(open) = part.find('(') {
        return set_requirement(part, open);
    }
    for (symbol, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = part.split_once(symbol) {
            let value = value.trim().to_owned();
            check_value(&value)?;
            let op = if negated { Op::NotIn(vec![value]) } else { Op::In(vec![value]) };
            return build(key, op);
        }
    }
    for symbol in ['>', '<'] {
        if let Some((key, value)) = part.split_once(symbol) {
            let n = value
                .trim()
                .parse::<i64>()
                .map_err(|_| format!("for {symbol:?} the value must be an integer, not {value:?}"))?;
            return build(key, if symbol == '>' { Op::Gt(n) } else { Op::Lt(n) });
        }
    }
    build(part, Op::Exists)
}

fn set_requirement(part: &str, open: usize) -> Result<Requirement, String> {
    let list = part[open + 1..]
        .trim_end()
        .strip_suffix(')')
        .ok_or_else(|| "expected ')' at the end of the values".to_owned())?;
    let mut words = part[..open].split_whitespace();
    let (Some(key), Some(operator), None) = (words.next(), words.next(), words.next()) else {
        return Err("expected \"KEY in (a,b)\" or \"KEY notin (a,b)\"".to_owned());
    };
    let mut values: Vec<String> = list.split(',').map(|v| v.trim().to_owned()).collect();
    values.sort();
    values.dedup();
    for v in &values {
        check_value(v)?;
    }
    match operator {
        "in" => build(key, Op::In(values)),
        "notin" => build(key, Op::NotIn(values)),
        other => Err(format!("found {other:?}, expected in, notin, =, ==, !=, >, <")),
    }
}

fn check_value(value: &str) -> Result<(), String> {
    match names::check_label_value(value).into_iter().next() {
        Some(m) => Err(format!("value {value:?}: {m}")),
        None => Ok(()),
    }
}

fn build(key: &str, op: Op) -> Result<Requirement, String> {
    let key = key.trim();
    match names::check_qualified_name(key).into_iter().next() {
        Some(m) => Err(format!("key {key:?}: {m}")),
        None => Ok(Requirement { key: key.to_owned(), op }),
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Op::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Op::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Op::Exists => f.write_str(key)?,
                Op::DoesNotExist => write!(f, "!{key}")?,
                Op::Gt(n) => write!(f, "{key}>{n}")?,
                Op::Lt(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use std::collections::BTreeMap;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn table() {
        let web = labels(&[("app", "web"), ("tier", "front"), ("weight", "7")]);
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("app in (web,api)", true),
            ("app notin (web, api)", false),
            ("missing notin (a)", true),
            ("app in (web),tier=front,!canary", true),
            ("app=web, tier=back", false),
            ("weight>6", true),
            ("weight<7", false),
            ("app>1", false),
            ("app=", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&web), want, "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["=web", "app in web", "app in (a", "a,,b", "app=a b", "a ~ b", "a>b", "x in (a),", "a is (b)"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn display_parses_back(
            keys in proptest::collection::vec("[a-z]{1,6}", 1..4),
            values in proptest::collection::vec("[a-z0-9]{1,5}", 1..4),
            pick in 0_usize..6,
        ) {
            let mut values = values;
            values.sort();
            values.dedup();
            let op = match pick {
                0 => Op::In(values),
                1 => Op::NotIn(values),
                2 => Op::Exists,
                3 => Op::DoesNotExist,
                4 => Op::Gt(5),
                _ => Op::Lt(-5),
            };
            let s = LabelSelector {
                requirements: keys.into_iter().map(|key| Requirement { key, op: op.clone() }).collect(),
            };
            proptest::prop_assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
        }

        #[test]
        fn in_and_notin_are_opposites(value in "[a-c]", set in proptest::collection::vec("[a-c]", 1..3)) {
            let l = labels(&[("k", &value)]);
            let yes = LabelSelector { requirements: vec![Requirement { key: "k".into(), op: Op::In(set.clone()) }] };
            let no = LabelSelector { requirements: vec![Requirement { key: "k".into(), op: Op::NotIn(set) }] };
            proptest::prop_assert_ne!(yes.matches(&l), no.matches(&l));
        }
    }
}
