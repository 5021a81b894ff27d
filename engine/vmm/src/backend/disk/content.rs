// SPDX-License-Identifier: Apache-2.0
//! A disk's content for others than its device: to read it for a copy, and to write a copy.

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::SystemTime;

use super::file::{Medium, RawFile};
use super::{DiskGeometry, DiskRequest, Unmap};

/// What a file is known by, as long as it is that file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Its number in its file system.
    pub inode: u64,
    /// When it was made, where its file system tells.
    pub created: Option<SystemTime>,
}

/// The content of an open disk. It goes through the host's page cache, which the kernel keeps
/// coherent with what passes it by. Every call blocks until it is done.
///
/// Nothing is ordered against the requests of a device: what is read while the guest writes may be
/// old, new or a mix, and nobody else should write to a disk that a guest uses.
#[derive(Debug, Clone)]
pub struct DiskContent {
    file: Arc<RawFile>,
    geometry: DiskGeometry,
}

impl DiskContent {
    pub(super) const fn new(file: Arc<RawFile>, geometry: DiskGeometry) -> Self {
        Self { file, geometry }
    }

    /// The disk's size in bytes.
    #[must_use]
    pub const fn capacity_bytes(&self) -> u64 {
        self.geometry.capacity_bytes
    }

    /// What tells the file behind the disk from another one in its place. A block device has nothing
    /// of the kind.
    ///
    /// # Errors
    /// The host's.
    pub fn file_identity(&self) -> io::Result<Option<FileIdentity>> {
        if self.file.medium == Medium::BlockDevice {
            return Ok(None);
        }
        let metadata = self.file.cached.metadata()?;
        Ok(Some(FileIdentity {
            inode: metadata.ino(),
            created: metadata.created().ok(),
        }))
    }

    /// Fills the buffer from this offset on.
    ///
    /// # Errors
    /// The host's, or `UnexpectedEof` beyond the end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.cached.read_exact_at(buffer, offset)
    }

    /// Writes these bytes.
    ///
    /// # Errors
    /// The host's; `InvalidInput` if the range is not whole sectors within the disk.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.check(offset, length)?;
        self.file.cached.write_all_at(bytes, offset)
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: Unmap) -> io::Result<()> {
        self.check(offset, length)?;
        self.file.write_zeroes(offset, length, unmap)
    }

    /// Gives the space of a range back, where that is possible and allowed.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check(offset, length)?;
        self.file.discard(offset, length)
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// The host's: what was written may be lost then.
    pub fn sync(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        self.geometry.check(&DiskRequest::WriteZeroes {
            offset,
            length,
            unmap: Unmap::Forbidden,
        })
    }
}
