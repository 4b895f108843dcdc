//! Figures: their medians and spread, the table and the JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::{Error, Result};

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// The value itself, at most.
    AtMost(f64),
    /// The value itself, at least.
    AtLeast(f64),
    /// The ratio to the peer, at least.
    RatioAtLeast(f64),
    /// The ratio to the peer, at most.
    RatioAtMost(f64),
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Figure {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
    peer: Option<(String, Vec<f64>)>,
    aim: Aim,
    /// Which of the values is told: the middle one unless said otherwise.
    share: f64,
}

impl Figure {
    /// A figure held against a fixed limit.
    #[must_use]
    pub fn limit(name: impl Into<String>, unit: &'static str, values: Vec<f64>, aim: Aim) -> Self {
        Self { name: name.into(), unit, values, peer: None, aim, share: MEDIAN }
    }

    /// A figure held against a peer's, taken in turn with it.
    #[must_use]
    pub fn beside(
        name: impl Into<String>,
        unit: &'static str,
        values: Vec<f64>,
        peer: impl Into<String>,
        peer_values: Vec<f64>,
        aim: Aim,
    ) -> Self {
        Self { name: name.into(), unit, values, peer: Some((peer.into(), peer_values)), aim, share: MEDIAN }
    }

    /// Tells the value below which `share` of the runs lie (0.99; 1 is the largest) instead of the
    /// median, of the peer's as well. The spread stays that of all runs.
    #[must_use]
    pub fn at(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    fn row(&self) -> Row {
        let value = percentile(&self.values, self.share);
        let peer_value = self.peer.as_ref().map(|(_, v)| percentile(v, self.share));
        let ratio = peer_value.filter(|p| *p > 0.0).map(|p| value / p);
        let (aim, met) = match self.aim {
            Aim::AtMost(x) => (format!("<= {}", plain(x)), Some(value <= x)),
            Aim::AtLeast(x) => (format!(">= {}", plain(x)), Some(value >= x)),
            Aim::RatioAtLeast(x) => (format!("ratio >= {}", plain(x)), ratio.map(|r| r >= x)),
            Aim::RatioAtMost(x) => (format!("ratio <= {}", plain(x)), ratio.map(|r| r <= x)),
        };
        Row {
            name: self.name.clone(),
            value,
            unit: self.unit,
            spread: Spread::of(&self.values),
            peer: self.peer.as_ref().map(|(name, _)| name.clone()),
            peer_value,
            peer_spread: self.peer.as_ref().map(|(_, v)| Spread::of(v)),
            ratio,
            aim,
            met,
        }
    }
}

const MEDIAN: f64 = 0.5;

/// How far the runs lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    runs: usize,
    min: f64,
    p25: f64,
    median: f64,
    p75: f64,
    max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let at = |share| percentile(values, share);
        Self { runs: values.len(), min: at(0.0), p25: at(0.25), median: at(MEDIAN), p75: at(0.75), max: at(1.0) }
    }

    /// `min … max`, or a dash for a single value: that has no spread.
    fn shown(&self) -> String {
        if self.runs > 1 { format!("{} … {}", short(self.min), short(self.max)) } else { "-".to_owned() }
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    spread: Spread,
    peer: Option<String>,
    peer_value: Option<f64>,
    peer_spread: Option<Spread>,
    ratio: Option<f64>,
    aim: String,
    met: Option<bool>,
}

#[derive(Serialize)]
struct Missing {
    name: String,
    why: String,
}

/// All figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
    missing: Vec<(String, String)>,
}

impl Report {
    /// One more figure.
    pub fn add(&mut self, figure: Figure) {
        if !figure.values.is_empty() {
            self.figures.push(figure);
        }
    }

    /// A group that gave no figures, and why.
    pub fn missing(&mut self, name: &str, why: &str) {
        self.missing.push((name.to_owned(), why.to_owned()));
    }

    /// The JSON document.
    pub fn json(&self) -> Result<String> {
        let missing: Vec<_> =
            self.missing.iter().map(|(name, why)| Missing { name: name.clone(), why: why.clone() }).collect();
        let rows: Vec<Row> = self.figures.iter().map(Figure::row).collect();
        serde_json::to_string_pretty(&serde_json::json!({ "results": rows, "missing": missing }))
            .map_err(|e| Error::Format { what: "the report".to_owned(), why: e.to_string() })
    }

    /// The table for a person.
    #[must_use]
    pub fn table(&self) -> String {
        let head =
            ["FIGURE", "VALUE", "SPREAD", "PEER", "ITS SPREAD", "RATIO", "AIM", "MET"].map(str::to_owned).to_vec();
        let mut rows = vec![head];
        for figure in &self.figures {
            let row = figure.row();
            let peer = match (&row.peer, row.peer_value) {
                (Some(name), Some(value)) => format!("{} {} ({name})", short(value), row.unit),
                _ => "-".to_owned(),
            };
            rows.push(vec![
                row.name,
                format!("{} {}", short(row.value), row.unit),
                row.spread.shown(),
                peer,
                row.peer_spread.map_or_else(|| "-".to_owned(), |s| s.shown()),
                row.ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}")),
                row.aim,
                row.met.map_or("-", |m| if m { "yes" } else { "NO" }).to_owned(),
            ]);
        }
        let mut text = columns(&rows);
        for (name, why) in &self.missing {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "not measured: {name}: {why}");
        }
        text
    }
}

fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..count).map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// An aim as a person would write it: three decimals at most.
fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value below which `share` of the values lie; 0 for none.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_ratio_decide() {
        let figure =
            Figure::beside("w", "/s", vec![1.0, 9.0, 5.0], "etcd", vec![2.0, 2.5, 100.0], Aim::RatioAtLeast(2.0));
        let row = figure.row();
        assert_eq!((row.value, row.peer_value, row.ratio), (5.0, Some(2.5), Some(2.0)));
        assert_eq!((row.met, row.spread.min, row.spread.max), (Some(true), 1.0, 9.0));
        let figure = Figure::limit("t", "s", vec![11.0], Aim::AtMost(10.0));
        assert_eq!(figure.row().met, Some(false));
    }

    #[test]
    fn another_than_the_median_is_told_with_the_spread_of_all() {
        let figure = Figure::limit("max", "s", vec![1.0, 2.0, 3.0, 9.0], Aim::AtMost(5.0)).at(1.0);
        let row = figure.row();
        assert_eq!((row.value, row.spread.median, row.met), (9.0, 3.0, Some(false)));
    }

    #[test]
    fn table_and_json_show_both_spreads() {
        let mut report = Report::default();
        let aim = Aim::RatioAtMost(1.0 / 0.95);
        report.add(Figure::beside("trip", "µs", vec![1.0, 2.0, 3.0], "plain", vec![2.0, 4.0, 8.0], aim));
        report.missing("pod-start beside podman", "podman is not installed");
        let table = report.table();
        for part in ["1.00 … 3.00", "2.00 … 8.00", "ratio <= 1.053", "yes", "podman is not installed"] {
            assert!(table.contains(part), "{part} in {table}");
        }
        let json: serde_json::Value = serde_json::from_str(&report.json().expect("json")).expect("json");
        let row = &json["results"][0];
        assert_eq!(
            (&row["ratio"], &row["spread"]["p75"], &row["peer_spread"]["max"]),
            (&0.5.into(), &3.0.into(), &8.0.into())
        );
    }

    #[test]
    fn percentiles_of_few_values() {
        assert_eq!(percentile(&[], 0.99), 0.0);
        assert_eq!(percentile(&[3.0], 0.99), 3.0);
        let hundred: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), 99.0);
    }
}
