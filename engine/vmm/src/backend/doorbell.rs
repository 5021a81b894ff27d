// SPDX-License-Identifier: Apache-2.0
//! An eventfd as a flag to wait on: rung or not, never a count.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Readable when rung. Neither ringing nor silencing blocks.
#[derive(Debug)]
pub(crate) struct Doorbell(EventFd);

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?))
    }

    pub(crate) fn ring(&self) {
        // EAGAIN: the count is at its end, so the bell is ringing already.
        let _ = self.0.write(1);
    }

    /// Makes it quiet. What it was rung for must be looked at *after* this, or a ring in between
    /// is lost.
    pub(crate) fn silence(&self) {
        // EAGAIN: it was quiet.
        let _ = self.0.read();
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
