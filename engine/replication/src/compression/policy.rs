// SPDX-License-Identifier: Apache-2.0
//! Which effort the next checkpoint is worth.
//!
//! What an effort costs and brings is known from the last checkpoints it was used for, a page's share
//! of each; their median counts, since a thread that loses its CPU for a moment says nothing of the
//! work. Now and then another one is tried for a few checkpoints, if by what is known it could be
//! better at all; the more often that was in vain, the less often.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Effort, PageTally};
use crate::page::PAGE_BYTES;
use crate::wire::pages::PAGE_ENTRY_BYTES;

/// Checkpoints of fewer pages say too little.
const PAGES_MIN: u64 = 16;
/// Speed of a link nobody has measured: 1 Gbit/s.
const LINK_DEFAULT: f64 = 125e6;
/// Weight of what is new in the size of pages as they are.
const SHARE: f64 = 1.0 / 8.0;
/// Checkpoints remembered of each effort.
const REMEMBERED: usize = 9;
/// What another effort must save to be taken: a tenth.
const WORTH: f64 = 0.9;
/// Checkpoints of a trial that count.
const TRIAL: u32 = 8;
/// Checkpoints after each change that do not: the encoder has no copies yet.
const WARM_UP: u32 = 4;
/// Checkpoints between trials, at least and at most.
const PAUSE_MIN: u32 = 64;
const PAUSE_MAX: u32 = 4096;

/// What one checkpoint cost.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Its pages, by encoding.
    pub tally: PageTally,
    /// How long it took to encode them.
    pub encode: Duration,
}

/// A page's share.
#[derive(Debug, Clone, Copy)]
struct Share {
    seconds: f64,
    bytes: f64,
}

/// The last checkpoints of one effort.
#[derive(Debug, Clone, Default)]
struct Known(VecDeque<Share>);

impl Known {
    fn add(&mut self, share: Share) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(share);
    }

    fn median(&self) -> Option<Share> {
        let middle = |of: fn(&Share) -> f64| {
            let mut values: Vec<f64> = self.0.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Share {
            seconds: middle(|share| share.seconds)?,
            bytes: middle(|share| share.bytes)?,
        })
    }
}

/// Chooses the effort.
#[derive(Debug, Clone)]
pub struct CompressionPolicy {
    fixed: Option<Effort>,
    link: f64,
    best: Effort,
    /// What is tried instead, for so many more checkpoints that count.
    trial: Option<(Effort, u32)>,
    known: [Known; Effort::ALL.len()],
    /// Bytes a page would take as it is, or as a page of zeros.
    raw_bytes: f64,
    warm_up: u32,
    since_trial: u32,
    pause: u32,
}

impl CompressionPolicy {
    /// Chooses by what it is told, or always the same.
    #[must_use]
    pub fn new(fixed: Option<Effort>) -> Self {
        Self {
            fixed,
            link: LINK_DEFAULT,
            best: Effort::DeltaLz4,
            trial: None,
            known: Default::default(),
            raw_bytes: (PAGE_ENTRY_BYTES + PAGE_BYTES) as f64,
            warm_up: WARM_UP,
            since_trial: 0,
            pause: PAUSE_MIN,
        }
    }

    /// The effort for the next checkpoint.
    #[must_use]
    pub fn effort(&self) -> Effort {
        let chosen = self.trial.map_or(self.best, |(effort, _)| effort);
        self.fixed.unwrap_or(chosen)
    }

    /// The link carries so many bytes a second.
    pub const fn link(&mut self, bytes_per_second: f64) {
        if bytes_per_second >= 1.0 {
            self.link = bytes_per_second;
        }
    }

    /// A checkpoint was encoded with [`Self::effort`].
    pub fn spent(&mut self, spent: &Spent) {
        let pages = spent.tally.pages();
        if self.fixed.is_some() || pages < PAGES_MIN {
            return;
        }
        let whole = (pages - spent.tally.zero) * PAGE_BYTES as u64;
        let raw = (whole + pages * PAGE_ENTRY_BYTES as u64) as f64 / pages as f64;
        self.raw_bytes += (raw - self.raw_bytes) * SHARE;
        if self.warm_up > 0 {
            self.warm_up -= 1;
            return;
        }
        let share = Share {
            seconds: spent.encode.as_secs_f64() / pages as f64,
            bytes: spent.tally.wire_bytes as f64 / pages as f64,
        };
        let used = self.effort();
        self.known[used as usize].add(share);
        match &mut self.trial {
            Some((_, rest)) if *rest > 1 => *rest -= 1,
            Some(_) => self.end_trial(),
            None => self.go_on(),
        }
    }

    /// Seconds until a page is over there.
    fn seconds(&self, share: Share) -> f64 {
        share.seconds + share.bytes / self.link
    }

    fn known_seconds(&self, effort: Effort) -> Option<f64> {
        let share = self.known[effort as usize].median()?;
        Some(self.seconds(share))
    }

    /// Takes the best of what is known. Whether it is another one than before.
    fn decide(&mut self) -> bool {
        let Some(now) = self.known_seconds(self.best) else {
            return false;
        };
        let mut best = (self.best, now * WORTH);
        for effort in Effort::ALL {
            match self.known_seconds(effort) {
                Some(seconds) if effort != self.best && seconds < best.1 => {
                    best = (effort, seconds);
                }
                _ => {}
            }
        }
        let changed = best.0 != self.best;
        self.best = best.0;
        changed
    }

    fn end_trial(&mut self) {
        let tried = self.effort();
        self.trial = None;
        self.since_trial = 0;
        self.pause = if self.decide() {
            PAUSE_MIN
        } else {
            (self.pause * 2).min(PAUSE_MAX)
        };
        self.changed_from(tried);
    }

    fn go_on(&mut self) {
        let used = self.effort();
        if self.decide() {
            return self.changed_from(used);
        }
        self.since_trial += 1;
        if self.since_trial >= self.pause {
            self.since_trial = 0;
            self.trial = self.candidate().map(|effort| (effort, TRIAL));
            self.changed_from(used);
        }
    }

    fn changed_from(&mut self, used: Effort) {
        if self.effort() != used {
            self.warm_up = WARM_UP;
        }
    }

    /// The effort to try: one that could be worth it, the one longest unknown first.
    fn candidate(&self) -> Option<Effort> {
        let now = self.known[self.best as usize].median()?;
        let worth = self.seconds(now) * WORTH;
        let could = |effort: Effort| {
            let at_best = if effort < self.best {
                // Free, but not shorter.
                let bytes = if effort == Effort::Raw {
                    self.raw_bytes
                } else {
                    now.bytes
                };
                Share {
                    seconds: 0.0,
                    bytes,
                }
            } else {
                // Nothing to send, but not much cheaper.
                Share {
                    seconds: now.seconds / 2.0,
                    bytes: PAGE_ENTRY_BYTES as f64,
                }
            };
            effort != self.best && self.seconds(at_best) < worth
        };
        let mut candidates: Vec<_> = Effort::ALL.into_iter().filter(|e| could(*e)).collect();
        candidates.sort_by(|a, b| {
            let seconds = |effort| self.known_seconds(effort).unwrap_or(0.0);
            seconds(*a).total_cmp(&seconds(*b))
        });
        candidates.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest's pages: nanoseconds and bytes a page for each effort.
    #[derive(Clone, Copy)]
    struct Pages([(u64, u64); 3]);

    /// Much like what real memory costs: 400 ns as it is, 900 for deltas, 2500 for LZ4 too.
    const TYPICAL: Pages = Pages([(400, 4108), (900, 1500), (2500, 500)]);
    /// Nothing can be compressed.
    const RANDOM: Pages = Pages([(400, 4108), (1200, 4108), (3000, 4108)]);

    /// Runs checkpoints; gives how many used each effort.
    fn run(policy: &mut CompressionPolicy, pages: Pages, link: f64, count: u32) -> [u32; 3] {
        let mut used = [0; 3];
        for _ in 0..count {
            policy.link(link);
            let effort = policy.effort() as usize;
            used[effort] += 1;
            let (ns, bytes) = pages.0[effort];
            policy.spent(&Spent {
                tally: PageTally {
                    raw: 100,
                    wire_bytes: bytes * 100,
                    ..PageTally::default()
                },
                encode: Duration::from_nanos(ns * 100),
            });
        }
        used
    }

    const GIGABIT: f64 = 125e6;
    const TEN_GIGABIT: f64 = 1.25e9;
    const MEMORY: f64 = 10e9;

    #[test]
    fn the_link_decides_how_much_work_pages_are_worth() {
        for (link, pages, best) in [
            (GIGABIT, TYPICAL, Effort::DeltaLz4),
            (TEN_GIGABIT, TYPICAL, Effort::Delta),
            (MEMORY, TYPICAL, Effort::Raw),
            (TEN_GIGABIT, RANDOM, Effort::Raw),
        ] {
            let mut policy = CompressionPolicy::new(None);
            run(&mut policy, pages, link, 1000);
            let used = run(&mut policy, pages, link, 10_000);
            assert!(
                used[best as usize] > 9_700,
                "{used:?}, best is {best}, {link}"
            );
        }
    }

    #[test]
    fn on_a_slow_link_what_cannot_win_is_never_tried() {
        let mut policy = CompressionPolicy::new(None);
        let used = run(&mut policy, TYPICAL, GIGABIT, 5000);
        assert_eq!(used[Effort::Raw as usize], 0, "{used:?}");
    }

    #[test]
    fn another_link_or_another_load_is_noticed() {
        let mut policy = CompressionPolicy::new(None);
        for (link, pages, best) in [
            (MEMORY, TYPICAL, Effort::Raw),
            (GIGABIT, TYPICAL, Effort::DeltaLz4),
            (TEN_GIGABIT, RANDOM, Effort::Raw),
            (GIGABIT, TYPICAL, Effort::DeltaLz4),
        ] {
            run(&mut policy, pages, link, 10_000);
            let used = run(&mut policy, pages, link, 1000);
            assert!(used[best as usize] > 900, "{used:?}, best is {best}");
        }
    }

    #[test]
    fn a_thread_that_loses_its_cpu_now_and_then_changes_nothing() {
        let mut policy = CompressionPolicy::new(None);
        run(&mut policy, TYPICAL, GIGABIT, 200);
        for _ in 0..200 {
            let used = run(&mut policy, TYPICAL, GIGABIT, 9);
            assert_eq!(used[Effort::Raw as usize], 0);
            let tally = PageTally {
                raw: 100,
                wire_bytes: 50_000,
                ..PageTally::default()
            };
            let encode = Duration::from_millis(100);
            policy.spent(&Spent { tally, encode });
        }
    }

    #[test]
    fn a_fixed_effort_stays() {
        for effort in Effort::ALL {
            let mut policy = CompressionPolicy::new(Some(effort));
            let used = run(&mut policy, TYPICAL, MEMORY, 500);
            assert_eq!(used[effort as usize], 500);
        }
    }

    #[test]
    fn checkpoints_of_few_pages_and_no_time_change_nothing() {
        let mut policy = CompressionPolicy::new(None);
        policy.link(0.0);
        for _ in 0..1000 {
            policy.spent(&Spent {
                tally: PageTally::default(),
                encode: Duration::ZERO,
            });
        }
        assert_eq!(policy.effort(), Effort::DeltaLz4);
        run(&mut policy, Pages([(0, 0); 3]), MEMORY, 1000);
    }
}
