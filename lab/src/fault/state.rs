//! Which wires are bad, and what a switch must do so that they are. Pure; kept in a file of the
//! lab, so that later commands add to it and `heal` knows what to undo.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A share of packets, in hundredths of a percent: what `loss` takes has two decimals at most.
pub const WHOLE: u32 = 10_000;

/// Everything that is wrong with the wires. Nodes are named by their index in the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wires {
    /// Nodes that reach only those of their own group; those in none reach each other.
    pub groups: Vec<BTreeSet<usize>>,
    /// Packets from the first to the second are dropped.
    pub one_way: BTreeSet<(usize, usize)>,
    /// Share of packets lost, from and to the node each.
    pub loss: BTreeMap<usize, u32>,
    /// Milliseconds more that packets take, from and to the node each.
    pub delay_millis: BTreeMap<usize, u32>,
}

/// What the switch does with a packet before it passes it on. The first that drops it wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// From one node's port to another's.
    Cut {
        /// Where it comes in.
        from: usize,
        /// Where it would go out.
        to: usize,
    },
    /// Of what comes in from a node, or goes out to it.
    Lose {
        /// The node.
        node: usize,
        /// Does it come from the node?
        incoming: bool,
        /// Of [`WHOLE`].
        share: u32,
    },
}

impl Wires {
    /// Reads what [`Wires::store`] wrote; nothing is wrong when there is no file.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Format { what: shown, why: e.to_string() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::io(shown)(e)),
        }
    }

    /// Replaces the file as a whole.
    pub fn store(&self, path: &Path) -> Result<()> {
        let shown = path.display().to_string();
        let json = serde_json::to_vec(self).map_err(|e| Error::Format { what: shown.clone(), why: e.to_string() })?;
        let new = path.with_extension("new");
        fs::write(&new, json).and_then(|()| fs::rename(&new, path)).map_err(Error::io(shown))
    }

    /// Ends an earlier partition, whichever way it was made.
    pub fn rejoin(&mut self) {
        self.groups.clear();
        self.one_way.clear();
    }

    /// The group of a node; none for those left in the middle.
    #[must_use]
    pub fn group_of(&self, node: usize) -> Option<usize> {
        self.groups.iter().position(|g| g.contains(&node))
    }

    /// From every node of the first group to every node of the second.
    pub fn cut(&mut self, from: &[usize], to: &[usize]) {
        self.one_way.extend(from.iter().flat_map(|a| to.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b));
    }

    /// Sets the share that a node loses; none of it when 0.
    pub fn lose(&mut self, node: usize, share: u32) {
        match share.min(WHOLE) {
            0 => drop(self.loss.remove(&node)),
            share => drop(self.loss.insert(node, share)),
        }
    }

    /// Sets the delay of a node; none when zero.
    pub fn delay(&mut self, node: usize, by: Duration) {
        match u32::try_from(by.as_millis()).unwrap_or(u32::MAX) {
            0 => drop(self.delay_millis.remove(&node)),
            millis => drop(self.delay_millis.insert(node, millis)),
        }
    }

    /// The switch's rules.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let cuts = self.one_way.iter().map(|(from, to)| Rule::Cut { from: *from, to: *to });
        let losses = self.loss.iter().flat_map(|(node, share)| {
            [true, false].map(|incoming| Rule::Lose { node: *node, incoming, share: *share })
        });
        cuts.chain(losses).collect()
    }
}

/// `10`, `0.5` or `12.25%` as a share of [`WHOLE`].
pub fn parse_percent(text: &str) -> Result<u32> {
    let bad = |why: &str| Error::Format { what: format!("percentage {text:?}"), why: why.to_owned() };
    let number = text.strip_suffix('%').unwrap_or(text);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) || decimals.len() > 2 {
        return Err(bad("a number from 0 to 100 with two decimals at most is wanted, as in `loss n2 12.5`"));
    }
    let share = whole.parse::<u32>().ok().and_then(|w| w.checked_mul(100));
    let fraction = format!("{decimals:0<2}").parse::<u32>().unwrap_or(0);
    share.and_then(|s| s.checked_add(fraction)).filter(|s| *s <= WHOLE).ok_or_else(|| bad("it is more than 100"))
}

/// `250ms`, `1.5s`, `2s` or plain milliseconds.
pub fn parse_delay(text: &str) -> Result<Duration> {
    let bad = || Error::Format {
        what: format!("delay {text:?}"),
        why: "write it as in `delay n2 100ms`; at most 60s".to_owned(),
    };
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => text.strip_suffix('s').map_or((text, 1e-3), |number| (number, 1.0)),
    };
    let seconds = number.parse::<f64>().map_err(|_| bad())? * unit;
    if !(0.0..=60.0).contains(&seconds) {
        return Err(bad());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percentages_and_delays() {
        for (text, share) in [("10", 1000), ("0.5", 50), ("12.25%", 1225), ("100", WHOLE), ("0", 0)] {
            assert_eq!(parse_percent(text).unwrap(), share, "{text}");
        }
        for text in ["", "-1", "101", "100.01", "1.234", "ten", ".5", "99999999999"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
        for (text, millis) in [("100ms", 100), ("1.5s", 1500), ("20", 20)] {
            assert_eq!(parse_delay(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "-1s", "61s", "NaN", "soon"] {
            assert!(parse_delay(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_way_cuts_one_way_only() {
        let mut wires = Wires::default();
        wires.cut(&[0, 1], &[2]);
        wires.lose(3, 1000);
        let lose = |incoming| Rule::Lose { node: 3, incoming, share: 1000 };
        let cut = |from| Rule::Cut { from, to: 2 };
        assert_eq!(wires.rules(), [cut(0), cut(1), lose(true), lose(false)]);
        wires.lose(3, 0);
        assert_eq!(wires.rules(), [cut(0), cut(1)]);
    }

    #[test]
    fn a_partition_is_remembered_until_it_is_healed() {
        let mut wires = Wires { groups: vec![BTreeSet::from([0, 1]), BTreeSet::from([3])], ..Wires::default() };
        wires.lose(3, 1000);
        assert_eq!([0, 1, 2, 3].map(|n| wires.group_of(n)), [Some(0), Some(0), None, Some(1)]);
        wires.cut(&[0], &[1]);
        wires.rejoin();
        assert_eq!((wires.group_of(0), wires.one_way.len(), wires.loss.len()), (None, 0, 1), "loss stays");
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wires.json");
        assert_eq!(Wires::load(&path).unwrap(), Wires::default());
        let mut wires = Wires { groups: vec![BTreeSet::from([0]), BTreeSet::from([1, 2])], ..Wires::default() };
        wires.cut(&[0], &[1]);
        wires.delay(2, Duration::from_millis(5));
        wires.store(&path).unwrap();
        assert_eq!(Wires::load(&path).unwrap(), wires);
    }
}
