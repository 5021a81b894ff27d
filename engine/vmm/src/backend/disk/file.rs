// SPDX-License-Identifier: Apache-2.0
//! The file or block device behind a disk, and every request done the blocking way.
//!
//! The plain engine does all its requests here; the io_uring engine those that the kernel can do
//! only the blocking way, or did only in part.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::bounce::BouncePool;
use super::lock;
use super::{DiskRequest, Unmap};
use crate::backend::ioctl;

/// Zeroes written at once where the file system cannot zero a range by itself.
static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// What kind of thing holds the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    File,
    BlockDevice,
}

/// An opened disk. All its ranges must have been checked against its size before.
#[derive(Debug)]
pub(super) struct RawFile {
    /// Carries the lock. Goes through the host's page cache.
    pub(super) cached: File,
    /// The same opened again with O_DIRECT, and what offsets and lengths it needs in bytes.
    pub(super) direct: Option<(File, u64)>,
    pub(super) medium: Medium,
    pub(super) block_bytes: u32,
    /// Whether discards and unmaps are passed on.
    pub(super) frees_space: bool,
    pub(super) read_only: bool,
    /// The file system said once that it cannot zero a range and keep it allocated.
    zero_by_writing: AtomicBool,
}

impl RawFile {
    pub(super) fn new(cached: File, medium: Medium, block_bytes: u32) -> Self {
        Self {
            cached,
            direct: None,
            medium,
            block_bytes,
            frees_space: false,
            read_only: false,
            zero_by_writing: AtomicBool::new(false),
        }
    }

    /// Whether it turned out that zeroes that stay allocated have to be written.
    pub(super) fn zeroes_by_writing(&self) -> bool {
        self.zero_by_writing.load(Ordering::Relaxed)
    }

    /// Does a request and gives its buffer back.
    pub(super) fn run(
        &self,
        request: DiskRequest,
        pool: &mut BouncePool,
    ) -> (io::Result<()>, Vec<u8>) {
        match request {
            DiskRequest::Read { offset, mut buffer } => {
                let result = self.read(offset, &mut buffer, pool);
                (result, buffer)
            }
            DiskRequest::Write { offset, buffer } => {
                let result = self.write(offset, &buffer, pool);
                (result, buffer)
            }
            DiskRequest::Flush => (self.flush(), Vec::new()),
            DiskRequest::Discard { offset, length } => (self.discard(offset, length), Vec::new()),
            DiskRequest::WriteZeroes {
                offset,
                length,
                unmap,
            } => (self.write_zeroes(offset, length, unmap), Vec::new()),
        }
    }

    /// The file to use for a transfer, and whether that needs aligned memory. Parts of a block go
    /// through the page cache even when it should be bypassed; the kernel keeps the two coherent.
    pub(super) fn for_transfer(&self, offset: u64, length: usize) -> (&File, Path) {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        match &self.direct {
            Some((file, alignment))
                if offset.is_multiple_of(*alignment) && length.is_multiple_of(*alignment) =>
            {
                (file, Path::Direct)
            }
            _ => (&self.cached, Path::Cached),
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8], pool: &mut BouncePool) -> io::Result<()> {
        let (file, path) = self.for_transfer(offset, buffer.len());
        if path == Path::Direct {
            let mut aligned = pool.take(buffer.len());
            let result = file.read_exact_at(aligned.bytes_mut(), offset);
            if result.is_ok() {
                buffer.copy_from_slice(aligned.bytes());
            }
            pool.put(aligned);
            if !is_misaligned(&result) {
                return result;
            }
        }
        self.cached.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, buffer: &[u8], pool: &mut BouncePool) -> io::Result<()> {
        let (file, path) = self.for_transfer(offset, buffer.len());
        if path == Path::Direct {
            let mut aligned = pool.take(buffer.len());
            aligned.bytes_mut().copy_from_slice(buffer);
            let result = file.write_all_at(aligned.bytes(), offset);
            pool.put(aligned);
            if !is_misaligned(&result) {
                return result;
            }
        }
        self.cached.write_all_at(buffer, offset)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.cached.sync_data()
    }

    /// A discard is a hint: where it cannot be followed, nothing is wrong.
    pub(super) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        if !self.frees_space || length == 0 {
            return Ok(());
        }
        let result = match self.medium {
            Medium::File => self.punch_hole(offset, length),
            Medium::BlockDevice => self.discard_blocks(offset, length),
        };
        match result {
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other,
        }
    }

    /// Discards the whole blocks within a range.
    fn discard_blocks(&self, offset: u64, length: u64) -> io::Result<()> {
        let block = u64::from(self.block_bytes);
        let start = offset.next_multiple_of(block);
        let end = (offset + length) / block * block;
        if start >= end {
            return Ok(());
        }
        ioctl::block_discard(&self.cached, start, end - start)
    }

    pub(super) fn write_zeroes(&self, offset: u64, length: u64, unmap: Unmap) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        if unmap == Unmap::Allowed && self.frees_space {
            let result = self.punch_hole(offset, length);
            if !is_other_way_worth_trying(&result) {
                return result;
            }
        }
        if !self.zeroes_by_writing() {
            let result = self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, length);
            if !is_other_way_worth_trying(&result) {
                return result;
            }
            if result.is_err_and(|error| is_unsupported(&error)) {
                self.zero_by_writing.store(true, Ordering::Relaxed);
            }
        }
        self.write_out_zeroes(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, length)
    }

    fn allocate(&self, what: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let length = i64::try_from(length).map_err(io::Error::other)?;
        let flags = what | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            match fallocate(self.cached.as_fd(), flags, offset, length) {
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn write_out_zeroes(&self, mut offset: u64, length: u64) -> io::Result<()> {
        let end = offset + length;
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let piece = ZEROES.get(..left).unwrap_or(&ZEROES);
            self.cached.write_all_at(piece, offset)?;
            offset += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        Ok(())
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        lock::unlock(&self.cached);
    }
}

/// Which way data goes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// Through the host's page cache, from any memory.
    Cached,
    /// Past it, from aligned memory.
    Direct,
}

/// A direct transfer went on after a part at an offset that is none for direct I/O, or the file's
/// end is no whole block.
fn is_misaligned(result: &io::Result<()>) -> bool {
    match result {
        Err(error) => {
            error.raw_os_error() == Some(libc::EINVAL)
                || error.kind() == io::ErrorKind::UnexpectedEof
        }
        Ok(()) => false,
    }
}

/// The file system or device does not know how.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY)
    )
}

/// It does not know how, or not for this range: a device refuses parts of a block.
fn is_other_way_worth_trying(result: &io::Result<()>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| is_unsupported(error) || error.raw_os_error() == Some(libc::EINVAL))
}
