// SPDX-License-Identifier: Apache-2.0
//! When the next checkpoint is taken.
//!
//! An output waits for its checkpoint, so the first one of an epoch starts a short gather window
//! and then ends the epoch. Without output an epoch ends when it is long enough or the guest has
//! written enough pages. Two checkpoints are never closer than a minimum, whatever happens.
//!
//! A pure function of what it is given. All times are on one monotonic clock of the caller.

use std::time::Duration;

/// The policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TriggerConfig {
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
        let earliest = input.last_start.saturating_add(self.interval_min);
        let (due, reason) = self.due(input);
        let due = due.max(earliest);
        if input.now >= due {
            Decision::Now(reason)
        } else {
            Decision::Wait(due)
        }
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
        gather: MS,
        epoch_max: Duration::from_millis(50),
        interval_min: Duration::from_millis(5),
        dirty_pages_max: 1000,
    };

    fn quiet(now: u32) -> TriggerInput {
        TriggerInput {
            now: MS * now,
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
