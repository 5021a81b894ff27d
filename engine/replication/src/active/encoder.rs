// SPDX-License-Identifier: Apache-2.0
//! Makes pages short: zero, unchanged, difference to the last copy sent, LZ4, or as they are.
//!
//! The copies are those of this session, and a session is one connection: what was sent on it and
//! is not yet acknowledged will have been applied when what follows is read. A new session begins
//! without copies, since what the peer holds then is another epoch. So a copy is what the peer has
//! in RAM *before* the open transaction, unless the page was sent in this transaction already;
//! then it goes without a base.
//!
//! Which encoding is tried is decided by cheap signs, never by trying all. None is ever longer
//! than the page as it is.

mod sent;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::compression::{Effort, PageTally};
use crate::page::{PAGE_BYTES, PageIndex, is_zero, page_checksum};
use crate::wire::delta::{DELTA_BYTES_MAX, encode_delta};
use crate::wire::pages::{
    DELTA_BODY_MAX, ENCODING_DELTA, ENCODING_DELTA_LZ4, PAGE_ENTRY_BYTES, encode_delta_page,
    encode_lz4, encode_raw, encode_zero,
};

pub use sent::SENT_BYTES_DEFAULT;
use sent::SentPages;

/// A difference up to this length is not worth compressing.
const SHORT_DELTA_BYTES: usize = 96;
/// A difference from this length on may be longer than the page itself, compressed.
const LONG_DELTA_BYTES: usize = 2048;
/// After a page did not compress it is not tried again this many times.
const LZ4_PAUSE: u8 = 7;
/// Compression must save this part of a page or difference: 1/16.
const SAVING: usize = 16;

const LZ4_BYTES_MAX: usize = get_maximum_output_size(DELTA_BYTES_MAX);

/// Encodes the pages of one session.
pub(super) struct PageEncoder {
    effort: Effort,
    sent: SentPages,
    /// Number of the open transaction in this session.
    transaction: u64,
    delta: Vec<u8>,
    /// The difference, compressed.
    delta_block: Box<[u8; LZ4_BYTES_MAX]>,
    /// The page, compressed.
    page_block: Box<[u8; LZ4_BYTES_MAX]>,
    table: CompressTable,
    tally: PageTally,
}

impl std::fmt::Debug for PageEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageEncoder")
            .field("effort", &self.effort)
            .field("transaction", &self.transaction)
            .field("tally", &self.tally)
            .finish_non_exhaustive()
    }
}

impl Clone for PageEncoder {
    /// Buffers and table hold nothing from one page to the next.
    fn clone(&self) -> Self {
        Self {
            effort: self.effort,
            sent: self.sent.clone(),
            transaction: self.transaction,
            tally: self.tally,
            ..Self::new()
        }
    }
}

/// What a page becomes; the bytes are in the encoder.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Raw,
    Unchanged,
    Delta,
    DeltaLz4(usize),
    Lz4(usize),
}

impl PageEncoder {
    pub(super) fn new() -> Self {
        Self {
            effort: Effort::Raw,
            sent: SentPages::new(SENT_BYTES_DEFAULT),
            transaction: 0,
            delta: Vec::with_capacity(DELTA_BYTES_MAX),
            delta_block: Box::new([0; LZ4_BYTES_MAX]),
            page_block: Box::new([0; LZ4_BYTES_MAX]),
            table: CompressTable::small(),
            tally: PageTally::default(),
        }
    }

    /// From the next page on. Without deltas no copies are kept: they would be out of date.
    pub(super) fn set_effort(&mut self, effort: Effort) {
        self.effort = effort;
        if effort == Effort::Raw {
            self.sent.clear();
        }
    }

    /// Keeps copies of at most so many bytes; forgets those there are.
    pub(super) fn set_sent_bytes_max(&mut self, bytes: usize) {
        self.sent = SentPages::new(bytes);
    }

    /// A transaction begins: what was sent before is what its differences are to.
    pub(super) fn begin(&mut self) {
        self.transaction += 1;
        self.tally = PageTally::default();
    }

    /// Of the pages since the last [`Self::begin`].
    pub(super) const fn tally(&self) -> &PageTally {
        &self.tally
    }

    /// Appends a page of the initial copy. It is applied at once and more than once, and no copy
    /// is kept: all of RAM would drive out what is worth keeping.
    pub(super) fn copy_page(
        &mut self,
        payload: &mut Vec<u8>,
        index: PageIndex,
        page: &[u8; PAGE_BYTES],
    ) {
        if is_zero(page) {
            return encode_zero(payload, index);
        }
        if self.effort == Effort::DeltaLz4
            && let Some(length) = compress(&mut self.table, page, &mut *self.page_block)
            && let Some(block) = self.page_block.get(..length)
        {
            return encode_lz4(payload, index, block);
        }
        encode_raw(payload, index, page);
    }

    /// Appends a page of the open transaction.
    pub(super) fn page(
        &mut self,
        payload: &mut Vec<u8>,
        index: PageIndex,
        page: &[u8; PAGE_BYTES],
    ) {
        let before = payload.len();
        if is_zero(page) {
            // The shortest there is; and what follows on zeros is as short without a base.
            self.sent.forget(index);
            encode_zero(payload, index);
            self.tally.zero += 1;
        } else if self.effort == Effort::Raw {
            encode_raw(payload, index, page);
            self.tally.raw += 1;
        } else {
            let choice = self.choose(index, page);
            self.append(payload, index, page, choice);
        }
        self.tally.wire_bytes += (payload.len() - before) as u64;
        debug_assert!(payload.len() - before <= PAGE_ENTRY_BYTES + PAGE_BYTES);
    }

    /// Decides, and keeps the copy.
    fn choose(&mut self, index: PageIndex, page: &[u8; PAGE_BYTES]) -> Choice {
        self.delta.clear();
        let base = self.sent.base(index, self.transaction);
        let known = base.is_some();
        let with_base =
            base.is_some_and(|base| encode_delta(&mut self.delta, base, page, DELTA_BODY_MAX));
        if with_base && self.delta.is_empty() {
            self.sent.keep(index, self.transaction, None);
            return Choice::Unchanged;
        }
        let plain = if with_base {
            Choice::Delta
        } else {
            Choice::Raw
        };
        let short = with_base && self.delta.len() <= SHORT_DELTA_BYTES;
        let compress = self.effort == Effort::DeltaLz4 && !short;
        let tried = compress && !self.sent.pauses(index);
        let compressed = tried.then(|| self.compressed(with_base, page)).flatten();
        self.sent.keep(index, self.transaction, Some(page));
        // That a page does not compress the first time says nothing of its differences.
        if known && tried && compressed.is_none() {
            self.sent.pause(index, LZ4_PAUSE);
        }
        compressed.unwrap_or(plain)
    }

    /// The shorter of difference and page, compressed, if that is worth it.
    fn compressed(&mut self, with_base: bool, page: &[u8; PAGE_BYTES]) -> Option<Choice> {
        let delta = if with_base {
            compress(&mut self.table, &self.delta, &mut *self.delta_block)
        } else {
            None
        };
        if with_base && delta.unwrap_or(self.delta.len()) <= LONG_DELTA_BYTES {
            return delta.map(Choice::DeltaLz4);
        }
        let whole = compress(&mut self.table, page, &mut *self.page_block);
        let longest = if with_base {
            self.delta.len()
        } else {
            PAGE_BYTES
        };
        match (delta, whole) {
            (Some(delta), Some(whole)) if delta <= whole => Some(Choice::DeltaLz4(delta)),
            (_, Some(whole)) if whole < longest => Some(Choice::Lz4(whole)),
            (Some(delta), _) => Some(Choice::DeltaLz4(delta)),
            _ => None,
        }
    }

    fn append(
        &mut self,
        payload: &mut Vec<u8>,
        index: PageIndex,
        page: &[u8; PAGE_BYTES],
        choice: Choice,
    ) {
        let tally = &mut self.tally;
        match choice {
            Choice::Raw => {
                encode_raw(payload, index, page);
                tally.raw += 1;
            }
            Choice::Unchanged => {
                encode_delta_page(payload, index, page_checksum(page), ENCODING_DELTA, &[]);
                tally.unchanged += 1;
            }
            Choice::Delta => {
                let checksum = page_checksum(page);
                encode_delta_page(payload, index, checksum, ENCODING_DELTA, &self.delta);
                tally.delta += 1;
            }
            Choice::DeltaLz4(length) => {
                let (checksum, body) = (page_checksum(page), &self.delta_block[..length]);
                encode_delta_page(payload, index, checksum, ENCODING_DELTA_LZ4, body);
                tally.delta_lz4 += 1;
            }
            Choice::Lz4(length) => {
                encode_lz4(payload, index, &self.page_block[..length]);
                tally.lz4 += 1;
            }
        }
    }
}

/// Compresses; gives how many bytes it took, if it is worth it.
fn compress(table: &mut CompressTable, bytes: &[u8], block: &mut [u8]) -> Option<usize> {
    let length = compress_into_with_table(bytes, block, table).ok()?;
    let limit = bytes.len().min(DELTA_BODY_MAX) - bytes.len().min(DELTA_BODY_MAX) / SAVING;
    (length <= limit).then_some(length)
}
