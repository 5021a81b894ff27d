// SPDX-License-Identifier: Apache-2.0
//! Guest pages as replication sees them: a number and 4,096 bytes, or nothing but zeros.
//!
//! [`RamLayout`] says which page numbers are RAM. Every page number that comes over the wire is
//! checked against it before anything is stored, so a peer cannot name memory that does not exist.
//! Where a page lies in the process's own address space is not known here.

use std::fmt;
use std::ops::Range;

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Size of a guest page in bytes; dirty tracking and the wire both work in this unit.
pub const PAGE_BYTES: usize = 4096;

/// Most separate stretches of RAM a VM may have.
pub const RAM_RANGES_MAX: usize = 64;

/// Number of a guest page: the guest-physical address divided by [`PAGE_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// Guest-physical address of the page's first byte, `None` beyond 64 bits.
    #[must_use]
    pub const fn address(self) -> Option<u64> {
        self.0.checked_mul(PAGE_BYTES as u64)
    }

    /// The page that holds this guest-physical address.
    #[must_use]
    pub const fn of_address(address: u64) -> Self {
        Self(address / PAGE_BYTES as u64)
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a page holds after the transaction that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageContent<'a> {
    /// 4,096 zero bytes.
    Zero,
    /// These bytes.
    Raw(&'a [u8; PAGE_BYTES]),
}

impl<'a> PageContent<'a> {
    /// The page as bytes; zero pages come from a constant.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8; PAGE_BYTES] {
        match self {
            Self::Zero => &ZERO_PAGE,
            Self::Raw(bytes) => bytes,
        }
    }
}

/// Checksum of a page's content: the lower half of its XXH3-64.
#[must_use]
pub fn page_checksum(bytes: &[u8; PAGE_BYTES]) -> u32 {
    let [a, b, c, d, ..] = xxh3_64(bytes).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Whether all bytes are zero. Most pages that are not differ within the first word.
#[must_use]
pub fn is_zero(bytes: &[u8; PAGE_BYTES]) -> bool {
    bytes
        .chunks_exact(64)
        .all(|line| line.iter().fold(0, |acc, byte| acc | byte) == 0)
}

/// RAM of a passive replica, as its process holds it: what deltas are differences to.
pub trait GuestPages {
    /// Copies a page as it is in the checkpoint accepted last, all of which must be in RAM by now.
    /// `false`: it cannot be read.
    fn read(&self, index: PageIndex, page: &mut [u8; PAGE_BYTES]) -> bool;
}

/// No RAM: for sessions that will not come as far as a transaction.
#[derive(Debug, Clone, Copy)]
pub struct NoPages;

impl GuestPages for NoPages {
    fn read(&self, _: PageIndex, _: &mut [u8; PAGE_BYTES]) -> bool {
        false
    }
}

static ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Why a description of RAM was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RamLayoutError {
    /// A stretch is empty, reversed, out of order or overlaps the one before it.
    #[error(
        "RAM range of pages {start:#x}..{end:#x} is empty, out of order or overlaps the one before"
    )]
    BadRange {
        /// First page of the stretch.
        start: u64,
        /// First page after it.
        end: u64,
    },
    /// There are more stretches than any machine of ours has.
    #[error("RAM is described by {0} ranges; at most {RAM_RANGES_MAX} are supported")]
    TooManyRanges(usize),
}

/// Which guest pages are RAM: ascending, disjoint, non-empty ranges of page numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamLayout {
    ranges: Vec<Range<u64>>,
    pages: u64,
}

impl RamLayout {
    /// The layout with these ranges of page numbers.
    ///
    /// # Errors
    /// When the ranges are not ascending, disjoint and non-empty, or too many.
    pub fn new(ranges: Vec<Range<u64>>) -> Result<Self, RamLayoutError> {
        if ranges.len() > RAM_RANGES_MAX {
            return Err(RamLayoutError::TooManyRanges(ranges.len()));
        }
        let mut free_from = 0;
        let mut pages = 0;
        for range in &ranges {
            if range.start < free_from || range.end <= range.start {
                return Err(RamLayoutError::BadRange {
                    start: range.start,
                    end: range.end,
                });
            }
            free_from = range.end;
            pages += range.end - range.start;
        }
        Ok(Self { ranges, pages })
    }

    /// Whether this page is RAM.
    #[must_use]
    pub fn contains(&self, index: PageIndex) -> bool {
        self.ranges.iter().any(|range| range.contains(&index.0))
    }

    /// How many pages of RAM come before this one; `None` if it is not RAM.
    #[must_use]
    pub fn ordinal(&self, index: PageIndex) -> Option<u64> {
        let mut before = 0;
        for range in &self.ranges {
            if range.contains(&index.0) {
                return Some(before + (index.0 - range.start));
            }
            before += range.end - range.start;
        }
        None
    }

    /// How many pages of RAM there are.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_knows_its_pages_and_its_holes() {
        let layout = RamLayout::new(vec![0..160, 256..1024]).unwrap();
        assert_eq!(layout.pages(), 160 + 768);
        for (index, expected) in [
            (0, true),
            (159, true),
            (160, false),
            (256, true),
            (1024, false),
        ] {
            assert_eq!(layout.contains(PageIndex(index)), expected, "page {index}");
        }
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges, clippy::single_range_in_vec_init)]
    fn ranges_that_make_no_sense_are_refused() {
        for ranges in [
            vec![5..5],
            vec![7..3],
            vec![0..10, 9..20],
            vec![10..20, 0..5],
        ] {
            assert!(RamLayout::new(ranges).is_err());
        }
        let many = (0..65).map(|n| n * 2..n * 2 + 1).collect();
        assert_eq!(RamLayout::new(many), Err(RamLayoutError::TooManyRanges(65)));
    }

    #[test]
    fn addresses_and_page_numbers_agree() {
        assert_eq!(PageIndex::of_address(0x2fff), PageIndex(2));
        assert_eq!(PageIndex(2).address(), Some(0x2000));
        assert_eq!(PageIndex(u64::MAX).address(), None);
    }
}
