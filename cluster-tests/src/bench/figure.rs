// SPDX-License-Identifier: Apache-2.0
//! One figure with its baseline, as a line of the table and as a JSON object.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// Something that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured: `pause`, `guest-runs`, …
    pub bench: &'static str,
    /// Under which circumstances.
    pub parameters: Vec<(&'static str, Value)>,
    /// How much.
    pub value: f64,
    /// Of what: `us`, `MiB/s`, `%`, …
    pub unit: &'static str,
    /// What it is compared with.
    pub baseline: Option<Baseline>,
    /// What is aimed at, where something is.
    pub target: Option<Target>,
}

/// The same, reached by something else in the same run.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// By what.
    pub of: &'static str,
    /// In the figure's unit.
    pub value: f64,
}

/// What is aimed at on the development machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// At least this, in the figure's unit.
    AtLeast(f64),
    /// At most so many times the baseline.
    TimesBaselineAtMost(f64),
    /// The baseline is at least so many times as large.
    BaselineTimesAtLeast(f64),
    /// At least this part of the baseline.
    PartOfBaselineAtLeast(f64),
}

impl Figure {
    /// A figure without baseline.
    pub fn new(bench: &'static str, value: f64, unit: &'static str) -> Self {
        Self {
            bench,
            parameters: Vec::new(),
            value,
            unit,
            baseline: None,
            target: None,
        }
    }

    /// Under this circumstance.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }

    /// Compared with this.
    #[must_use]
    pub fn beside(mut self, of: &'static str, value: f64) -> Self {
        self.baseline = Some(Baseline { of, value });
        self
    }

    /// Aiming at this.
    #[must_use]
    pub fn aiming_at(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Whether the target is reached; `None` without one, or without the baseline it needs.
    pub fn reaches(&self) -> Option<bool> {
        let baseline = self.baseline.as_ref().map(|baseline| baseline.value);
        Some(match self.target? {
            Target::AtMost(most) => self.value <= most,
            Target::AtLeast(least) => self.value >= least,
            Target::TimesBaselineAtMost(times) => self.value <= baseline? * times,
            Target::BaselineTimesAtLeast(times) => baseline? >= self.value * times,
            Target::PartOfBaselineAtLeast(part) => self.value >= baseline? * part,
        })
    }

    /// `bench`, the parameters, `value`, `unit`, `baseline` and whose it is.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("bench".to_owned(), json!(self.bench));
        for (name, value) in &self.parameters {
            object.insert((*name).to_owned(), value.clone());
        }
        object.insert("value".to_owned(), json!(self.value));
        object.insert("unit".to_owned(), json!(self.unit));
        if let Some(baseline) = &self.baseline {
            object.insert("baseline".to_owned(), json!(baseline.value));
            object.insert("baseline_of".to_owned(), json!(baseline.of));
        }
        Value::Object(object)
    }

    fn row(&self) -> String {
        let parameters = self
            .parameters
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name} {text}"),
                other => format!("{name} {other}"),
            })
            .collect::<Vec<_>>()
            .join(", ");
        let baseline = self.baseline.as_ref().map_or_else(String::new, |baseline| {
            format!("{}: {:.1}", baseline.of, baseline.value)
        });
        let target = match self.reaches() {
            None => "",
            Some(true) => "reached",
            Some(false) => "missed",
        };
        let (bench, value, unit) = (self.bench, self.value, self.unit);
        format!("{bench:16} {parameters:42} {value:>12.1} {unit:6} {baseline:32} {target}")
    }
}

/// The table on standard output and the file of JSON lines, figure by figure.
#[derive(Debug)]
pub struct Report {
    file: File,
}

impl Report {
    /// Begins a new file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
        println!(
            "{:16} {:42} {:>12} {:6} {:32} target",
            "figure", "of", "value", "unit", "baseline"
        );
        Ok(Self { file })
    }

    /// Takes a figure.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, figure: &Figure) -> Result<()> {
        println!("{}", figure.row());
        writeln!(self.file, "{}", figure.json()).context("Cannot write the figures' file")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_says_what_it_is_and_beside_what() {
        let figure = Figure::new("pause", 10.0, "us")
            .with("pages", 100)
            .with("quantile", "p50")
            .beside("memcpy", 4.0);
        let text = figure.json().to_string();
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            back,
            json!({
                "bench": "pause", "pages": 100, "quantile": "p50", "value": 10.0, "unit": "us",
                "baseline": 4.0, "baseline_of": "memcpy",
            })
        );
    }

    #[test]
    fn targets_are_judged_by_value_and_baseline() {
        let figure = Figure::new("pause", 10.0, "us").beside("memcpy", 4.0);
        let judge = |target| figure.clone().aiming_at(target).reaches();
        assert_eq!(figure.reaches(), None);
        assert_eq!(judge(Target::AtMost(10.0)), Some(true));
        assert_eq!(judge(Target::AtLeast(10.5)), Some(false));
        assert_eq!(judge(Target::TimesBaselineAtMost(2.0)), Some(false));
        assert_eq!(judge(Target::TimesBaselineAtMost(2.5)), Some(true));
        assert_eq!(judge(Target::BaselineTimesAtLeast(1.0)), Some(false));
        assert_eq!(judge(Target::PartOfBaselineAtLeast(0.7)), Some(true));
        let alone = Figure::new("pause", 1.0, "us").aiming_at(Target::TimesBaselineAtMost(2.0));
        assert_eq!(alone.reaches(), None);
    }
}
