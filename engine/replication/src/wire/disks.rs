// SPDX-License-Identifier: Apache-2.0
//! Disks in a payload: changes (a 24-byte entry each, then the data of a write), digests of blocks
//! that are to be compared, and which of them differ.

use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::WireError;
use super::header::{FrameKind, PAYLOAD_BYTES_MAX};
use crate::storage::{
    BLOCK_BYTES, BlockDigest, CHANGE_BYTES_MAX, Change, DiskChange, DiskNumber, PROBE_BLOCKS_MAX,
    SpaceFate,
};

const CODE_WRITE: u8 = 1;
const CODE_ZEROES_KEPT: u8 = 2;
const CODE_ZEROES_FREED: u8 = 3;
const CODE_DISCARD: u8 = 4;
const CODE_FLUSH: u8 = 5;

/// What stands before each change.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ChangeEntry {
    offset: U64,
    length: U64,
    disk: u8,
    code: u8,
    reserved: [u8; 6],
}

/// Size of the entry before each change, in bytes.
pub const CHANGE_ENTRY_BYTES: usize = 24;
const _: () = assert!(size_of::<ChangeEntry>() == CHANGE_ENTRY_BYTES);

/// Whether a payload of this length certainly has room for one more change.
#[must_use]
pub const fn has_room_for_change(payload_bytes: usize) -> bool {
    payload_bytes + CHANGE_ENTRY_BYTES + CHANGE_BYTES_MAX <= PAYLOAD_BYTES_MAX
}

/// Appends a change to a payload.
///
/// # Panics
/// When its data is longer than [`CHANGE_BYTES_MAX`].
pub fn encode_change<D: AsRef<[u8]>>(payload: &mut Vec<u8>, change: &DiskChange<D>) {
    assert!(
        change.data_bytes() <= CHANGE_BYTES_MAX,
        "longer writes are several changes"
    );
    let code = match &change.change {
        Change::Write(_) => CODE_WRITE,
        Change::Zeroes {
            space: SpaceFate::Kept,
            ..
        } => CODE_ZEROES_KEPT,
        Change::Zeroes {
            space: SpaceFate::Freed,
            ..
        } => CODE_ZEROES_FREED,
        Change::Discard { .. } => CODE_DISCARD,
        Change::Flush => CODE_FLUSH,
    };
    let entry = ChangeEntry {
        offset: U64::new(change.offset),
        length: U64::new(change.length()),
        disk: change.disk.code(),
        code,
        reserved: [0; 6],
    };
    payload.extend_from_slice(entry.as_bytes());
    if let Change::Write(data) = &change.change {
        payload.extend_from_slice(data.as_ref());
    }
}

/// Reads the changes of a payload, in the order they were encoded.
#[derive(Debug, Clone)]
pub struct ChangeReader<'a> {
    kind: FrameKind,
    rest: &'a [u8],
}

impl<'a> ChangeReader<'a> {
    /// Reads `payload`, which came in a frame of `kind`.
    #[must_use]
    pub const fn new(kind: FrameKind, payload: &'a [u8]) -> Self {
        Self {
            kind,
            rest: payload,
        }
    }

    fn read(&mut self) -> Result<DiskChange<&'a [u8]>, WireError> {
        let kind = self.kind;
        let malformed = |what| WireError::Malformed { kind, what };
        let (entry, rest) = ChangeEntry::ref_from_prefix(self.rest)
            .map_err(|_| malformed("it ends inside a change's entry"))?;
        if entry.reserved != [0; 6] {
            return Err(WireError::ReservedNotZero { kind });
        }
        let (offset, length) = (entry.offset.get(), entry.length.get());
        self.rest = rest;
        let change = match entry.code {
            CODE_WRITE => Change::Write(self.data(length)?),
            CODE_ZEROES_KEPT => Change::Zeroes {
                length,
                space: SpaceFate::Kept,
            },
            CODE_ZEROES_FREED => Change::Zeroes {
                length,
                space: SpaceFate::Freed,
            },
            CODE_DISCARD => Change::Discard { length },
            CODE_FLUSH if offset == 0 && length == 0 => Change::Flush,
            CODE_FLUSH => return Err(malformed("a flush has no range")),
            _ => return Err(malformed("a change is of unknown kind")),
        };
        let disk =
            DiskNumber::new(entry.disk).ok_or_else(|| malformed("no VM has so many disks"))?;
        Ok(DiskChange {
            disk,
            offset,
            change,
        })
    }

    fn data(&mut self, length: u64) -> Result<&'a [u8], WireError> {
        let kind = self.kind;
        let malformed = |what| WireError::Malformed { kind, what };
        let length = usize::try_from(length)
            .ok()
            .filter(|length| (1..=CHANGE_BYTES_MAX).contains(length))
            .ok_or_else(|| malformed("a write is empty or longer than 256 KiB"))?;
        let (data, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| malformed("it ends inside a write"))?;
        self.rest = rest;
        Ok(data)
    }
}

impl<'a> Iterator for ChangeReader<'a> {
    type Item = Result<DiskChange<&'a [u8]>, WireError>;

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

/// What stands before digests, and before the answer.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlocksEntry {
    offset: U64,
    disk: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<BlocksEntry>() == 16);

impl BlocksEntry {
    fn read(kind: FrameKind, payload: &[u8]) -> Result<(DiskNumber, u64, &[u8]), WireError> {
        let malformed = |what| WireError::Malformed { kind, what };
        let (entry, rest) = Self::ref_from_prefix(payload)
            .map_err(|_| malformed("it ends before its blocks are named"))?;
        if entry.reserved != [0; 7] {
            return Err(WireError::ReservedNotZero { kind });
        }
        let disk =
            DiskNumber::new(entry.disk).ok_or_else(|| malformed("no VM has so many disks"))?;
        let offset = entry.offset.get();
        if !offset.is_multiple_of(BLOCK_BYTES) {
            return Err(malformed("blocks begin at multiples of 64 KiB"));
        }
        Ok((disk, offset, rest))
    }

    fn append(payload: &mut Vec<u8>, disk: DiskNumber, offset: u64) {
        let entry = Self {
            offset: U64::new(offset),
            disk: disk.code(),
            reserved: [0; 7],
        };
        payload.extend_from_slice(entry.as_bytes());
    }
}

/// Blocks of a disk that are to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Which disk.
    pub disk: DiskNumber,
    /// Where the first block begins, in bytes.
    pub offset: u64,
    /// The digest of each block: 1 to [`PROBE_BLOCKS_MAX`].
    pub digests: Vec<BlockDigest>,
}

impl Probe {
    /// Appends the payload of a frame.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        BlocksEntry::append(payload, self.disk, self.offset);
        for digest in &self.digests {
            payload.extend_from_slice(&digest.0.to_le_bytes());
        }
    }

    /// Reads the payload of a frame.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let kind = FrameKind::DiskProbe;
        let malformed = |what| WireError::Malformed { kind, what };
        let (disk, offset, rest) = BlocksEntry::read(kind, payload)?;
        let digests =
            <[U128]>::ref_from_bytes(rest).map_err(|_| malformed("it ends inside a digest"))?;
        if digests.is_empty() || digests.len() as u64 > PROBE_BLOCKS_MAX {
            return Err(malformed("a probe compares 1 to 32 blocks"));
        }
        let digests = digests
            .iter()
            .map(|digest| BlockDigest(digest.get()))
            .collect();
        Ok(Self {
            disk,
            offset,
            digests,
        })
    }
}

/// Which blocks of a probe differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differing {
    /// Which disk.
    pub disk: DiskNumber,
    /// Where the first block of the probe begins, in bytes.
    pub offset: u64,
    /// A bit a block, the first one lowest.
    pub blocks: u64,
}

const _: () = assert!(PROBE_BLOCKS_MAX <= 64);

impl Differing {
    /// The places of the blocks that differ in the probe, from 0.
    pub fn places(self) -> impl Iterator<Item = u64> {
        (0..64).filter(move |place| self.blocks >> place & 1 == 1)
    }

    /// Appends the payload of a frame.
    pub fn encode(&self, payload: &mut Vec<u8>) {
        BlocksEntry::append(payload, self.disk, self.offset);
        payload.extend_from_slice(&self.blocks.to_le_bytes());
    }

    /// Reads the payload of a frame.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let kind = FrameKind::DiskDiffers;
        let (disk, offset, rest) = BlocksEntry::read(kind, payload)?;
        let blocks = U64::ref_from_bytes(rest).map_err(|_| WireError::Malformed {
            kind,
            what: "wrong length",
        })?;
        Ok(Self {
            disk,
            offset,
            blocks: blocks.get(),
        })
    }
}
