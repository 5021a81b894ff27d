// SPDX-License-Identifier: Apache-2.0
//! Which pages the initial copy has named: it is complete when every page of RAM was sent once.
//!
//! Without this a copy that forgot a page would leave what the RAM held before, unnoticed until
//! the failover.

use crate::page::{PageIndex, RamLayout};

/// A bit for each page of RAM.
#[derive(Debug, Default)]
pub(super) struct CopyCoverage {
    words: Vec<u64>,
    marked: u64,
}

impl CopyCoverage {
    /// Notes that a page was sent.
    pub(super) fn mark(&mut self, ram: &RamLayout, index: PageIndex) {
        let Some(ordinal) = ram.ordinal(index).and_then(|n| usize::try_from(n).ok()) else {
            return;
        };
        let (word, bit) = (ordinal / 64, 1 << (ordinal % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word)
            && *word & bit == 0
        {
            *word |= bit;
            self.marked += 1;
        }
    }

    /// How many pages were never sent.
    pub(super) const fn missing(&self, ram: &RamLayout) -> u64 {
        ram.pages().saturating_sub(self.marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_complete_when_every_page_was_named_once() {
        let ram = RamLayout::new(vec![0..70, 100..130]).unwrap();
        let mut copied = CopyCoverage::default();
        for index in (0..70).chain(100..129).chain(0..70) {
            copied.mark(&ram, PageIndex(index));
        }
        assert_eq!(copied.missing(&ram), 1);
        copied.mark(&ram, PageIndex(129));
        assert_eq!(copied.missing(&ram), 0);
    }
}
