// SPDX-License-Identifier: Apache-2.0
//! What a chain asks for (section 5.2.6): a header of 16 bytes, data, a status byte.
//!
//! Pure: it reads guest memory once, believes nothing, and says what is to be done or which status
//! answers it. Whatever it lets through is within the disk, whole sectors and bounded.

use super::chain::{Parts, Shape};
use super::layout::{DATA_BYTES_MAX, F_DISCARD, F_WRITE_ZEROES};
use crate::backend::{DiskGeometry, SECTOR_BYTES, Unmap};
use crate::ram::Mapping;

/// Most ranges in one discard or write-zeroes request.
pub(super) const RANGES_MAX: usize = 16;
/// Most sectors in a range: 64 MiB. A pause waits for what is in flight, so it is not the whole disk.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 17;
/// Bytes of the identification.
pub(super) const ID_BYTES: usize = 20;

/// Bytes of `struct virtio_blk_req` before the data.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE_BYTES: usize = 16;
const RANGE_UNMAP: u32 = 1;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// What the status byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// Done.
    Ok,
    /// The host failed, or the request makes no sense.
    IoError,
    /// A request this device does not know, or that was not negotiated.
    Unsupported,
}

impl Status {
    /// The byte.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
        }
    }
}

/// A part of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// One range to be zeroed or discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) extent: Extent,
    pub(super) unmap: Unmap,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Read this many bytes from here into the chain's writable part.
    Read { offset: u64, bytes: usize },
    /// Write this many bytes, which follow the header, to here.
    Write { offset: u64, bytes: usize },
    /// Make completed writes durable.
    Flush,
    /// Tell the serial.
    Identify,
    /// Discard the ranges.
    Discard,
    /// Zero the ranges.
    WriteZeroes,
}

/// What a request is judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) disk: DiskGeometry,
    /// The negotiated features.
    pub(super) features: u64,
}

impl Rules {
    /// What the chain asks for, with its ranges in `ranges`; or the status that refuses it.
    pub(super) fn judge(
        &self,
        parts: &Parts,
        memory: &Mapping,
        ranges: &mut Vec<Range>,
    ) -> Result<Request, Status> {
        ranges.clear();
        let mut header = [0; HEADER_BYTES];
        if parts.shape == Shape::Unsound || parts.readable.read(memory, 0, &mut header).is_err() {
            return Err(Status::IoError);
        }
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let payload = parts.readable.bytes() - HEADER_BYTES;
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            T_IN => self.data(sector, parts.writable.bytes()).map(|offset| {
                let bytes = parts.writable.bytes();
                Request::Read { offset, bytes }
            }),
            T_OUT => {
                self.must_be_writable()?;
                let offset = self.data(sector, payload)?;
                let bytes = payload;
                Ok(Request::Write { offset, bytes })
            }
            T_FLUSH => Ok(Request::Flush),
            T_GET_ID => Ok(Request::Identify),
            T_DISCARD => {
                self.must_have(F_DISCARD)?;
                self.ranges(parts, memory, 0, ranges)?;
                Ok(Request::Discard)
            }
            T_WRITE_ZEROES => {
                self.must_have(F_WRITE_ZEROES)?;
                self.ranges(parts, memory, RANGE_UNMAP, ranges)?;
                Ok(Request::WriteZeroes)
            }
            _ => Err(Status::Unsupported),
        }
    }

    fn must_be_writable(&self) -> Result<(), Status> {
        if self.disk.read_only {
            return Err(Status::IoError);
        }
        Ok(())
    }

    /// Neither is offered for a disk that cannot be changed.
    fn must_have(&self, feature: u64) -> Result<(), Status> {
        if self.features & feature == 0 {
            return Err(Status::Unsupported);
        }
        Ok(())
    }

    /// Where data of this length is. There must be some, as a request without is not one.
    fn data(&self, sector: u64, bytes: usize) -> Result<u64, Status> {
        if bytes == 0 || bytes > DATA_BYTES_MAX {
            return Err(Status::IoError);
        }
        let length = u64::try_from(bytes).map_err(|_| Status::IoError)?;
        if !length.is_multiple_of(SECTOR_BYTES) {
            return Err(Status::IoError);
        }
        self.extent(sector, length).map(|extent| extent.offset)
    }

    fn extent(&self, sector: u64, length: u64) -> Result<Extent, Status> {
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        if end > self.disk.capacity_bytes {
            return Err(Status::IoError);
        }
        Ok(Extent { offset, length })
    }

    /// The ranges after the header, the first one last; empty ones are left out.
    fn ranges(
        &self,
        parts: &Parts,
        memory: &Mapping,
        known_flags: u32,
        into: &mut Vec<Range>,
    ) -> Result<(), Status> {
        let mut bytes = [0; RANGES_MAX * RANGE_BYTES];
        let length = parts.readable.bytes() - HEADER_BYTES;
        if length == 0 || !length.is_multiple_of(RANGE_BYTES) {
            return Err(Status::IoError);
        }
        let bytes = bytes.get_mut(..length).ok_or(Status::IoError)?;
        let copied = parts.read_payload(memory, bytes);
        copied.map_err(|_| Status::IoError)?;
        let (entries, _) = bytes.as_chunks::<RANGE_BYTES>();
        for entry in entries {
            let range = self.range(entry, known_flags)?;
            if range.extent.length > 0 {
                into.push(range);
            }
        }
        into.reverse();
        Ok(())
    }

    fn range(&self, entry: &[u8; RANGE_BYTES], known_flags: u32) -> Result<Range, Status> {
        let [sector @ .., c0, c1, c2, c3, f0, f1, f2, f3] = *entry;
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if count > RANGE_SECTORS_MAX {
            return Err(Status::IoError);
        }
        let length = u64::from(count) * SECTOR_BYTES;
        let unmap = if flags & RANGE_UNMAP == 0 {
            Unmap::Forbidden
        } else {
            Unmap::Allowed
        };
        Ok(Range {
            extent: self.extent(u64::from_le_bytes(sector), length)?,
            unmap,
        })
    }
}
