// SPDX-License-Identifier: Apache-2.0
//! Which pages of guest memory nobody has touched yet.
//!
//! A private anonymous page that is neither present nor swapped out was never written: it reads as
//! zeros. `/proc/self/pagemap` tells that for many pages at once (64-bit entries, bit 63 present,
//! bit 62 swapped or being moved; Documentation/admin-guide/mm/pagemap.rst). So an initial copy of a
//! large, mostly empty guest need not fault in, read and compare what was never there.
//!
//! This is not true of pages out of a pool: the kernel shows one that is just being moved like one
//! that never was. There nothing counts as untouched.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Region;
use crate::dirty::PAGE_SIZE;

const ENTRY_BYTES: usize = 8;
/// Pages asked about in one read: entries of 64 KiB, which stay in the cache.
const PAGES_AT_ONCE: usize = 8192;
/// Bits 63 and 62 of an entry.
const TOUCHED: u64 = 0b11 << 62;

/// One bit per page of `region`, set where it was never touched.
pub(super) fn untouched_pages(region: &Region) -> io::Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = region.as_ptr().addr() / PAGE_SIZE;
    let pages = region.size() / PAGE_SIZE;
    let mut words = Vec::with_capacity(pages.div_ceil(64));
    let mut entries = vec![0u8; PAGES_AT_ONCE * ENTRY_BYTES];
    for start in (0..pages).step_by(PAGES_AT_ONCE) {
        let count = (pages - start).min(PAGES_AT_ONCE);
        let (wanted, _) = entries.split_at_mut(count * ENTRY_BYTES);
        let offset = u64::try_from((first + start) * ENTRY_BYTES).unwrap_or(u64::MAX);
        pagemap.read_exact_at(wanted, offset)?;
        words.extend(wanted.chunks(64 * ENTRY_BYTES).map(word_of));
    }
    Ok(words)
}

/// One bit for each of up to 64 entries.
fn word_of(entries: &[u8]) -> u64 {
    entries
        .as_chunks::<ENTRY_BYTES>()
        .0
        .iter()
        .enumerate()
        .filter(|(_, entry)| u64::from_le_bytes(**entry) & TOUCHED == 0)
        .fold(0, |word, (bit, _)| word | 1 << bit)
}
