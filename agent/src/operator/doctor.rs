// SPDX-License-Identifier: Apache-2.0
//! `kemarictl doctor`: what is wrong with this node and the cluster's settings.
//!
//! [`facts`] looks, [`checks`] judges; a line each.

mod checks;
mod facts;

use std::fmt::Write as _;

use serde::Serialize;

use super::overview::FORMAT;
use super::paint::{Paint, Tone};
use super::{Form, print, print_json};
use crate::command::{Ended, Exit};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    name: &'static str,
    level: Level,
    found: String,
    remedy: String,
}

#[derive(Serialize)]
struct Diagnosis<'a> {
    format: u32,
    checks: &'a [Finding],
}

/// Looks, judges and prints.
pub(super) async fn doctor(form: Form) -> anyhow::Result<()> {
    let findings = findings().await;
    match form {
        Form::Json => print_json(&Diagnosis {
            format: FORMAT,
            checks: &findings,
        })?,
        Form::Text => print(&lines(&findings, Paint::of_stdout()))?,
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.level == Level::Fail)
        .count();
    if bad == 0 {
        return Ok(());
    }
    Err(Ended::new(
        Exit::Found,
        format!("{bad} of {} checks failed", findings.len()),
    )
    .into())
}

/// The diagnosis as text, for a report.
pub(super) async fn diagnosis() -> String {
    lines(&findings().await, Paint::Plain)
}

async fn findings() -> Vec<Finding> {
    checks::judge(&facts::gather().await)
}

fn lines(findings: &[Finding], paint: Paint) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, tone) = match finding.level {
            Level::Ok => ("OK  ", Tone::Good),
            Level::Warn => ("WARN", Tone::Doubtful),
            Level::Fail => ("FAIL", Tone::Bad),
        };
        let _ = writeln!(
            text,
            "{}  {}: {}",
            paint.text(tone, word),
            finding.name,
            finding.found
        );
        if !finding.remedy.is_empty() {
            let _ = writeln!(text, "      → {}", finding.remedy);
        }
    }
    text
}
