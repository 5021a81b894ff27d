// SPDX-License-Identifier: Apache-2.0
//! What a disk of the guest needs from the outside.
//!
//! Requests are started, complete in any order, and are told apart by a tag of the caller's. Their
//! buffers belong to the back end while they are in flight, so nothing the guest does to its memory
//! meanwhile matters, and guest memory is written by the device model only (through the dirty bitmap).

use std::io;
use std::os::fd::BorrowedFd;

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

    /// Readable when [`completed`](Self::completed) may return something.
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
