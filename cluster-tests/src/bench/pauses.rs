// SPDX-License-Identifier: Apache-2.0
//! How long a guest stands still for a checkpoint, and how much of its time it has left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::engine_pair::{Checkpoints, EnginePair, Shape};
use super::memcpy;
use super::quantiles::Quantiles;

/// Checkpoints that are looked at: at most as many as the engine remembers.
const CHECKPOINTS: u64 = 300;
/// A measurement ends by then, with fewer checkpoints.
const LIMIT: Duration = Duration::from_secs(40);

/// One guest's checkpoints over some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pauses {
    /// How long it stood still for one.
    pub pause: Quantiles,
    /// From the end of an epoch to its commit.
    pub commit: Quantiles,
    /// Part of the time in which it ran, from 0 to 1.
    pub running: f64,
    /// Pages in the last checkpoint.
    pub pages: u64,
    /// Checkpoints a second.
    pub per_second: f64,
    /// One copy of as many pages in the same minute.
    pub memcpy: Quantiles,
}

/// A guest that writes to `pages` pages all the time and puts nothing out, with epochs of `epoch_ms`. Page contents are sent as they
/// are: what is measured is the pause, which does not depend on it.
pub fn shape(memory_mib: u32, vcpus: u8, pages: u32, epoch_ms: u32) -> Shape {
    Shape {
        memory_mib,
        vcpus,
        cmdline: format!("fill={pages} pages={pages}"),
        memory: String::new(),
        replication: format!(
            "epoch_ms_max = {epoch_ms}\npolicy = \"throughput\"\ncompression = \"off\"\npeer_timeout_ms = 20000"
        ),
    }
}

/// Measures it.
///
/// # Errors
/// When an engine fails, or does not take the checkpoints it should.
pub fn measure(shape: &Shape) -> Result<Pauses> {
    let pair = EnginePair::start(shape)?;
    pair.protect()?;
    // The first checkpoints find the caches cold and the rest of the copy.
    settle(&pair, 2)?;
    let (first, begun) = (pair.checkpoints()?, Instant::now());
    let mut last = first;
    while last.committed < first.committed + CHECKPOINTS && begun.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(100));
        last = pair.checkpoints()?;
    }
    let time = begun.elapsed();
    ensure!(
        last.committed >= first.committed + 3,
        "Only {} checkpoints in {time:?}",
        last.committed - first.committed
    );
    let stopped = last.stopped.saturating_sub(first.stopped);
    let pages = usize::try_from(last.last_pages)?;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let committed = (last.committed - first.committed) as f64;
    Ok(Pauses {
        pause: last.pause,
        commit: last.commit,
        running: 1.0 - stopped.as_secs_f64() / time.as_secs_f64(),
        pages: last.last_pages,
        per_second: committed / time.as_secs_f64(),
        memcpy: memcpy::measure(pages, 100).context("Nothing was copied")?,
    })
}

/// Waits for so many checkpoints.
fn settle(pair: &EnginePair, checkpoints: u64) -> Result<Checkpoints> {
    let begun = Instant::now();
    let first = pair.checkpoints()?;
    loop {
        let now = pair.checkpoints()?;
        if now.committed >= first.committed + checkpoints {
            return Ok(now);
        }
        ensure!(
            begun.elapsed() < LIMIT,
            "No {checkpoints} checkpoints in {LIMIT:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
