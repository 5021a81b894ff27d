// SPDX-License-Identifier: Apache-2.0
//! When the next checkpoint is taken.
//!
//! An output waits for its checkpoint, so the first one of an epoch starts a short gather window
//! and then ends the epoch. Without output an epoch ends when it is long enough or the guest has
//! written enough pages. Two checkpoints are never closer than a minimum, whatever happens.
//!
//! | policy | an output ends the epoch | distance of two checkpoints at least |
//! | --- | --- | --- |
//! | latency | after the gather window | `interval_min` |
//! | auto | after the gather window | `interval_min`, or nine times the last pause: the guest runs nine tenths of the time |
//! | throughput | never: it waits for the longest epoch | `interval_min` |
//!
//! Whatever the policy and the longest epoch, the guest then runs at least as long as it stood still:
//! where a pause is longer than the longest epoch it would otherwise hardly run at all.
//!
//! A pure function of what it is given. All times are on one monotonic clock of the caller.

use std::time::Duration;

/// What checkpoints are spaced for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// Outputs leave as soon as possible.
    Latency,
    /// Outputs leave soon, and the guest keeps most of its time.
    #[default]
    Auto,
    /// The guest keeps its time; outputs wait for the longest epoch.
    Throughput,
}

/// The guest runs this many times as long as it stood still, under [`Policy::Auto`].
const RUN_PER_PAUSE: u32 = 9;

/// How checkpoints are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TriggerConfig {
    /// For what.
    pub policy: Policy,
    /// How long outputs are gathered after the first one of an epoch.
    pub gather: Duration,
    /// The longest epoch.
    pub epoch_max: Duration,
    /// The shortest time from the start of one checkpoint to the start of the next.
    pub interval_min: Duration,
    /// A checkpoint is due when the guest has written this many pages since the last.
    pub dirty_pages_max: u64,
}

impl Default for TriggerConfig {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            gather: Duration::from_micros(500),
            epoch_max: Duration::from_millis(50),
            interval_min: Duration::from_millis(2),
            dirty_pages_max: 16 * 1024,
        }
    }
}

/// What is known when the question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TriggerInput {
    /// Now.
    pub now: Duration,
    /// How long the guest stood still for the last checkpoint.
    pub last_pause: Duration,
    /// When the last checkpoint was started; when the epoch began, if there was none.
    pub last_start: Duration,
    /// When the first output of the open epoch was queued.
    pub output_since: Option<Duration>,
    /// About how many pages were written in the open epoch, if anyone knows.
    pub dirty_pages: Option<u64>,
    /// What the guest wrote to replicated disks in the open epoch.
    pub disk_log: DiskLogLength,
}

/// Whether the log of the open epoch has become long enough to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskLogLength {
    /// No.
    Short,
    /// Yes.
    Long,
}

/// Why a checkpoint is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Outputs wait for it.
    Output,
    /// The epoch is as long as allowed.
    LongestEpoch,
    /// The guest wrote many pages.
    DirtyPages,
    /// The guest wrote much to its disks.
    DiskLog,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Ask again at this time, or when an output is queued, whichever comes first.
    Wait(Duration),
    /// Take a checkpoint.
    Now(Reason),
}

impl TriggerConfig {
    /// Whether a checkpoint is due.
    #[must_use]
    pub fn decide(&self, input: &TriggerInput) -> Decision {
        let earliest = input.last_start.saturating_add(self.distance(input));
        let (due, reason) = self.due(input);
        let due = due.max(earliest);
        if input.now >= due {
            Decision::Now(reason)
        } else {
            Decision::Wait(due)
        }
    }

    /// How far the next checkpoint must be from the last one.
    fn distance(&self, input: &TriggerInput) -> Duration {
        // From the start of one to the start of the next: the pause is part of it.
        let half = input.last_pause.saturating_mul(2);
        let fair = match self.policy {
            Policy::Latency | Policy::Throughput => half,
            Policy::Auto => {
                let most = input.last_pause.saturating_mul(RUN_PER_PAUSE + 1);
                most.min(self.epoch_max).max(half)
            }
        };
        self.interval_min.max(fair)
    }

    /// When one is due, the minimum interval aside, and why.
    fn due(&self, input: &TriggerInput) -> (Duration, Reason) {
        let longest = input.last_start.saturating_add(self.epoch_max);
        if input
            .dirty_pages
            .is_some_and(|pages| pages >= self.dirty_pages_max)
        {
            return (input.now, Reason::DirtyPages);
        }
        if input.disk_log == DiskLogLength::Long {
            return (input.now, Reason::DiskLog);
        }
        match input
            .output_since
            .filter(|_| self.policy != Policy::Throughput)
            .map(|since| since.saturating_add(self.gather))
        {
            Some(gathered) if gathered <= longest => (gathered, Reason::Output),
            _ => (longest, Reason::LongestEpoch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const CONFIG: TriggerConfig = TriggerConfig {
        policy: Policy::Latency,
        gather: MS,
        epoch_max: Duration::from_millis(50),
        interval_min: Duration::from_millis(5),
        dirty_pages_max: 1000,
    };

    fn quiet(now: u32) -> TriggerInput {
        TriggerInput {
            now: MS * now,
            last_pause: Duration::ZERO,
            last_start: MS * 100,
            output_since: None,
            dirty_pages: None,
            disk_log: DiskLogLength::Short,
        }
    }

    #[test]
    fn a_quiet_epoch_ends_at_its_longest() {
        assert_eq!(CONFIG.decide(&quiet(149)), Decision::Wait(MS * 150));
        assert_eq!(
            CONFIG.decide(&quiet(150)),
            Decision::Now(Reason::LongestEpoch)
        );
    }

    #[test]
    fn an_output_ends_the_epoch_after_the_gather_window() {
        let input = TriggerInput {
            output_since: Some(MS * 110),
            ..quiet(110)
        };
        assert_eq!(CONFIG.decide(&input), Decision::Wait(MS * 111));
        let input = TriggerInput {
            now: MS * 111,
            ..input
        };
        assert_eq!(CONFIG.decide(&input), Decision::Now(Reason::Output));
    }

    #[test]
    fn checkpoints_keep_their_distance_whatever_waits() {
        let input = TriggerInput {
            output_since: Some(MS * 100),
            dirty_pages: Some(1_000_000),
            ..quiet(102)
        };
        assert_eq!(CONFIG.decide(&input), Decision::Wait(MS * 105));
        let input = TriggerInput {
            now: MS * 105,
            ..input
        };
        assert_eq!(CONFIG.decide(&input), Decision::Now(Reason::DirtyPages));
    }

    #[test]
    fn the_guest_keeps_nine_tenths_of_its_time_under_auto() {
        let config = TriggerConfig {
            policy: Policy::Auto,
            ..CONFIG
        };
        let input = |pause, now| TriggerInput {
            output_since: Some(MS * 101),
            last_pause: pause,
            ..quiet(now)
        };
        assert_eq!(
            config.decide(&input(MS / 10, 104)),
            Decision::Wait(MS * 105)
        );
        assert_eq!(config.decide(&input(MS * 3, 110)), Decision::Wait(MS * 130));
        assert_eq!(
            config.decide(&input(MS * 20, 110)),
            Decision::Wait(MS * 150)
        );
        assert_eq!(
            CONFIG.decide(&input(MS * 3, 110)),
            Decision::Now(Reason::Output)
        );
    }

    #[test]
    fn a_pause_longer_than_the_longest_epoch_leaves_the_guest_half_of_its_time() {
        for policy in [Policy::Latency, Policy::Auto, Policy::Throughput] {
            let config = TriggerConfig { policy, ..CONFIG };
            let input = TriggerInput {
                output_since: Some(MS * 101),
                last_pause: MS * 90,
                ..quiet(190)
            };
            assert_eq!(config.decide(&input), Decision::Wait(MS * 280));
        }
    }

    #[test]
    fn an_output_waits_for_the_longest_epoch_under_throughput() {
        let config = TriggerConfig {
            policy: Policy::Throughput,
            ..CONFIG
        };
        let input = TriggerInput {
            output_since: Some(MS * 101),
            ..quiet(140)
        };
        assert_eq!(config.decide(&input), Decision::Wait(MS * 150));
    }

    #[test]
    fn a_long_disk_log_ends_the_epoch() {
        let input = TriggerInput {
            disk_log: DiskLogLength::Long,
            ..quiet(110)
        };
        assert_eq!(CONFIG.decide(&input), Decision::Now(Reason::DiskLog));
    }

    #[test]
    fn an_output_late_in_the_epoch_does_not_lengthen_it() {
        let input = TriggerInput {
            output_since: Some(MS * 150),
            ..quiet(150)
        };
        assert_eq!(CONFIG.decide(&input), Decision::Now(Reason::LongestEpoch));
    }
}
