// SPDX-License-Identifier: Apache-2.0
//! Pages in a payload: a 12-byte entry each, then the bytes its encoding needs.
//!
//! A page of zeros is its entry alone. A delta is a difference to the page as it was in the epoch
//! before ([`super::delta`]); a checksum of the result goes along, so that a base that is not the
//! same on both sides is noticed. A delta without a difference says that the page is unchanged.
//!
//! Here a page is taken apart, and compressed bytes are bounded and unpacked; what a delta is
//! applied to is the receiver's affair.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::delta::{DELTA_BYTES_MAX, apply_delta};
use super::error::WireError;
use super::header::{FrameKind, PAYLOAD_BYTES_MAX, VERSION_OF_ENCODINGS};
use crate::page::{PAGE_BYTES, PageIndex, is_zero};

/// Page of zeros; no bytes follow the entry.
pub const ENCODING_ZERO: u8 = 0;
/// The page as it is; 4,096 bytes follow.
pub const ENCODING_RAW: u8 = 1;
/// The page as an LZ4 block.
pub const ENCODING_LZ4: u8 = 2;
/// Checksum of the page, then its difference to the epoch before.
pub const ENCODING_DELTA: u8 = 3;
/// Checksum of the page, then its difference to the epoch before as an LZ4 block.
pub const ENCODING_DELTA_LZ4: u8 = 4;

/// A page in its encoding; lengths are checked, contents are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodedPage<'a> {
    /// 4,096 zero bytes.
    Zero,
    /// These bytes.
    Raw(&'a [u8; PAGE_BYTES]),
    /// An LZ4 block.
    Lz4(&'a [u8]),
    /// A difference to the page in the epoch before.
    Delta(EncodedDelta<'a>),
}

/// A delta in its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedDelta<'a> {
    /// [`crate::page::page_checksum`] of the page that results.
    pub checksum: u32,
    packing: Packing,
    body: &'a [u8],
}

/// How a delta's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Lz4,
}

impl EncodedDelta<'_> {
    /// Whether it says that the page is as it was.
    #[must_use]
    pub const fn is_unchanged(&self) -> bool {
        self.body.is_empty()
    }

    /// Makes of the base, in `page`, what the page became. Whether it is that, the checksum tells.
    ///
    /// # Errors
    /// When the block or the difference is malformed. `page` may have changed in part then.
    pub fn apply(&self, kind: FrameKind, page: &mut [u8; PAGE_BYTES]) -> Result<(), WireError> {
        let malformed = |what| WireError::Malformed { kind, what };
        match self.packing {
            Packing::Plain => apply_delta(self.body, page).map_err(malformed),
            Packing::Lz4 => {
                let mut unpacked = [0; DELTA_BYTES_MAX];
                let length = lz4_flex::block::decompress_into(self.body, &mut unpacked)
                    .map_err(|_| malformed("a delta's LZ4 block is malformed or too long"))?;
                let delta = unpacked.get(..length).unwrap_or_default();
                apply_delta(delta, page).map_err(malformed)
            }
        }
    }
}

/// Unpacks an LZ4 block that must hold a page.
///
/// # Errors
/// When it is malformed, or holds more or less.
pub fn unpack_page(
    kind: FrameKind,
    block: &[u8],
    page: &mut [u8; PAGE_BYTES],
) -> Result<(), WireError> {
    match lz4_flex::block::decompress_into(block, page) {
        Ok(PAGE_BYTES) => Ok(()),
        _ => Err(WireError::Malformed {
            kind,
            what: "a page's LZ4 block is malformed or holds no page",
        }),
    }
}

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

/// Appends a page to a payload, zero or as it is: what every version of the protocol knows.
pub fn encode_page(payload: &mut Vec<u8>, index: PageIndex, bytes: &[u8; PAGE_BYTES]) {
    if is_zero(bytes) {
        encode_zero(payload, index);
    } else {
        encode_raw(payload, index, bytes);
    }
}

/// Appends a page of zeros.
pub(crate) fn encode_zero(payload: &mut Vec<u8>, index: PageIndex) {
    entry(payload, index, ENCODING_ZERO, 0);
}

/// Appends a page as it is.
pub(crate) fn encode_raw(payload: &mut Vec<u8>, index: PageIndex, bytes: &[u8; PAGE_BYTES]) {
    entry(payload, index, ENCODING_RAW, RAW_LENGTH);
    payload.extend_from_slice(bytes);
}

/// Appends a page as an LZ4 block.
///
/// # Panics
/// When it is not shorter than the page.
pub(crate) fn encode_lz4(payload: &mut Vec<u8>, index: PageIndex, block: &[u8]) {
    entry(payload, index, ENCODING_LZ4, packed_length(block.len()));
    payload.extend_from_slice(block);
}

/// Appends a page as a difference, empty for an unchanged one, `packed` with LZ4 or not.
///
/// # Panics
/// When it is not shorter than the page.
pub(crate) fn encode_delta_page(
    payload: &mut Vec<u8>,
    index: PageIndex,
    checksum: u32,
    encoding: u8,
    body: &[u8],
) {
    let length = packed_length(CHECKSUM_BYTES + body.len());
    entry(payload, index, encoding, length);
    payload.extend_from_slice(&checksum.to_le_bytes());
    payload.extend_from_slice(body);
}

/// Most bytes of a delta's difference, packed or not.
pub(crate) const DELTA_BODY_MAX: usize = PAGE_BYTES - CHECKSUM_BYTES - 1;

const CHECKSUM_BYTES: usize = size_of::<u32>();

fn packed_length(length: usize) -> u16 {
    assert!(length < PAGE_BYTES, "{length} bytes are no packed page");
    u16::try_from(length).expect("bounded by the assertion above")
}

fn entry(payload: &mut Vec<u8>, index: PageIndex, encoding: u8, length: u16) {
    let entry = PageEntry {
        index: U64::new(index.0),
        encoding,
        reserved: 0,
        length: U16::new(length),
    };
    payload.extend_from_slice(entry.as_bytes());
}

/// Reads the pages of a payload, in the order they were encoded.
#[derive(Debug, Clone)]
pub struct PageReader<'a> {
    kind: FrameKind,
    version: u16,
    rest: &'a [u8],
}

impl<'a> PageReader<'a> {
    /// Reads `payload`, which came in a frame of this kind and protocol version.
    #[must_use]
    pub const fn new(kind: FrameKind, version: u16, payload: &'a [u8]) -> Self {
        Self {
            kind,
            version,
            rest: payload,
        }
    }

    const fn malformed(&self, what: &'static str) -> WireError {
        let kind = self.kind;
        WireError::Malformed { kind, what }
    }

    fn read(&mut self) -> Result<(PageIndex, EncodedPage<'a>), WireError> {
        let (entry, rest) = PageEntry::ref_from_prefix(self.rest)
            .map_err(|_| self.malformed("it ends inside a page entry"))?;
        let index = PageIndex(entry.index.get());
        if entry.reserved != 0 {
            return Err(WireError::ReservedNotZero { kind: self.kind });
        }
        if !self.knows(entry.encoding) {
            let code = entry.encoding;
            return Err(WireError::UnknownPageEncoding { index, code });
        }
        let (bytes, rest) = rest
            .split_at_checked(usize::from(entry.length.get()))
            .ok_or_else(|| self.malformed("it ends inside a page"))?;
        self.rest = rest;
        Ok((index, self.page(entry.encoding, bytes)?))
    }

    /// Whether frames of this kind and version may have pages in this encoding.
    fn knows(&self, encoding: u8) -> bool {
        match encoding {
            ENCODING_ZERO | ENCODING_RAW => true,
            ENCODING_LZ4 => self.version >= VERSION_OF_ENCODINGS,
            // There is no epoch before the copy.
            ENCODING_DELTA | ENCODING_DELTA_LZ4 => {
                self.version >= VERSION_OF_ENCODINGS && self.kind == FrameKind::Pages
            }
            _ => false,
        }
    }

    fn page(&self, encoding: u8, bytes: &'a [u8]) -> Result<EncodedPage<'a>, WireError> {
        let misfit = || self.malformed("a page's length does not fit its encoding");
        match (encoding, bytes.len()) {
            (ENCODING_ZERO, 0) => Ok(EncodedPage::Zero),
            (ENCODING_RAW, _) => {
                let page = bytes.try_into().map_err(|_| misfit())?;
                Ok(EncodedPage::Raw(page))
            }
            (ENCODING_LZ4, 1..PAGE_BYTES) => Ok(EncodedPage::Lz4(bytes)),
            (ENCODING_DELTA | ENCODING_DELTA_LZ4, ..PAGE_BYTES) => {
                let (checksum, body) = bytes.split_first_chunk().ok_or_else(misfit)?;
                let packing = match encoding {
                    ENCODING_DELTA => Packing::Plain,
                    // Nothing packed is nothing at all: that has an encoding already.
                    _ if body.is_empty() => return Err(misfit()),
                    _ => Packing::Lz4,
                };
                Ok(EncodedPage::Delta(EncodedDelta {
                    checksum: u32::from_le_bytes(*checksum),
                    packing,
                    body,
                }))
            }
            _ => Err(misfit()),
        }
    }
}

impl<'a> Iterator for PageReader<'a> {
    type Item = Result<(PageIndex, EncodedPage<'a>), WireError>;

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
