// SPDX-License-Identifier: Apache-2.0
//! What counted memory errors say about a node. A pure state machine: counts and times are handed in.
//!
//! An error that could not be corrected makes the node red until the counter begins anew, which it does when
//! the node is started with another module. Single corrected errors are ordinary; many of them
//! foretell worse, so they are counted over a day.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Health;
use super::edac::Counts;

/// Over how long corrected errors are counted.
const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);
/// Corrected errors of one controller in [`WINDOW`] that should be looked at; mcelog's default for a
/// module (mcelog.conf, `ce-error-threshold`).
const YELLOW_AT: u64 = 10;
/// And those with which nothing should run here. Our choice: a cell that fails at every scrub makes some
/// dozens, a row or a chip makes thousands.
const RED_AT: u64 = 1_000;

/// What a node's memory is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// As Pacemaker is told.
    pub health: Health,
    /// One sentence; empty where nothing is wrong.
    pub why: String,
}

/// Remembers counts for as long as they matter.
#[derive(Debug, Default)]
pub struct MemoryWatch {
    controllers: BTreeMap<String, History>,
}

impl MemoryWatch {
    /// Judges what was counted. `now` is any clock that does not go back; what was corrected before the
    /// first look counts as old. `None` where there is no controller.
    pub fn look(&mut self, now: Duration, counts: &[Counts]) -> Option<Judgement> {
        self.controllers
            .retain(|name, _| counts.iter().any(|counts| counts.controller == *name));
        counts
            .iter()
            .map(|counts| {
                let history = self
                    .controllers
                    .entry(counts.controller.clone())
                    .or_default();
                let recent = history.recent(now, counts.corrected);
                judge(counts, recent)
            })
            // The first of the worst.
            .reduce(|one, other| {
                if other.health > one.health {
                    other
                } else {
                    one
                }
            })
    }
}

fn judge(counts: &Counts, recent: u64) -> Judgement {
    let controller = &counts.controller;
    if counts.uncorrected > 0 {
        return Judgement {
            health: Health::Red,
            why: format!(
                "Memory controller {controller} met {} errors that could not be corrected",
                counts.uncorrected
            ),
        };
    }
    let health = match recent {
        RED_AT.. => Health::Red,
        YELLOW_AT.. => Health::Yellow,
        _ => Health::Green,
    };
    let why = if health == Health::Green {
        String::new()
    } else {
        format!("Memory controller {controller} corrected {recent} errors within 24 hours")
    };
    Judgement { health, why }
}

/// Corrected errors of one controller.
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
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn counts(controller: &str, corrected: u64, uncorrected: u64) -> Counts {
        Counts {
            controller: controller.into(),
            corrected,
            uncorrected,
        }
    }

    fn health(watch: &mut MemoryWatch, now: Duration, corrected: u64) -> Health {
        let judged = watch.look(now, &[counts("mc0", corrected, 0)]);
        judged.unwrap().health
    }

    #[test]
    fn without_controllers_there_is_no_judgement() {
        assert_eq!(MemoryWatch::default().look(MINUTE, &[]), None);
    }

    #[test]
    fn what_was_corrected_before_the_first_look_is_old() {
        let mut watch = MemoryWatch::default();
        assert_eq!(health(&mut watch, MINUTE, 50_000), Health::Green);
        assert_eq!(health(&mut watch, MINUTE * 2, 50_009), Health::Green);
        assert_eq!(health(&mut watch, MINUTE * 3, 50_010), Health::Yellow);
        assert_eq!(health(&mut watch, MINUTE * 4, 51_000), Health::Red);
    }

    #[test]
    fn corrected_errors_are_forgotten_after_a_day() {
        let mut watch = MemoryWatch::default();
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
        let mut watch = MemoryWatch::default();
        health(&mut watch, MINUTE, 5_000);
        assert_eq!(health(&mut watch, MINUTE * 2, 0), Health::Green);
        assert_eq!(health(&mut watch, MINUTE * 3, 10), Health::Yellow);
        assert_eq!(health(&mut watch, MINUTE * 4, 9), Health::Green);
    }

    #[test]
    fn an_uncorrected_error_is_red_until_the_counter_begins_anew() {
        let mut watch = MemoryWatch::default();
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
