// SPDX-License-Identifier: Apache-2.0
//! A disk that outlives machines: each machine's device gets a handle to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kemari_vmm::backend::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest};

/// A handle to an open disk. One machine at a time uses it; a device is quiesced before its
/// machine goes, so nothing of an old one completes towards a new one.
#[derive(Clone)]
pub struct SharedDisk {
    inner: Arc<Mutex<Box<dyn DiskBackend>>>,
    readable: Arc<OwnedFd>,
    geometry: DiskGeometry,
}

impl std::fmt::Debug for SharedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedDisk({:?})", self.geometry)
    }
}

impl SharedDisk {
    /// A disk for machines to come.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new(disk: Box<dyn DiskBackend>) -> io::Result<Self> {
        Ok(Self {
            readable: Arc::new(disk.readable().try_clone_to_owned()?),
            geometry: disk.geometry(),
            inner: Arc::new(Mutex::new(disk)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn DiskBackend>> {
        // A back end survives a caller's panic: its requests are its own.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskBackend for SharedDisk {
    fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    fn submit(&mut self, tag: u32, request: DiskRequest) {
        self.lock().submit(tag, request);
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        self.lock().completed(into);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    fn drain(&mut self) -> io::Result<()> {
        self.lock().drain()
    }
}
