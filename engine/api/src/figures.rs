// SPDX-License-Identifier: Apache-2.0
//! What a replica's replication costs, in figures that programs read.
//!
//! Histograms only ever grow while the engine runs, so that whoever reads them twice knows what
//! happened in between (Prometheus does).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

/// Upper bounds of a histogram's buckets, in microseconds; one more bucket takes all that is longer.
pub const BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000,
];

/// How often something took how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Histogram {
    /// How many were in each bucket (not cumulative): one for each of [`BOUNDS_US`] and one above.
    pub counts: Vec<u64>,
    /// All durations together, in microseconds.
    pub sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BOUNDS_US.len() + 1],
            sum_us: 0,
        }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One reading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ReplicaFigures {
    /// The first copy to a passive replica is under way.
    pub copying: bool,
    /// Checkpoints committed since the engine started.
    pub checkpoints: u64,
    /// Bytes of checkpoints handed to the link since the engine started.
    pub sent_bytes: u64,
    /// Guest memory found changed in all checkpoints, in bytes.
    pub dirty_bytes: u64,
    /// How long the guest stood still for a checkpoint.
    pub pause: Histogram,
    /// From the end of an epoch to its commit.
    pub commit: Histogram,
    /// Median of the last pauses, in microseconds; 0 if there were none.
    pub pause_us: u64,
    /// Median of the last times from an epoch's end to its commit, in microseconds; 0 if there were none.
    pub commit_us: u64,
    /// How old the state is that the passive replica would run from, in microseconds. 0 while this
    /// replica is not the active one of a pair.
    pub lag_us: u64,
    /// Outputs that were caught and have not left.
    pub queue_outputs: u64,
    /// The memory they take, in bytes.
    pub queue_bytes: u64,
    /// How often a link to a passive replica ended in failure since the engine started.
    pub link_failures: u64,
    /// Why the last link ended, if none has begun since; otherwise empty.
    pub last_link_failure: String,
}

/// What a comparison of the disks of both replicas found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Comparison {
    /// No block differs.
    pub equal: bool,
    /// One sentence for people: which blocks differ.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_counts_below_it() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_micros(50));
        histogram.record(Duration::from_micros(51));
        histogram.record(Duration::from_secs(3600));
        assert_eq!(histogram.counts.first(), Some(&1));
        assert_eq!(histogram.counts.get(1), Some(&1));
        assert_eq!(histogram.counts.last(), Some(&1));
        assert_eq!(histogram.count(), 3);
        assert_eq!(histogram.sum_us, 101 + 3_600_000_000);
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS_US.is_sorted_by(|a, b| a < b));
    }
}
