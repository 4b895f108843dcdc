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
}

impl Figure {
    /// A figure held against a fixed limit.
    #[must_use]
    pub fn limit(name: impl Into<String>, unit: &'static str, values: Vec<f64>, aim: Aim) -> Self {
        Self { name: name.into(), unit, values, peer: None, aim }
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
        Self { name: name.into(), unit, values, peer: Some((peer.into(), peer_values)), aim }
    }

    fn row(&self) -> Row {
        let value = median(&self.values);
        let peer_value = self.peer.as_ref().map(|(_, v)| median(v));
        let ratio = peer_value.filter(|p| *p > 0.0).map(|p| value / p);
        let (aim, met) = match self.aim {
            Aim::AtMost(x) => (format!("<= {x}"), Some(value <= x)),
            Aim::AtLeast(x) => (format!(">= {x}"), Some(value >= x)),
            Aim::RatioAtLeast(x) => (format!("ratio >= {x}"), ratio.map(|r| r >= x)),
            Aim::RatioAtMost(x) => (format!("ratio <= {x}"), ratio.map(|r| r <= x)),
        };
        Row {
            name: self.name.clone(),
            value,
            unit: self.unit,
            spread: spread(&self.values),
            runs: self.values.len(),
            peer: self.peer.as_ref().map(|(name, _)| name.clone()),
            peer_value,
            peer_spread: self.peer.as_ref().map(|(_, v)| spread(v)),
            ratio,
            aim,
            met,
        }
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    value: f64,
    unit: &'static str,
    /// Smallest and largest of the runs.
    spread: [f64; 2],
    runs: usize,
    peer: Option<String>,
    peer_value: Option<f64>,
    peer_spread: Option<[f64; 2]>,
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
        let head = ["FIGURE", "VALUE", "SPREAD", "PEER", "RATIO", "AIM", "MET"].map(str::to_owned).to_vec();
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
                format!("{} … {}", short(row.spread[0]), short(row.spread[1])),
                peer,
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

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle value; the upper one of two.
pub(super) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which `share` of the values lie; 0 for none.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn spread(values: &[f64]) -> [f64; 2] {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [low, high]
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
        assert_eq!((row.met, row.spread), (Some(true), [1.0, 9.0]));
        let figure = Figure::limit("t", "s", vec![11.0], Aim::AtMost(10.0));
        assert_eq!(figure.row().met, Some(false));
    }

    #[test]
    fn percentiles_of_few_values() {
        assert_eq!(percentile(&[], 0.99), 0.0);
        assert_eq!(percentile(&[3.0], 0.99), 3.0);
        let hundred: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), 99.0);
    }
}
