// SPDX-License-Identifier: Apache-2.0
//! Sets of guest pages, as bitmaps; below this module, KVM's ways of telling which pages are dirty.
//!
//! A page index counts contiguous RAM pages from 0; the hole below 4 GiB has no indexes. A set
//! never holds an index at or beyond its page count.

pub(crate) mod bitmap;
pub(crate) mod calls;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod ring;
pub(crate) mod rings;
pub(crate) mod tracking;

use serde::{Deserialize, Serialize};

/// Size of a page in bytes, everywhere in Kemari.
pub const PAGE_SIZE: usize = 4096;

/// Number of a page in guest RAM, counted without holes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct PageIndex(pub u64);

/// A set of pages of one guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DirtyPages {
    words: Vec<u64>,
    page_count: u64,
}

impl DirtyPages {
    /// The empty set over a memory of `page_count` pages.
    #[must_use]
    pub fn none(page_count: u64) -> Self {
        Self {
            words: vec![0; word_count(page_count)],
            page_count,
        }
    }

    /// The set of every page of a memory of `page_count` pages.
    #[must_use]
    pub fn all(page_count: u64) -> Self {
        let mut set = Self {
            words: vec![u64::MAX; word_count(page_count)],
            page_count,
        };
        set.mask_tail();
        set
    }

    /// How many pages the memory has (not how many are in the set).
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Adds a page; an index beyond the memory is ignored.
    pub fn insert(&mut self, page: PageIndex) {
        if page.0 < self.page_count
            && let Some(word) = self.words.get_mut(word_of(page))
        {
            *word |= 1 << (page.0 % 64);
        }
    }

    /// Takes a page out.
    pub(crate) fn remove(&mut self, page: PageIndex) {
        if let Some(word) = self.words.get_mut(word_of(page)) {
            *word &= !(1 << (page.0 % 64));
        }
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        self.words
            .get(word_of(page))
            .is_some_and(|word| word & (1 << (page.0 % 64)) != 0)
    }

    /// Number of pages in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether no page is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Adds every page of `other`. Pages beyond this memory are ignored.
    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
        self.mask_tail();
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        (0u64..).zip(&self.words).flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = u64::from(rest.trailing_zeros());
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    PageIndex(index * 64 + bit)
                })
            })
        })
    }

    /// Adds the pages of a bitmap whose bit 0 is page `first`; bits from `pages` on are ignored.
    pub(crate) fn insert_bitmap(&mut self, first: PageIndex, pages: u64, bitmap: &[u64]) {
        let aligned = first.0.is_multiple_of(64) && pages.is_multiple_of(64);
        if aligned {
            let start = word_of(first);
            let whole = usize::try_from(pages / 64).unwrap_or(usize::MAX);
            for (mine, theirs) in self.words.iter_mut().skip(start).take(whole).zip(bitmap) {
                *mine |= theirs;
            }
            self.mask_tail();
            return;
        }
        let source = Self {
            words: bitmap.to_vec(),
            page_count: pages,
        };
        for page in source.iter().take_while(|page| page.0 < pages) {
            self.insert(PageIndex(first.0 + page.0));
        }
    }

    /// The bitmap of `pages` pages from `first` on, which must be a multiple of 64, as every part
    /// of RAM begins at one.
    pub(crate) fn bitmap(&self, first: PageIndex, pages: u64) -> &[u64] {
        debug_assert!(first.0.is_multiple_of(64), "page {} inside a word", first.0);
        let start = word_of(first).min(self.words.len());
        let end = start
            .saturating_add(word_count(pages))
            .min(self.words.len());
        self.words.get(start..end).unwrap_or_default()
    }

    /// Takes out the pages of a bitmap whose bit 0 is page `first` (a multiple of 64) and 64 pages
    /// on for each of `skipped_words`.
    pub(crate) fn remove_bitmap(&mut self, first: PageIndex, skipped_words: usize, bitmap: &[u64]) {
        debug_assert!(first.0.is_multiple_of(64), "page {} inside a word", first.0);
        let start = word_of(first).saturating_add(skipped_words);
        for (mine, theirs) in self.words.iter_mut().skip(start).zip(bitmap) {
            *mine &= !theirs;
        }
    }

    fn mask_tail(&mut self) {
        let used = self.page_count % 64;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }
}

fn word_count(page_count: u64) -> usize {
    usize::try_from(page_count.div_ceil(64)).unwrap_or(usize::MAX)
}

fn word_of(page: PageIndex) -> usize {
    usize::try_from(page.0 / 64).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_full_set_holds_exactly_the_pages_of_the_memory() {
        let all = DirtyPages::all(70);
        assert_eq!(all.len(), 70);
        assert!(all.contains(PageIndex(69)));
        assert!(!all.contains(PageIndex(70)));
        assert_eq!(all.iter().last(), Some(PageIndex(69)));
    }

    proptest! {
        #[test]
        fn iterates_what_was_inserted(pages in proptest::collection::btree_set(0u64..1000, 0..80)) {
            let mut set = DirtyPages::none(1000);
            for page in &pages {
                set.insert(PageIndex(*page));
            }
            prop_assert_eq!(set.len(), pages.len());
            prop_assert_eq!(set.iter().map(|page| page.0).collect::<Vec<_>>(),
                pages.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn a_bitmap_lands_where_it_belongs(
            bitmap in proptest::collection::vec(any::<u64>(), 2),
            first in 0u64..200, pages in 0u64..=128,
        ) {
            let mut set = DirtyPages::none(256);
            set.insert_bitmap(PageIndex(first), pages, &bitmap);
            for bit in 0..128u64 {
                let dirty = bitmap[(bit / 64) as usize] >> (bit % 64) & 1 == 1;
                let expected = dirty && bit < pages && first + bit < 256;
                prop_assert_eq!(set.contains(PageIndex(first + bit)), expected);
            }
        }
    }
}
