// SPDX-License-Identifier: Apache-2.0
//! Pages in a payload: a 12-byte entry each, then the bytes its encoding needs.
//!
//! A page of zeros is its entry alone. Encodings for compressed and delta pages have numbers set
//! aside; a receiver refuses what it does not know.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::WireError;
use super::header::{FrameKind, PAYLOAD_BYTES_MAX};
use crate::page::{PAGE_BYTES, PageContent, PageIndex};

/// Page of zeros; no bytes follow the entry.
pub const ENCODING_ZERO: u8 = 0;
/// The page as it is; 4,096 bytes follow.
pub const ENCODING_RAW: u8 = 1;
/// Set aside: the page compressed with LZ4.
pub const ENCODING_LZ4: u8 = 2;
/// Set aside: the difference to the last committed copy.
pub const ENCODING_DELTA: u8 = 3;

/// What stands before each page.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PageEntry {
    index: U64,
    encoding: u8,
    reserved: u8,
    length: U16,
}

/// Size of the entry before each page, in bytes.
pub const PAGE_ENTRY_BYTES: usize = 12;
const _: () = assert!(size_of::<PageEntry>() == PAGE_ENTRY_BYTES);

const RAW_LENGTH: u16 = 4096;
const _: () = assert!(RAW_LENGTH as usize == PAGE_BYTES);

/// Whether a payload of this length certainly has room for one more page.
#[must_use]
pub const fn has_room_for_page(payload_bytes: usize) -> bool {
    payload_bytes + PAGE_ENTRY_BYTES + PAGE_BYTES <= PAYLOAD_BYTES_MAX
}

/// Appends a page to a payload, as short as its content allows.
pub fn encode_page(payload: &mut Vec<u8>, index: PageIndex, bytes: &[u8; PAGE_BYTES]) {
    let zero = is_zero(bytes);
    let entry = PageEntry {
        index: U64::new(index.0),
        encoding: if zero { ENCODING_ZERO } else { ENCODING_RAW },
        reserved: 0,
        length: U16::new(if zero { 0 } else { RAW_LENGTH }),
    };
    payload.extend_from_slice(entry.as_bytes());
    if !zero {
        payload.extend_from_slice(bytes);
    }
}

/// Whether all bytes are zero. Most pages that are not differ within the first word.
fn is_zero(bytes: &[u8; PAGE_BYTES]) -> bool {
    bytes
        .chunks_exact(64)
        .all(|line| line.iter().fold(0, |acc, byte| acc | byte) == 0)
}

/// Reads the pages of a payload, in the order they were encoded.
#[derive(Debug, Clone)]
pub struct PageReader<'a> {
    kind: FrameKind,
    rest: &'a [u8],
}

impl<'a> PageReader<'a> {
    /// Reads `payload`, which came in a frame of `kind`.
    #[must_use]
    pub const fn new(kind: FrameKind, payload: &'a [u8]) -> Self {
        Self {
            kind,
            rest: payload,
        }
    }

    fn read(&mut self) -> Result<(PageIndex, PageContent<'a>), WireError> {
        let malformed = |what| WireError::Malformed {
            kind: self.kind,
            what,
        };
        let (entry, rest) = PageEntry::ref_from_prefix(self.rest)
            .map_err(|_| malformed("it ends inside a page entry"))?;
        let index = PageIndex(entry.index.get());
        if entry.reserved != 0 {
            return Err(WireError::ReservedNotZero { kind: self.kind });
        }
        match (entry.encoding, entry.length.get()) {
            (ENCODING_ZERO, 0) => {
                self.rest = rest;
                Ok((index, PageContent::Zero))
            }
            (ENCODING_RAW, RAW_LENGTH) => {
                let (bytes, rest) = rest
                    .split_first_chunk::<PAGE_BYTES>()
                    .ok_or_else(|| malformed("it ends inside a page"))?;
                self.rest = rest;
                Ok((index, PageContent::Raw(bytes)))
            }
            (ENCODING_ZERO | ENCODING_RAW, _) => {
                Err(malformed("a page's length does not fit its encoding"))
            }
            (code, _) => Err(WireError::UnknownPageEncoding { index, code }),
        }
    }
}

impl<'a> Iterator for PageReader<'a> {
    type Item = Result<(PageIndex, PageContent<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            // Nothing after a malformed entry can be trusted.
            self.rest = &[];
        }
        Some(read)
    }
}
