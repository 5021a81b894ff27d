// SPDX-License-Identifier: Apache-2.0
//! Guest memory: its layout, and a handle to read and write it page by page. How it is mapped is in
//! [`memory`](crate::memory).
//!
//! RAM fills guest-physical addresses from 0 up to 3 GiB; what does not fit continues at 4 GiB, so
//! that the interrupt controllers and later devices have the hole between. Every write through
//! this handle is recorded in a bitmap beside KVM's own, because KVM logs only what the guest and
//! the kernel write.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

use crate::config::MemorySize;
use crate::dirty::{DirtyPages, PAGE_SIZE, PageIndex};
use crate::memory::{self, MapMemoryError, MemoryOptions, WrittenPages};
use crate::memory_error::WatchedRam;
use crate::sys;

/// Guest-physical end of the low part of RAM.
pub(crate) const LOW_END: u64 = 3 << 30;
/// Guest-physical start of the high part of RAM.
pub(crate) const HIGH_START: u64 = 4 << 30;
const LOW_PAGES: u64 = LOW_END / PAGE_SIZE as u64;

pub(crate) type Mapping = GuestMemoryMmap<WrittenPages>;

/// An access to a page that guest memory does not have.
#[derive(Debug, Error)]
#[error("Page {} is beyond guest memory of {page_count} pages", page.0)]
pub struct PageAccessError {
    /// The page that was asked for.
    pub page: PageIndex,
    /// Pages of this memory.
    pub page_count: u64,
    /// The refused access.
    #[source]
    pub source: GuestMemoryError,
}

/// A handle to guest memory. Cloning is cheap and shares the memory; usable from any thread, also
/// while the guest runs (a page read then may be torn; it is marked dirty afterwards).
#[derive(Debug, Clone)]
pub struct GuestRam {
    // Before the mapping: what is not mapped must not be watched.
    _watched: Arc<WatchedRam>,
    mapping: Mapping,
    page_count: u64,
}

impl GuestRam {
    /// Memory as the host gives it by default, such as for trying a kernel.
    pub(crate) fn new(size: MemorySize) -> Result<Self, MapMemoryError> {
        Self::with_options(size, &MemoryOptions::default())
    }

    pub(crate) fn with_options(
        size: MemorySize,
        options: &MemoryOptions,
    ) -> Result<Self, MapMemoryError> {
        Ok(Self::of(
            memory::map(size, options)?,
            size.bytes() / PAGE_SIZE as u64,
        ))
    }

    /// Memory of these parts, each with start and length in whole pages: for fuzzing, where the least
    /// that a machine has is too much to look at after each step.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of_parts(
        parts: &[(u64, usize)],
    ) -> Result<Self, vm_memory::mmap::FromRangesError> {
        let ranges: Vec<_> = parts
            .iter()
            .map(|(start, length)| (GuestAddress(*start), *length))
            .collect();
        let pages: usize = parts.iter().map(|(_, length)| length / PAGE_SIZE).sum();
        Ok(Self::of(
            Mapping::from_ranges(&ranges)?,
            u64::try_from(pages).unwrap_or(u64::MAX),
        ))
    }

    fn of(mapping: Mapping, page_count: u64) -> Self {
        let stretches = mapping.iter().map(|region| {
            let host = region.as_ptr().addr() as u64;
            (host, region.start_addr().0, region.len())
        });
        Self {
            _watched: Arc::new(WatchedRam::new(stretches)),
            mapping,
            page_count,
        }
    }

    /// Number of pages.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Copies the page into `buffer`, which should be [`PAGE_SIZE`] long (a shorter one gets the
    /// start of the page).
    ///
    /// # Errors
    /// The memory has no such page.
    pub fn read_page(&self, page: PageIndex, buffer: &mut [u8]) -> Result<(), PageAccessError> {
        let length = buffer.len().min(PAGE_SIZE);
        let (buffer, _) = buffer.split_at_mut(length);
        self.mapping
            .read_slice(buffer, address_of(page))
            .map_err(|source| self.access_error(page, source))
    }

    /// Copies as many pages as `buffer` has, from `first` on, in one go where they lie side by side.
    ///
    /// # Errors
    /// The memory does not have all of them; the buffer holds those before the missing one then, perhaps.
    pub fn read_pages(
        &self,
        first: PageIndex,
        buffer: &mut [[u8; PAGE_SIZE]],
    ) -> Result<(), PageAccessError> {
        // Low and high RAM are numbered through, but do not lie side by side.
        let low = usize::try_from(LOW_PAGES.saturating_sub(first.0)).unwrap_or(usize::MAX);
        let (low, high) = buffer.split_at_mut(low.min(buffer.len()));
        let above = PageIndex(first.0.saturating_add(low.len() as u64));
        for (start, pages) in [(first, low), (above, high)] {
            if !pages.is_empty() {
                self.mapping
                    .read_slice(pages.as_flattened_mut(), address_of(start))
                    .map_err(|source| self.access_error(start, source))?;
            }
        }
        Ok(())
    }

    /// Writes the page from `content`, which should be [`PAGE_SIZE`] long (what is longer is
    /// ignored), and marks it written for the next harvest.
    ///
    /// # Errors
    /// The memory has no such page.
    pub fn write_page(&self, page: PageIndex, content: &[u8]) -> Result<(), PageAccessError> {
        let length = content.len().min(PAGE_SIZE);
        let (content, _) = content.split_at(length);
        self.mapping
            .write_slice(content, address_of(page))
            .map_err(|source| self.access_error(page, source))
    }

    /// Gives whole pages back to the host: they read as zeroes and count as written.
    ///
    /// # Errors
    /// The range is not in guest memory, or the kernel keeps the pages (memory that is locked).
    pub(crate) fn discard(&self, start: GuestAddress, bytes: u64) -> std::io::Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let slice = self
            .mapping
            .get_slice(start, bytes)
            .map_err(std::io::Error::other)?;
        sys::discard(&slice)?;
        slice.bitmap().mark_dirty(0, bytes);
        Ok(())
    }

    /// Takes these pages from the host now, so that nobody waits for them later; they keep their
    /// content and do not count as written.
    ///
    /// # Errors
    /// The range is not in guest memory, the host has no more memory, or its kernel is older than
    /// Linux 5.14.
    pub fn populate(&self, pages: Range<PageIndex>) -> std::io::Result<()> {
        // Low and high RAM are numbered through, but do not lie side by side.
        let middle = LOW_PAGES.clamp(pages.start.0, pages.end.0.max(pages.start.0));
        for (first, end) in [(pages.start.0, middle), (middle, pages.end.0)] {
            let bytes = end.saturating_sub(first).saturating_mul(PAGE_SIZE as u64);
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            if bytes > 0 {
                let slice = self.mapping.get_slice(address_of(PageIndex(first)), bytes);
                sys::populate(&slice.map_err(std::io::Error::other)?)?;
            }
        }
        Ok(())
    }

    /// Pages that nobody has touched since the machine was made, or since they were given back; they hold zeros. Costs a few
    /// nanoseconds a page, where reading such a page costs a page fault. It never says too much, but
    /// may say too little, or nothing.
    ///
    /// Meant for an initial copy, after dirty tracking was started: what is touched from then on is
    /// in a harvest.
    #[must_use]
    pub fn untouched_pages(&self) -> DirtyPages {
        let mut untouched = DirtyPages::none(self.page_count);
        for (first, region) in self.regions() {
            let bitmap = memory::untouched_pages(region);
            untouched.insert_bitmap(first, region.len() / PAGE_SIZE as u64, &bitmap);
        }
        untouched
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Moves the pages this program wrote since the last call into `into`.
    pub(crate) fn take_written(&self, into: &mut DirtyPages) {
        for (first, region) in self.regions() {
            (**region).bitmap().take(first, into);
        }
    }

    /// The contiguous parts of RAM, each with the index of its first page.
    pub(crate) fn regions(
        &self,
    ) -> impl Iterator<Item = (PageIndex, &GuestRegionMmap<WrittenPages>)> {
        self.mapping
            .iter()
            .map(|region| (page_of(region.start_addr()), region))
    }

    fn access_error(&self, page: PageIndex, source: GuestMemoryError) -> PageAccessError {
        PageAccessError {
            page,
            page_count: self.page_count,
            source,
        }
    }
}

/// Guest-physical start and length of each part of RAM.
pub(crate) fn ram_ranges(size: MemorySize) -> Vec<(u64, u64)> {
    let low = size.bytes().min(LOW_END);
    let high = size.bytes() - low;
    let mut ranges = vec![(0, low)];
    if high > 0 {
        ranges.push((HIGH_START, high));
    }
    ranges
}

fn address_of(page: PageIndex) -> GuestAddress {
    let hole_start = LOW_PAGES;
    let number = if page.0 < hole_start {
        page.0
    } else {
        // Saturating: an absurd index must end as a refused access, not as an overflow.
        page.0
            .saturating_add((HIGH_START - LOW_END) / PAGE_SIZE as u64)
    };
    GuestAddress(number.saturating_mul(PAGE_SIZE as u64))
}

fn page_of(address: GuestAddress) -> PageIndex {
    let hole = if address.0 >= HIGH_START {
        HIGH_START - LOW_END
    } else {
        0
    };
    PageIndex((address.0 - hole) / PAGE_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_on_both_sides_of_the_hole_are_reached() {
        let ram = GuestRam::new(MemorySize::from_mib(3080).unwrap()).unwrap();
        assert_eq!(ram.page_count(), 3080 * 256);
        let mut seen = [0; PAGE_SIZE];
        for page in [0, LOW_PAGES - 1, LOW_PAGES, ram.page_count() - 1].map(PageIndex) {
            ram.write_page(page, &[0xa5; PAGE_SIZE]).unwrap();
            ram.read_page(page, &mut seen).unwrap();
            assert_eq!(seen, [0xa5; PAGE_SIZE]);
        }
        let mut written = DirtyPages::none(ram.page_count());
        ram.take_written(&mut written);
        assert_eq!(
            written.iter().map(|page| page.0).collect::<Vec<_>>(),
            [0, LOW_PAGES - 1, LOW_PAGES, ram.page_count() - 1]
        );
        let mut again = DirtyPages::none(ram.page_count());
        ram.take_written(&mut again);
        assert!(again.is_empty());
    }

    #[test]
    fn pages_are_read_in_a_row_also_over_the_hole() {
        let ram = GuestRam::new(MemorySize::from_mib(3080).unwrap()).unwrap();
        for number in 0..4 {
            let page = PageIndex(LOW_PAGES - 2 + number);
            let byte = u8::try_from(number).unwrap() + 1;
            ram.write_page(page, &[byte; PAGE_SIZE]).unwrap();
        }
        let mut pages = [[0; PAGE_SIZE]; 4];
        ram.read_pages(PageIndex(LOW_PAGES - 2), &mut pages)
            .unwrap();
        assert_eq!(pages, [1, 2, 3, 4].map(|byte| [byte; PAGE_SIZE]));
        ram.read_pages(PageIndex(LOW_PAGES), &mut pages[..1])
            .unwrap();
        assert_eq!(pages[0], [3; PAGE_SIZE]);
        ram.read_pages(PageIndex(u64::MAX), &mut []).unwrap();
        let last = PageIndex(ram.page_count() - 3);
        assert!(ram.read_pages(last, &mut pages).is_err());
        assert!(ram.read_pages(PageIndex(u64::MAX), &mut pages).is_err());
    }

    #[test]
    fn populated_pages_keep_their_content_and_others_stay_untouched() {
        let ram = GuestRam::new(MemorySize::from_mib(3080).unwrap()).unwrap();
        let middle = PageIndex(LOW_PAGES);
        ram.write_page(middle, &[0xa5; PAGE_SIZE]).unwrap();
        ram.populate(PageIndex(LOW_PAGES - 600)..PageIndex(LOW_PAGES + 600))
            .unwrap();
        let mut seen = [0; PAGE_SIZE];
        ram.read_page(middle, &mut seen).unwrap();
        assert_eq!(seen, [0xa5; PAGE_SIZE]);
        let mut written = DirtyPages::none(ram.page_count());
        ram.take_written(&mut written);
        assert_eq!(written.iter().collect::<Vec<_>>(), [middle]);
        let untouched = ram.untouched_pages();
        let is_untouched = |page| untouched.iter().any(|one| one == PageIndex(page));
        assert!(!is_untouched(LOW_PAGES - 600) && !is_untouched(LOW_PAGES + 599));
        if !untouched.is_empty() {
            assert!(is_untouched(0));
        }
        let beyond = PageIndex(ram.page_count() - 1)..PageIndex(ram.page_count() + 1);
        assert!(ram.populate(beyond).is_err());
    }

    #[test]
    fn a_page_beyond_memory_is_refused() {
        let ram = GuestRam::new(MemorySize::from_mib(16).unwrap()).unwrap();
        assert!(ram.write_page(PageIndex(4096), &[0; PAGE_SIZE]).is_err());
        assert!(
            ram.read_page(PageIndex(u64::MAX), &mut [0; PAGE_SIZE])
                .is_err()
        );
    }
}
