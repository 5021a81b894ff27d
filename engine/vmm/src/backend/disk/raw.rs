// SPDX-License-Identifier: Apache-2.0
//! A disk whose content is a file or a block device, byte for byte.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use super::content::DiskContent;
use super::file::RawFile;
use super::open::{self, OpenDiskError};
use super::plain::Plain;
use super::uring::Uring;
use super::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest};

/// How a disk is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskOptions {
    /// The guest cannot change it; then several machines may have it.
    pub read_only: bool,
    /// Go past the host's page cache (O_DIRECT). Data is then copied once more in this process, but
    /// held in memory once less, and a guest cannot fill the host's memory with writes to come.
    pub direct: bool,
    /// What becomes of discards.
    pub discard: DiscardPolicy,
    /// How requests get to the kernel.
    pub engine: IoEngine,
}

/// What becomes of space the guest does not need any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiscardPolicy {
    /// It stays allocated: discards are not offered.
    #[default]
    Keep,
    /// It goes back to the host: holes in a file, discards of a block device. (Discarded blocks of a
    /// device may read as anything, so two hosts' copies may differ there.)
    FreeSpace,
}

/// How requests get to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoEngine {
    /// io_uring where the kernel allows it, or else plain calls.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Blocking calls, each done when it is submitted.
    Plain,
}

/// What does requests whose range was checked. Its methods are [`DiskBackend`]'s.
pub(super) trait Engine: Send + std::fmt::Debug {
    fn start(&mut self, tag: u32, request: DiskRequest);
    /// Takes a completion that needed no work.
    fn finish(&mut self, completion: DiskCompletion);
    fn completed(&mut self, into: &mut Vec<DiskCompletion>);
    fn readable(&self) -> BorrowedFd<'_>;
    fn drain(&mut self) -> io::Result<()>;
}

/// An opened raw disk. The file is locked until this is dropped, which waits for what is in flight.
#[derive(Debug)]
pub struct RawDisk {
    geometry: DiskGeometry,
    engine: Box<dyn Engine>,
    kind: IoEngine,
    file: Arc<RawFile>,
}

impl RawDisk {
    /// Opens a disk and locks it.
    ///
    /// # Errors
    /// See [`OpenDiskError`].
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, OpenDiskError> {
        let (file, capacity_bytes) = open::open(path, &options)?;
        let geometry = DiskGeometry {
            capacity_bytes,
            block_bytes: file.block_bytes,
            read_only: file.read_only,
            discard: file.frees_space,
            // Even where zeroes have to be written, they need not be carried out of the guest.
            write_zeroes: !file.read_only,
        };
        let file = Arc::new(file);
        let content = Arc::clone(&file);
        let (engine, kind): (Box<dyn Engine>, _) = match Uring::wanted(&file, options.engine)? {
            Some(uring) => (Box::new(uring), IoEngine::Uring),
            None => {
                let plain = Plain::new(file).map_err(|source| OpenDiskError::SetUp {
                    path: path.to_owned(),
                    source,
                })?;
                (Box::new(plain), IoEngine::Plain)
            }
        };
        Ok(Self {
            geometry,
            engine,
            kind,
            file: content,
        })
    }

    /// The content, for others than the disk's device.
    #[must_use]
    pub fn content(&self) -> DiskContent {
        DiskContent::new(Arc::clone(&self.file), self.geometry)
    }

    /// The engine in use: [`IoEngine::Uring`] or [`IoEngine::Plain`].
    #[must_use]
    pub fn engine(&self) -> IoEngine {
        self.kind
    }
}

impl DiskBackend for RawDisk {
    fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    fn submit(&mut self, tag: u32, request: DiskRequest) {
        match self.geometry.check(&request) {
            Ok(()) => self.engine.start(tag, request),
            Err(error) => self.engine.finish(DiskCompletion {
                tag,
                result: Err(error),
                buffer: request.into_buffer(),
            }),
        }
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        self.engine.completed(into);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.engine.readable()
    }

    fn drain(&mut self) -> io::Result<()> {
        self.engine.drain()
    }
}
