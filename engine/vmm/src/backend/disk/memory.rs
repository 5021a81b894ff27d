// SPDX-License-Identifier: Apache-2.0
//! A disk in memory, for tests and fuzzing: its content can be looked at, its requests can be held
//! back, and its next requests can be made to fail.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest};
use crate::backend::doorbell::Doorbell;

/// The disk. Made together with its [`MemoryDiskControl`].
#[derive(Debug)]
pub struct MemoryDisk {
    geometry: DiskGeometry,
    shared: Arc<Shared>,
}

/// A test's hand on a [`MemoryDisk`]. Usable from any thread.
#[derive(Debug, Clone)]
pub struct MemoryDiskControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    bell: Doorbell,
}

#[derive(Debug, Default)]
struct State {
    content: Vec<u8>,
    held: bool,
    waiting: VecDeque<(u32, DiskRequest)>,
    done: Vec<DiskCompletion>,
    failures: VecDeque<io::ErrorKind>,
    flushes: u64,
}

impl MemoryDisk {
    /// A disk with this content.
    ///
    /// # Errors
    /// No eventfd can be made.
    ///
    /// # Panics
    /// The content is empty or not whole sectors.
    pub fn new(content: Vec<u8>) -> io::Result<(Self, MemoryDiskControl)> {
        let capacity_bytes = u64::try_from(content.len()).expect("64-bit only");
        assert!(
            capacity_bytes > 0 && capacity_bytes.is_multiple_of(super::SECTOR_BYTES),
            "a disk is whole sectors and not empty"
        );
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                content,
                ..State::default()
            }),
            bell: Doorbell::new()?,
        });
        let geometry = DiskGeometry {
            capacity_bytes,
            block_bytes: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
        };
        let control = MemoryDiskControl(Arc::clone(&shared));
        Ok((Self { geometry, shared }, control))
    }

    /// The same disk, but read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.geometry.read_only = true;
        self
    }
}

impl MemoryDiskControl {
    /// A copy of the content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.0.lock().content.clone()
    }

    /// Requests from now on stay in flight, until [`release`](Self::release) or a drain.
    pub fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Does what was held back, in order, and holds nothing any more.
    pub fn release(&self) {
        let mut state = self.0.lock();
        state.held = false;
        self.0.run_waiting(&mut state);
    }

    /// Requests that are held back now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// One more of the next requests fails with this error and changes nothing.
    pub fn fail_next(&self, kind: io::ErrorKind) {
        self.0.lock().failures.push_back(kind);
    }

    /// No request fails any more.
    pub fn heal(&self) {
        self.0.lock().failures.clear();
    }

    /// Flushes done so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.0.lock().flushes
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_waiting(&self, state: &mut State) {
        while let Some((tag, request)) = state.waiting.pop_front() {
            let completion = state.run(tag, request);
            self.finish(state, completion);
        }
    }

    fn finish(&self, state: &mut State, completion: DiskCompletion) {
        state.done.push(completion);
        self.bell.ring();
    }
}

impl State {
    /// Does a request, whose range was checked when it came in.
    fn run(&mut self, tag: u32, request: DiskRequest) -> DiskCompletion {
        let failure = self.failures.pop_front();
        let mut buffer = Vec::new();
        let result = match (failure, request) {
            (Some(kind), request) => {
                buffer = request.into_buffer();
                Err(kind.into())
            }
            (None, DiskRequest::Read { offset, buffer: b }) => {
                buffer = b;
                self.range(offset, buffer.len())
                    .map(|found| buffer.copy_from_slice(found))
            }
            (None, DiskRequest::Write { offset, buffer: b }) => {
                buffer = b;
                self.range(offset, buffer.len())
                    .map(|found| found.copy_from_slice(&buffer))
            }
            (None, DiskRequest::Flush) => {
                self.flushes += 1;
                Ok(())
            }
            (
                None,
                DiskRequest::Discard { offset, length }
                | DiskRequest::WriteZeroes { offset, length, .. },
            ) => usize::try_from(length)
                .map_err(|_| io::ErrorKind::InvalidInput.into())
                .and_then(|length| self.range(offset, length))
                .map(|found| found.fill(0)),
        };
        DiskCompletion {
            tag,
            result,
            buffer,
        }
    }

    fn range(&mut self, offset: u64, length: usize) -> io::Result<&mut [u8]> {
        usize::try_from(offset)
            .ok()
            .and_then(|start| Some((start, start.checked_add(length)?)))
            .and_then(|(start, end)| self.content.get_mut(start..end))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl DiskBackend for MemoryDisk {
    fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    fn submit(&mut self, tag: u32, request: DiskRequest) {
        let mut state = self.shared.lock();
        if let Err(error) = self.geometry.check(&request) {
            let completion = DiskCompletion {
                tag,
                result: Err(error),
                buffer: request.into_buffer(),
            };
            return self.shared.finish(&mut state, completion);
        }
        state.waiting.push_back((tag, request));
        if !state.held {
            self.shared.run_waiting(&mut state);
        }
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        let mut state = self.shared.lock();
        self.shared.bell.silence();
        into.append(&mut state.done);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut state = self.shared.lock();
        self.shared.run_waiting(&mut state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(disk: &mut MemoryDisk) -> Vec<(u32, Option<io::ErrorKind>)> {
        let mut done = Vec::new();
        disk.completed(&mut done);
        done.iter()
            .map(|c| (c.tag, c.result.as_ref().err().map(io::Error::kind)))
            .collect()
    }

    #[test]
    fn requests_can_be_held_failed_and_drained() {
        let (mut disk, control) = MemoryDisk::new(vec![1; 4096]).unwrap();
        control.hold();
        disk.submit(
            7,
            DiskRequest::Write {
                offset: 512,
                buffer: vec![9; 512],
            },
        );
        assert_eq!(control.in_flight(), 1);
        assert!(all(&mut disk).is_empty());
        assert_eq!(control.content(), vec![1; 4096]);
        disk.drain().unwrap();
        assert_eq!(all(&mut disk), [(7, None)]);
        assert_eq!(control.content()[512..1024], [9; 512]);
        control.release();
        control.fail_next(io::ErrorKind::StorageFull);
        disk.submit(8, DiskRequest::Flush);
        disk.submit(9, DiskRequest::Flush);
        assert_eq!(
            all(&mut disk),
            [(8, Some(io::ErrorKind::StorageFull)), (9, None)]
        );
        assert_eq!(control.flushes(), 1);
    }
}
