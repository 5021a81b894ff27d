// SPDX-License-Identifier: Apache-2.0
//! Sets of pages of RAM: those the initial copy has named, and those of the open transaction.
//!
//! The copy is complete when every page of RAM was sent once. Without this a copy that forgot a
//! page would leave what the RAM held before, unnoticed until the failover.

use crate::page::{PageIndex, RamLayout};

/// A bit for each page of RAM.
#[derive(Debug, Clone, Default)]
pub(super) struct PageSet {
    words: Vec<u64>,
    /// Words that are not 0, so that clearing costs what was marked and not what RAM there is.
    used: Vec<usize>,
    marked: u64,
}

impl PageSet {
    /// Notes a page. Whether it was not noted before; `false` too for what is not RAM.
    pub(super) fn mark(&mut self, ram: &RamLayout, index: PageIndex) -> bool {
        let Some(ordinal) = ram.ordinal(index).and_then(|n| usize::try_from(n).ok()) else {
            return false;
        };
        let (number, bit) = (ordinal / 64, 1 << (ordinal % 64));
        if self.words.len() <= number {
            self.words.resize(number + 1, 0);
        }
        match self.words.get_mut(number) {
            Some(word) if *word & bit == 0 => {
                if *word == 0 {
                    self.used.push(number);
                }
                *word |= bit;
                self.marked += 1;
                true
            }
            _ => false,
        }
    }

    /// How many pages were never noted.
    pub(super) const fn missing(&self, ram: &RamLayout) -> u64 {
        ram.pages().saturating_sub(self.marked)
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        for number in self.used.drain(..) {
            if let Some(word) = self.words.get_mut(number) {
                *word = 0;
            }
        }
        self.marked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_complete_when_every_page_was_named_once() {
        let ram = RamLayout::new(vec![0..70, 100..130]).unwrap();
        let mut copied = PageSet::default();
        for index in (0..70).chain(100..129).chain(0..70) {
            copied.mark(&ram, PageIndex(index));
        }
        assert_eq!(copied.missing(&ram), 1);
        assert!(copied.mark(&ram, PageIndex(129)));
        assert_eq!(copied.missing(&ram), 0);
        assert!(!copied.mark(&ram, PageIndex(129)), "named before");
        copied.clear();
        assert_eq!(copied.missing(&ram), 100);
        assert!(copied.mark(&ram, PageIndex(129)), "forgotten");
    }
}
