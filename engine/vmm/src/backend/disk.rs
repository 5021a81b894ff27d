// SPDX-License-Identifier: Apache-2.0
//! What a disk of the guest needs from the outside.
//!
//! Requests are started, complete in any order, and are told apart by a tag of the caller's. Their
//! buffers belong to the back end while they are in flight, so nothing the guest does to its memory
//! meanwhile matters, and guest memory is written by the device model only (through the dirty bitmap).

mod bounce;
mod content;
mod file;
mod lock;
#[cfg(any(test, feature = "test-support"))]
mod memory;
mod open;
mod plain;
mod raw;
mod slow_lane;
#[cfg(test)]
mod tests;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;

pub use content::DiskContent;
#[cfg(any(test, feature = "test-support"))]
pub use memory::{MemoryDisk, MemoryDiskControl};
pub use open::OpenDiskError;
pub use raw::{DiscardPolicy, DiskOptions, IoEngine, RawDisk};

/// Offsets and lengths of requests are multiples of this (VIRTIO 1.x, 5.2.6), whatever the disk's
/// logical block is.
pub const SECTOR_BYTES: u64 = 512;

/// One disk's outside.
///
/// One owner calls it, from the device's worker thread, or from the owner of a paused machine.
pub trait DiskBackend: Send {
    /// Size and abilities; the same as long as the disk is open.
    fn geometry(&self) -> DiskGeometry;

    /// Starts a request; `tag` comes back with its completion. Never blocks for the disk (the plain
    /// fallback does, and completes at once). A request that cannot be done completes with an error:
    /// one that is beyond the disk's end or not whole sectors with `InvalidInput`, and one that would
    /// change a read-only disk with `ReadOnlyFilesystem`.
    fn submit(&mut self, tag: u32, request: DiskRequest);

    /// Appends what completed since the last call.
    fn completed(&mut self, into: &mut Vec<DiskCompletion>);

    /// Readable when [`completed`](Self::completed) may return something. (Waiting for it may be
    /// interrupted: the kernel finishes a thread's requests in that thread, and for that ends its
    /// poll or epoll with `EINTR`.)
    fn readable(&self) -> BorrowedFd<'_>;

    /// Waits until nothing is in flight (for a cut). The completions are returned by
    /// [`completed`](Self::completed), and [`readable`](Self::readable) says so.
    ///
    /// # Errors
    /// The kernel no longer answers for what is in flight: the disk's content is unknown.
    fn drain(&mut self) -> io::Result<()>;
}

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Size in bytes: a multiple of [`SECTOR_BYTES`], not zero.
    pub capacity_bytes: u64,
    /// Logical block size in bytes: writes that are not whole blocks are slow. A power of two, at
    /// least 512.
    pub block_bytes: u32,
    /// Requests that change the disk are refused.
    pub read_only: bool,
    /// [`DiskRequest::Discard`] can free space.
    pub discard: bool,
    /// [`DiskRequest::WriteZeroes`] is cheaper than writing.
    pub write_zeroes: bool,
}

impl DiskGeometry {
    /// Whether a request may go to this disk: within its end, whole sectors, and a change only if
    /// the disk can be changed. Back ends check this; others may, to refuse early.
    ///
    /// # Errors
    /// `InvalidInput` or `ReadOnlyFilesystem`.
    pub fn check(&self, request: &DiskRequest) -> io::Result<()> {
        if self.read_only && request.changes() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let Some((offset, length)) = request.range() else {
            return Ok(());
        };
        let end = offset.checked_add(length);
        let within = end.is_some_and(|end| end <= self.capacity_bytes);
        if !within || !offset.is_multiple_of(SECTOR_BYTES) || !length.is_multiple_of(SECTOR_BYTES) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{length} bytes at {offset} are not whole sectors within the disk's {}",
                    self.capacity_bytes
                ),
            ));
        }
        Ok(())
    }
}

/// What to do with a disk.
#[derive(Debug, PartialEq, Eq)]
pub enum DiskRequest {
    /// Fill the buffer, all of it.
    Read {
        /// Where from, in bytes.
        offset: u64,
        /// Its length says how much.
        buffer: Vec<u8>,
    },
    /// Write the buffer, all of it.
    Write {
        /// Where to, in bytes.
        offset: u64,
        /// What.
        buffer: Vec<u8>,
    },
    /// Make every write that *completed* before this request durable (VIRTIO 1.x, 5.2.6.2). Writes
    /// still in flight may or may not be covered.
    Flush,
    /// The content of this range is of no use any more.
    Discard {
        /// From where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
    },
    /// This range shall read as zeroes.
    WriteZeroes {
        /// From where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// Whether its space may be given back.
        unmap: Unmap,
    },
}

impl DiskRequest {
    /// Offset and length in bytes; none for a flush.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, buffer } | Self::Write { offset, buffer } => {
                Some((*offset, u64::try_from(buffer.len()).unwrap_or(u64::MAX)))
            }
            Self::Discard { offset, length } | Self::WriteZeroes { offset, length, .. } => {
                Some((*offset, *length))
            }
            Self::Flush => None,
        }
    }

    /// Whether it changes what the disk holds.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. } => true,
            Self::Read { .. } | Self::Flush => false,
        }
    }

    /// Its buffer, for a completion; empty if it has none.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } => buffer,
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => Vec::new(),
        }
    }
}

/// Whether zeroed space may be given back to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmap {
    /// It stays allocated, so that later writes find room.
    Forbidden,
    /// It may become a hole.
    Allowed,
}

/// A request that is over.
#[derive(Debug)]
pub struct DiskCompletion {
    /// The tag it was started with.
    pub tag: u32,
    /// How it went. After an error the content of a read's buffer, and of the range of a write, is
    /// undefined.
    pub result: io::Result<()>,
    /// The data read, or the write's buffer back for reuse; empty for other requests.
    pub buffer: Vec<u8>,
}
