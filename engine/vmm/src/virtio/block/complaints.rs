// SPDX-License-Identifier: Apache-2.0
//! Telling the operator that a disk fails, without a line for each of a million requests.

use std::io;
use std::time::{Duration, Instant};

use super::flight::Work;
use crate::backend::DiskSerial;

/// One line in this time.
const QUIET: Duration = Duration::from_secs(10);

/// What was said of one disk, and what was not.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    /// The host could not do this; the guest is told that it failed.
    pub(super) fn tell(&mut self, disk: &DiskSerial, work: Work, error: &io::Error) {
        if let Some(unsaid) = self.due(Instant::now()) {
            tracing::warn!(
                %disk,
                request = %work,
                %error,
                unsaid,
                "The host failed a request of the guest; look at the disk's storage"
            );
        }
    }

    /// How many were left out since the last line, if it is time for one.
    fn due(&mut self, now: Instant) -> Option<u64> {
        let quiet = |last| now.saturating_duration_since(last) < QUIET;
        if self.last.is_some_and(quiet) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_makes_one_line_and_is_counted_in_the_next() {
        let mut complaints = Complaints::default();
        let begin = Instant::now();
        assert_eq!(complaints.due(begin), Some(0));
        assert_eq!(complaints.due(begin), None);
        assert_eq!(complaints.due(begin + QUIET / 2), None);
        assert_eq!(complaints.due(begin + QUIET), Some(2));
    }
}
