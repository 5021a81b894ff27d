// SPDX-License-Identifier: Apache-2.0
//! What counted hardware errors say about a node. A pure state machine: counts and times are handed in.
//!
//! An error that could not be corrected makes the node red until its counter begins anew, which it does when
//! the node is started with other hardware. Single corrected errors are ordinary; many of them
//! foretell worse, so they are counted over a day.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::thresholds::CorrectedErrors;
use super::{Health, Judgement, worst};

/// Over how long corrected errors are counted.
const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// What one counter of the kernel's has counted since it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// What it counts for, as an administrator calls it, such as `Memory controller mc0`.
    pub part: String,
    /// Errors that were corrected.
    pub corrected: u64,
    /// Errors that were not.
    pub uncorrected: u64,
}

/// Remembers counts for as long as they matter.
#[derive(Debug)]
pub struct CounterWatch {
    thresholds: CorrectedErrors,
    parts: BTreeMap<String, History>,
}

impl CounterWatch {
    /// A watch that has seen nothing yet.
    #[must_use]
    pub const fn new(thresholds: CorrectedErrors) -> Self {
        Self {
            thresholds,
            parts: BTreeMap::new(),
        }
    }

    /// Judges what was counted. `now` is any clock that does not go back; what was corrected before the
    /// first look counts as old. `None` where nothing is counted.
    pub fn look(&mut self, now: Duration, counts: &[Counts]) -> Option<Judgement> {
        self.parts
            .retain(|name, _| counts.iter().any(|counts| counts.part == *name));
        worst(counts.iter().map(|counts| {
            let history = self.parts.entry(counts.part.clone()).or_default();
            let recent = history.recent(now, counts.corrected);
            judge(self.thresholds, counts, recent)
        }))
    }
}

fn judge(thresholds: CorrectedErrors, counts: &Counts, recent: u64) -> Judgement {
    let part = &counts.part;
    if counts.uncorrected > 0 {
        return Judgement {
            health: Health::Red,
            why: format!(
                "{part} met {} errors that could not be corrected",
                counts.uncorrected
            ),
        };
    }
    let health = if recent >= thresholds.red.get() {
        Health::Red
    } else if recent >= thresholds.yellow.get() {
        Health::Yellow
    } else {
        return Judgement::green();
    };
    Judgement {
        health,
        why: format!("{part} corrected {recent} errors within 24 hours"),
    }
}

/// Corrected errors of one part.
#[derive(Debug, Default)]
struct History {
    /// When a count was seen first, the oldest first; the second one is within the window.
    samples: VecDeque<(Duration, u64)>,
}

impl History {
    /// Notes a count, and says by how much it grew within the window.
    fn recent(&mut self, now: Duration, count: u64) -> u64 {
        match self.samples.back() {
            // The counters were reset, or the driver loaded anew.
            Some((_, last)) if *last > count => {
                self.samples = VecDeque::from([(now, 0), (now, count)]);
            }
            Some((_, last)) if *last == count => {}
            _ => self.samples.push_back((now, count)),
        }
        while self
            .samples
            .get(1)
            .is_some_and(|(since, _)| *since + WINDOW <= now)
        {
            self.samples.pop_front();
        }
        let before = self.samples.front().map_or(count, |(_, before)| *before);
        count.saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::thresholds::Thresholds;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn watch() -> CounterWatch {
        CounterWatch::new(Thresholds::default().memory)
    }

    fn counts(part: &str, corrected: u64, uncorrected: u64) -> Counts {
        Counts {
            part: part.into(),
            corrected,
            uncorrected,
        }
    }

    fn health(watch: &mut CounterWatch, now: Duration, corrected: u64) -> Health {
        let judged = watch.look(now, &[counts("mc0", corrected, 0)]);
        judged.unwrap().health
    }

    #[test]
    fn without_counters_there_is_no_judgement() {
        assert_eq!(watch().look(MINUTE, &[]), None);
    }

    #[test]
    fn what_was_corrected_before_the_first_look_is_old() {
        let mut watch = watch();
        assert_eq!(health(&mut watch, MINUTE, 50_000), Health::Green);
        assert_eq!(health(&mut watch, MINUTE * 2, 50_009), Health::Green);
        assert_eq!(health(&mut watch, MINUTE * 3, 50_010), Health::Yellow);
        assert_eq!(health(&mut watch, MINUTE * 4, 51_000), Health::Red);
    }

    #[test]
    fn corrected_errors_are_forgotten_after_a_day() {
        let mut watch = watch();
        health(&mut watch, MINUTE, 0);
        assert_eq!(health(&mut watch, MINUTE * 2, 10), Health::Yellow);
        assert_eq!(health(&mut watch, MINUTE + WINDOW, 10), Health::Yellow);
        assert_eq!(health(&mut watch, MINUTE * 2 + WINDOW, 10), Health::Green);
        // Rare ones never add up.
        for day in 2..30 {
            assert_eq!(
                health(&mut watch, WINDOW * day, 10 + u64::from(day) * 4),
                Health::Green
            );
        }
    }

    #[test]
    fn counters_that_begin_anew_count_from_nothing() {
        let mut watch = watch();
        health(&mut watch, MINUTE, 5_000);
        assert_eq!(health(&mut watch, MINUTE * 2, 0), Health::Green);
        assert_eq!(health(&mut watch, MINUTE * 3, 10), Health::Yellow);
        assert_eq!(health(&mut watch, MINUTE * 4, 9), Health::Green);
    }

    #[test]
    fn an_uncorrected_error_is_red_until_the_counter_begins_anew() {
        let mut watch = watch();
        let all = |uncorrected| [counts("mc0", 0, 0), counts("mc1", 0, uncorrected)];
        let judged = watch.look(MINUTE, &all(1)).unwrap();
        assert_eq!(judged.health, Health::Red);
        assert!(judged.why.contains("mc1"), "{}", judged.why);
        assert_eq!(watch.look(WINDOW * 9, &all(1)).unwrap().health, Health::Red);
        let sound = watch.look(WINDOW * 10, &all(0)).unwrap();
        assert_eq!((sound.health, sound.why.as_str()), (Health::Green, ""));
    }

    proptest! {
        /// The window's edges, against all counts kept.
        #[test]
        fn the_growth_within_the_window_is_exact(
            steps in proptest::collection::vec((1u64..2000, 0u64..5), 1..200),
        ) {
            let mut history = History::default();
            let mut kept: Vec<(Duration, u64)> = Vec::new();
            let (mut now, mut count) = (Duration::ZERO, 0);
            for (minutes, growth) in steps {
                now += MINUTE * u32::try_from(minutes).unwrap();
                count += growth;
                kept.push((now, count));
                // The count as it was when the window began; at the first look, if that was later.
                let before = kept.iter().rev().find(|(at, _)| *at + WINDOW <= now);
                let before = before.or_else(|| kept.first()).unwrap().1;
                prop_assert_eq!(history.recent(now, count), count - before);
            }
        }
    }
}
