// SPDX-License-Identifier: Apache-2.0
//! Copies of the pages sent last, within a bound.
//!
//! What is worth keeping are pages that are written in one epoch after the other. When all places
//! are taken, a page takes the place of the one not sent for longest among a few looked at, but
//! never of one that was sent in this transaction or the one before: a guest that writes more
//! pages each epoch than fit keeps its gain for those that fit, where the plain least recently
//! used would keep none.

use std::collections::HashMap;

use crate::page::{PAGE_BYTES, PageIndex};

/// How much is kept unless told otherwise: 64 MiB.
pub const SENT_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

/// How many places are looked at for one to take.
const LOOKS: usize = 8;

#[derive(Debug, Clone)]
struct Place {
    index: PageIndex,
    /// Number of the transaction that sent it last.
    sent_in: u64,
    /// How many more times compression is not tried.
    pause: u8,
    /// Of its own, so that growth moves none.
    copy: Box<[u8; PAGE_BYTES]>,
}

#[derive(Debug, Clone)]
pub(super) struct SentPages {
    places: Vec<Place>,
    by_index: HashMap<PageIndex, usize>,
    /// Places whose page was forgotten.
    free: Vec<usize>,
    places_max: usize,
    /// Where the search for a place goes on.
    hand: usize,
}

impl SentPages {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            places: Vec::new(),
            by_index: HashMap::new(),
            free: Vec::new(),
            places_max: bytes_max / PAGE_BYTES,
            hand: 0,
        }
    }

    /// Forgets everything, and gives the memory back.
    pub(super) fn clear(&mut self) {
        if !self.places.is_empty() {
            *self = Self::new(self.places_max * PAGE_BYTES);
        }
    }

    fn place(&mut self, index: PageIndex) -> Option<&mut Place> {
        let number = *self.by_index.get(&index)?;
        self.places.get_mut(number)
    }

    /// The page as the peer has it before this transaction. `None` if that is not kept, or if this
    /// transaction sent the page already.
    pub(super) fn base(&mut self, index: PageIndex, transaction: u64) -> Option<&[u8; PAGE_BYTES]> {
        let place = self.place(index)?;
        (place.sent_in != transaction).then_some(&*place.copy)
    }

    /// Notes what this transaction sent; `None`: the same as before.
    pub(super) fn keep(
        &mut self,
        index: PageIndex,
        transaction: u64,
        page: Option<&[u8; PAGE_BYTES]>,
    ) {
        if let Some(place) = self.place(index) {
            place.sent_in = transaction;
            if let Some(page) = page {
                place.copy.copy_from_slice(page);
            }
        } else if let Some(page) = page {
            self.admit(index, transaction, page);
        }
    }

    fn admit(&mut self, index: PageIndex, transaction: u64, page: &[u8; PAGE_BYTES]) {
        let number = if let Some(number) = self.free.pop() {
            number
        } else if self.places.len() < self.places_max {
            self.by_index.insert(index, self.places.len());
            self.places.push(Place {
                index,
                sent_in: transaction,
                pause: 0,
                copy: Box::new(*page),
            });
            return;
        } else if let Some(number) = self.victim(transaction) {
            number
        } else {
            return;
        };
        let Some(place) = self.places.get_mut(number) else {
            return;
        };
        // A place that was free is in the table no more; then this removes nothing.
        if self.by_index.get(&place.index) == Some(&number) {
            self.by_index.remove(&place.index);
        }
        (place.index, place.sent_in, place.pause) = (index, transaction, 0);
        place.copy.copy_from_slice(page);
        self.by_index.insert(index, number);
    }

    /// The place not used for longest among the next few, if that is long enough.
    fn victim(&mut self, transaction: u64) -> Option<usize> {
        let count = self.places.len();
        let mut found = None;
        for _ in 0..LOOKS.min(count) {
            self.hand = (self.hand + 1) % count;
            let sent_in = self.places.get(self.hand)?.sent_in;
            if sent_in + 1 < transaction && found.is_none_or(|(oldest, _)| sent_in < oldest) {
                found = Some((sent_in, self.hand));
            }
        }
        found.map(|(_, number)| number)
    }

    /// The peer has something else now.
    pub(super) fn forget(&mut self, index: PageIndex) {
        if let Some(number) = self.by_index.remove(&index) {
            self.free.push(number);
        }
    }

    /// Whether compression of this page is not to be tried this time. Counts down.
    pub(super) fn pauses(&mut self, index: PageIndex) -> bool {
        match self.place(index) {
            Some(place) if place.pause > 0 => {
                place.pause -= 1;
                true
            }
            _ => false,
        }
    }

    /// Compression of this page is not to be tried so many times.
    pub(super) fn pause(&mut self, index: PageIndex, times: u8) {
        if let Some(place) = self.place(index) {
            place.pause = times;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(value: u8) -> [u8; PAGE_BYTES] {
        [value; PAGE_BYTES]
    }

    fn keep(sent: &mut SentPages, index: u64, transaction: u64, value: u8) {
        sent.keep(PageIndex(index), transaction, Some(&page(value)));
    }

    #[test]
    fn a_page_sent_in_this_transaction_is_no_base() {
        let mut sent = SentPages::new(10 * PAGE_BYTES);
        keep(&mut sent, 5, 1, 9);
        assert_eq!(sent.base(PageIndex(5), 1), None);
        assert_eq!(sent.base(PageIndex(5), 2), Some(&page(9)));
        sent.keep(PageIndex(5), 2, None);
        assert_eq!(sent.base(PageIndex(5), 2), None);
        assert_eq!(sent.base(PageIndex(5), 3), Some(&page(9)));
        sent.forget(PageIndex(5));
        assert_eq!(sent.base(PageIndex(5), 3), None);
    }

    #[test]
    fn a_working_set_that_does_not_fit_keeps_what_fits() {
        let mut sent = SentPages::new(10 * PAGE_BYTES);
        let mut hits = 0;
        for transaction in 1..=10 {
            for index in 0..40 {
                hits += usize::from(sent.base(PageIndex(index), transaction).is_some());
                keep(&mut sent, index, transaction, 1);
            }
            assert!(sent.places.len() <= 10);
        }
        assert_eq!(hits, 9 * 10);
    }

    #[test]
    fn what_is_not_written_any_more_makes_room() {
        let mut sent = SentPages::new(10 * PAGE_BYTES);
        (0..10).for_each(|index| keep(&mut sent, index, 1, 1));
        for transaction in 2..6 {
            (100..110).for_each(|index| keep(&mut sent, index, transaction, 2));
        }
        let kept = (100..110).filter(|index| sent.base(PageIndex(*index), 6).is_some());
        assert_eq!(kept.count(), 10);
    }

    #[test]
    fn a_forgotten_place_is_used_again_and_none_is_found_by_an_old_number() {
        let mut sent = SentPages::new(2 * PAGE_BYTES);
        keep(&mut sent, 1, 1, 1);
        keep(&mut sent, 2, 1, 2);
        sent.forget(PageIndex(1));
        sent.forget(PageIndex(1));
        keep(&mut sent, 3, 1, 3);
        keep(&mut sent, 4, 1, 4);
        for (index, expected) in [(1, None), (2, Some(2)), (3, Some(3)), (4, None)] {
            let base = sent.base(PageIndex(index), 2).map(|page| page[0]);
            assert_eq!(base, expected, "page {index}");
        }
    }

    #[test]
    fn no_room_at_all_keeps_nothing() {
        let mut sent = SentPages::new(0);
        keep(&mut sent, 1, 1, 1);
        assert_eq!(sent.base(PageIndex(1), 2), None);
    }
}
