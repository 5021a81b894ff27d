// SPDX-License-Identifier: Apache-2.0
//! How much later an answer leaves a protected guest than the same guest alone.

use std::time::Duration;

use anyhow::{Context, Result};

use super::engine_pair::{EnginePair, Shape};
use super::quantiles::Quantiles;

/// Answers that are waited for.
const ANSWERS: usize = 300;

/// A byte typed at the console until the guest's answer is outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answers {
    /// Of the guest alone.
    pub alone: Quantiles,
    /// Of the same guest, protected.
    pub protected: Quantiles,
}

/// A guest that writes to 100 pages a round and answers once a round. `policy` is that of `[replication]`.
///
/// # Errors
/// When an engine or the guest fails.
pub fn measure(policy: &str) -> Result<Answers> {
    let shape = Shape {
        memory_mib: 256,
        vcpus: 1,
        cmdline: "fill=100 pages=100".to_owned(),
        memory: String::new(),
        replication: format!("policy = {policy:?}\npeer_timeout_ms = 20000"),
    };
    let mut pair = EnginePair::start(&shape)?;
    let alone = answers(&mut pair)?;
    pair.protect()?;
    let protected = answers(&mut pair)?;
    Ok(Answers { alone, protected })
}

fn answers(pair: &mut EnginePair) -> Result<Quantiles> {
    let mut times = Vec::with_capacity(ANSWERS);
    for number in 0..ANSWERS {
        // Not in step with the epochs.
        std::thread::sleep(Duration::from_micros(3000 + (number as u64 * 7919) % 5000));
        // A header's letters are not among these.
        times.push(
            pair.console
                .echo(if number % 2 == 0 { b'!' } else { b'#' })?,
        );
    }
    Quantiles::of(times).context("No answers")
}
