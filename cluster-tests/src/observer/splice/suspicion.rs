// SPDX-License-Identifier: Apache-2.0
//! New bytes of an old generation, until a newer generation has repeated them.
//!
//! A thawed active replica may release outputs that were acknowledged before it froze. The new one
//! runs from a state that holds them and replays them, but the old one may be faster. So such bytes
//! are no violation by themselves: they are one as long as nobody newer stands for them.

use std::ops::Range;

use super::super::verdict::{Source, Violation};

#[derive(Debug)]
struct Suspicion {
    by: Source,
    range: Range<usize>,
    /// Up to here a newer generation has delivered the same bytes.
    repeated_to: usize,
    /// The newest generation that had delivered before.
    newer: u64,
}

#[derive(Debug, Default)]
pub(super) struct Suspicions(Vec<Suspicion>);

impl Suspicions {
    /// `by` delivered `range`, new to everybody, after `newer` had delivered something.
    pub(super) fn add(&mut self, by: Source, range: Range<usize>, newer: u64) {
        if let Some(last) = self.0.last_mut()
            && last.by.connection == by.connection
            && last.range.end == range.start
        {
            last.range.end = range.end;
            return;
        }
        let repeated_to = range.start;
        self.0.push(Suspicion {
            by,
            range,
            repeated_to,
            newer,
        });
    }

    /// `generation` delivered `range` again, with the same bytes.
    pub(super) fn repeated(&mut self, generation: u64, range: &Range<usize>) {
        for suspicion in &mut self.0 {
            if suspicion.by.generation < generation && range.contains(&suspicion.repeated_to) {
                suspicion.repeated_to = range.end.min(suspicion.range.end);
            }
        }
        self.0
            .retain(|suspicion| suspicion.repeated_to < suspicion.range.end);
    }

    /// What nobody newer stands for yet.
    pub(super) fn violations(&self) -> impl Iterator<Item = Violation> {
        self.0.iter().map(|suspicion| Violation::OldGeneration {
            from: suspicion.repeated_to as u64,
            to: suspicion.range.end as u64,
            by: suspicion.by.clone(),
            newer: suspicion.newer,
        })
    }
}
