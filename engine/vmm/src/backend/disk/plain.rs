// SPDX-License-Identifier: Apache-2.0
//! The engine without io_uring: each request is done when it is submitted, by a blocking call.
//! Simple and slow: the worker thread waits for the disk. For hosts that forbid io_uring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::bounce::BouncePool;
use super::file::RawFile;
use super::raw::Engine;
use super::{DiskCompletion, DiskRequest};
use crate::backend::doorbell::Doorbell;

#[derive(Debug)]
pub(super) struct Plain {
    file: Arc<RawFile>,
    pool: BouncePool,
    done: Vec<DiskCompletion>,
    bell: Doorbell,
}

impl Plain {
    pub(super) fn new(file: Arc<RawFile>) -> io::Result<Self> {
        Ok(Self {
            file,
            pool: BouncePool::default(),
            done: Vec::new(),
            bell: Doorbell::new()?,
        })
    }
}

impl Engine for Plain {
    fn start(&mut self, tag: u32, request: DiskRequest) {
        let (result, buffer) = self.file.run(request, &mut self.pool);
        self.finish(DiskCompletion {
            tag,
            result,
            buffer,
        });
    }

    fn finish(&mut self, completion: DiskCompletion) {
        self.done.push(completion);
        self.bell.ring();
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        self.bell.silence();
        into.append(&mut self.done);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn drain(&mut self) -> io::Result<()> {
        Ok(())
    }
}
