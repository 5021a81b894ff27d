// SPDX-License-Identifier: Apache-2.0
//! Which effort the next checkpoint is worth.
//!
//! What an effort costs and brings is known from the last checkpoints it was used for, a page's share
//! of each; their median counts, since a thread that loses its CPU for a moment says nothing of the
//! work. Now and then another one is tried for a few checkpoints, if by what is known it could be
//! better at all; the more often that was in vain, the less often, until the link changes. What a
//! guest writes changes from one moment to the next, so two efforts with deltas take turns in a
//! trial, and how long pages are as they are is known without one.

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
/// A link this many times as fast or as slow is another one.
const LINK_CHANGE: f64 = 2.0;
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

/// Another effort is being tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    of: Effort,
    /// Checkpoints still to come that count.
    rest: u32,
    /// It is the turn of the best so far.
    pause: bool,
}

/// Chooses the effort.
#[derive(Debug, Clone)]
pub struct CompressionPolicy {
    fixed: Option<Effort>,
    link: f64,
    best: Effort,
    trial: Option<Trial>,
    /// What was tried last.
    tried: Effort,
    /// The link's speed when the best was found.
    link_then: f64,
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
            tried: Effort::DeltaLz4,
            link_then: LINK_DEFAULT,
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
        let chosen = match self.trial {
            Some(Trial {
                of, pause: false, ..
            }) => of,
            _ => self.best,
        };
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
        match self.trial {
            Some(trial) => self.tried_once(trial),
            None => self.go_on(),
        }
    }

    /// Seconds until a page is over there.
    fn seconds(&self, effort: Effort) -> Option<f64> {
        let share = self.known[effort as usize].median()?;
        let bytes = match effort {
            Effort::Raw => self.raw_bytes,
            _ => share.bytes,
        };
        Some(share.seconds + bytes / self.link)
    }

    /// Whether the encoder keeps its copies when one follows on the other.
    fn may_take_turns(&self, other: Effort) -> bool {
        self.best != Effort::Raw && other != Effort::Raw
    }

    fn tried_once(&mut self, mut trial: Trial) {
        if !trial.pause {
            trial.rest -= 1;
        }
        if trial.rest == 0 {
            return self.end_trial(trial.of);
        }
        trial.pause = !trial.pause && self.may_take_turns(trial.of);
        self.trial = Some(trial);
    }

    fn end_trial(&mut self, of: Effort) {
        self.trial = None;
        self.since_trial = 0;
        self.tried = of;
        self.link_then = self.link;
        let better = match (self.seconds(of), self.seconds(self.best)) {
            (Some(tried), Some(best)) => tried < best * WORTH,
            _ => false,
        };
        if better {
            self.best = of;
            self.pause = PAUSE_MIN;
        } else {
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            self.warm_up = WARM_UP;
        }
    }

    fn go_on(&mut self) {
        let change = self.link / self.link_then;
        if !(1.0 / LINK_CHANGE..LINK_CHANGE).contains(&change) {
            self.link_then = self.link;
            self.pause = PAUSE_MIN;
        }
        self.since_trial += 1;
        if self.since_trial < self.pause {
            return;
        }
        self.since_trial = 0;
        let Some(of) = self.candidate() else { return };
        let (mut rest, pause) = (TRIAL, false);
        self.known[of as usize] = Known::default();
        if self.may_take_turns(of) {
            self.known[self.best as usize] = Known::default();
            // One more: the best so far has its turns between.
            rest += 1;
        } else {
            self.warm_up = WARM_UP;
        }
        self.trial = Some(Trial { of, rest, pause });
    }

    /// The effort to try: one that could be worth it, each in its turn.
    fn candidate(&self) -> Option<Effort> {
        let now = self.known[self.best as usize].median()?;
        let worth = self.seconds(self.best)? * WORTH;
        let could = |effort: &Effort| {
            let at_best = match *effort {
                // Free, and as long as it is known to be.
                Effort::Raw => self.raw_bytes / self.link,
                // Free, but not shorter.
                less if less < self.best => now.bytes / self.link,
                // Next to nothing to send, but not much cheaper.
                _ => now.seconds / 2.0 + PAGE_ENTRY_BYTES as f64 / self.link,
            };
            *effort != self.best && at_best < worth
        };
        let later = Effort::ALL.iter().filter(|effort| **effort > self.tried);
        later.chain(&Effort::ALL).copied().find(could)
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
    fn what_the_guest_does_during_a_trial_decides_nothing() {
        // The same for both, but for some time there is next to nothing to do.
        const EASY: Pages = Pages([(400, 4108), (500, 120), (510, 60)]);
        let mut policy = CompressionPolicy::new(None);
        let mut used = [0; 3];
        for _ in 0..100 {
            for pages in [TYPICAL, EASY] {
                let more = run(&mut policy, pages, GIGABIT, 40);
                used.iter_mut()
                    .zip(more)
                    .for_each(|(sum, more)| *sum += more);
            }
        }
        assert!(used[Effort::DeltaLz4 as usize] > 7_600, "{used:?}");
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
