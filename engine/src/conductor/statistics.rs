// SPDX-License-Identifier: Apache-2.0
//! What the replication costs, in figures that `info migrate` shows.
//!
//! The conductor writes, the control socket reads; the last durations are kept so that a median
//! and a 99th percentile can be told without a clock of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kemari_api::figures::{Histogram, ReplicaFigures};
use kemari_replication::PAGE_BYTES;
use kemari_replication::compression::{Effort, PageTally, Spent};

/// How many of the last checkpoints the percentiles look at.
const WINDOW: usize = 1024;

/// Shared counters.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    figures: Figures,
    pauses: VecDeque<Duration>,
    commits: VecDeque<Duration>,
    /// Encoding of one page, by checkpoint.
    encodings: VecDeque<Duration>,
    last_link_failure: Option<String>,
    all_pauses: Histogram,
    all_commits: Histogram,
    /// When the newest committed epoch was cut.
    committed_cut: Option<Duration>,
    link_failures: u64,
}

/// One reading of the counters.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// The initial copy is under way.
    pub copying: bool,
    /// Checkpoints committed since the engine started.
    pub checkpoints: u64,
    /// Bytes handed to the link.
    pub sent_bytes: u64,
    /// Pages in the last checkpoint.
    pub last_pages: u64,
    /// Pages of all checkpoints, by how they were sent.
    pub pages: PageTally,
    /// How much work goes into the pages of the next checkpoint.
    pub effort: Effort,
    /// Encoding a page: median and 99th percentile over the last checkpoints.
    pub encode: [Duration; 2],
    /// Guest stopped: median and 99th percentile over the last checkpoints.
    pub pause: [Duration; 2],
    /// Guest stopped for checkpoints, in all since the engine started.
    pub stopped: Duration,
    /// How long the guest stood still in its last migration from here.
    pub blackout: Duration,
    /// From the end of an epoch to its commit: median and 99th percentile.
    pub commit: [Duration; 2],
}

impl Figures {
    /// Name and value, a line each.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let pair = |[median, p99]: [Duration; 2]| {
            format!(
                "{} us median, {} us p99",
                median.as_micros(),
                p99.as_micros()
            )
        };
        let pages = &self.pages;
        let dirty_bytes = pages.pages() * PAGE_BYTES as u64;
        let [encode, encode_p99] = self.encode.map(|time| time.as_nanos());
        vec![
            ("checkpoints", self.checkpoints.to_string()),
            ("transferred", format!("{} KiB", self.sent_bytes / 1024)),
            ("pages in the last checkpoint", self.last_pages.to_string()),
            (
                "memory in checkpoints",
                format!(
                    "{} KiB written, {} KiB sent",
                    dirty_bytes / 1024,
                    pages.wire_bytes / 1024
                ),
            ),
            (
                "pages sent as",
                format!(
                    "{} zero, {} unchanged, {} delta, {} delta and LZ4, {} LZ4, {} raw",
                    pages.zero, pages.unchanged, pages.delta, pages.delta_lz4, pages.lz4, pages.raw
                ),
            ),
            ("encoding now", self.effort.to_string()),
            (
                "encoding a page",
                format!("{encode} ns median, {encode_p99} ns p99"),
            ),
            ("guest stopped per checkpoint", pair(self.pause)),
            (
                "guest stopped in all",
                format!("{} us", self.stopped.as_micros()),
            ),
            ("cut to commit", pair(self.commit)),
        ]
    }
}

impl Statistics {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        // Counters are never left half changed: a poisoned lock is as good as a sound one.
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy is under way, or has ended.
    pub fn copying(&self, copying: bool) {
        self.with(|inner| inner.figures.copying = copying);
    }

    /// Bytes were handed to the link.
    pub fn sent(&self, bytes: usize) {
        self.with(|inner| inner.figures.sent_bytes += bytes as u64);
    }

    /// The pages of a checkpoint were encoded; the next one gets this effort.
    pub fn encoded(&self, spent: &Spent, next: Effort) {
        self.with(|inner| {
            inner.figures.effort = next;
            inner.figures.pages.add(&spent.tally);
            let pages = u32::try_from(spent.tally.pages()).unwrap_or(u32::MAX);
            if let Some(page) = spent.encode.checked_div(pages) {
                push(&mut inner.encodings, page);
            }
        });
    }

    /// The guest was stopped this long for a checkpoint of so many pages.
    pub fn paused(&self, pause: Duration, pages: u64) {
        self.with(|inner| {
            inner.figures.last_pages = pages;
            push(&mut inner.pauses, pause);
            inner.all_pauses.record(pause);
        });
    }

    /// A checkpoint that was cut then was committed now.
    pub fn committed(&self, cut_at: Duration, now: Duration) {
        self.with(|inner| {
            let since_cut = now.saturating_sub(cut_at);
            inner.figures.checkpoints += 1;
            inner.committed_cut = Some(cut_at);
            push(&mut inner.commits, since_cut);
            inner.all_commits.record(since_cut);
        });
    }

    /// The guest left, and had stood still this long.
    pub fn left(&self, blackout: Duration) {
        self.with(|inner| inner.figures.blackout = blackout);
    }

    /// Why the last link ended; `None` forgets it when a new one begins.
    pub fn link_failed(&self, failure: Option<String>) {
        self.with(|inner| {
            inner.link_failures += u64::from(failure.is_some());
            inner.last_link_failure = failure;
        });
    }

    /// Why the last link ended, if none has begun since.
    pub fn last_link_failure(&self) -> Option<String> {
        self.with(|inner| inner.last_link_failure.clone())
    }

    /// The figures that programs read. The lag is for whoever knows whether there is a pair.
    pub fn reading(&self, now: Duration) -> ReplicaFigures {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let figures = self.figures();
        self.with(|inner| ReplicaFigures {
            copying: figures.copying,
            checkpoints: figures.checkpoints,
            sent_bytes: figures.sent_bytes,
            dirty_bytes: figures.pages.pages() * PAGE_BYTES as u64,
            pause: inner.all_pauses.clone(),
            commit: inner.all_commits.clone(),
            pause_us: us(figures.pause[0]),
            commit_us: us(figures.commit[0]),
            lag_us: inner
                .committed_cut
                .map_or(0, |cut_at| us(now.saturating_sub(cut_at))),
            queue_outputs: 0,
            queue_bytes: 0,
            link_failures: inner.link_failures,
            last_link_failure: inner.last_link_failure.clone().unwrap_or_default(),
        })
    }

    /// All figures now.
    pub fn figures(&self) -> Figures {
        self.with(|inner| Figures {
            pause: percentiles(&inner.pauses),
            commit: percentiles(&inner.commits),
            encode: percentiles(&inner.encodings),
            stopped: Duration::from_micros(inner.all_pauses.sum_us),
            ..inner.figures.clone()
        })
    }
}

fn push(window: &mut VecDeque<Duration>, value: Duration) {
    if window.len() == WINDOW {
        window.pop_front();
    }
    window.push_back(value);
}

fn percentiles(window: &VecDeque<Duration>) -> [Duration; 2] {
    let mut sorted: Vec<Duration> = window.iter().copied().collect();
    sorted.sort_unstable();
    let at = |percent: usize| {
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    };
    [at(50), at(99)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_the_age_of_the_newest_commit_and_failures_are_counted() {
        let statistics = Statistics::default();
        let ms = Duration::from_millis;
        assert_eq!(statistics.reading(ms(7)).lag_us, 0);
        statistics.committed(ms(10), ms(12));
        statistics.link_failed(Some("cut".to_owned()));
        statistics.link_failed(None);
        let reading = statistics.reading(ms(15));
        assert_eq!((reading.lag_us, reading.checkpoints), (5_000, 1));
        assert_eq!(reading.commit.count(), 1);
        assert_eq!(
            (reading.link_failures, reading.last_link_failure.as_str()),
            (1, "")
        );
    }

    #[test]
    fn percentiles_of_nothing_one_and_many() {
        let statistics = Statistics::default();
        assert_eq!(statistics.figures().pause, [Duration::ZERO; 2]);
        for us in 1..=2000 {
            statistics.paused(Duration::from_micros(us), 1);
        }
        let [median, p99] = statistics.figures().pause;
        // The window holds 977 to 2000.
        assert_eq!(median, Duration::from_micros(1489));
        assert_eq!(p99, Duration::from_micros(1990));
    }
}
