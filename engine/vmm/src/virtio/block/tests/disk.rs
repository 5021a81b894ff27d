// SPDX-License-Identifier: Apache-2.0
//! A disk in memory that completes when the test says so, in the order the test says.

use std::io;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::backend::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest, SECTOR_BYTES, Unmap};

/// Size of a disk where the test does not say.
pub(super) const SECTORS: u64 = 256;
/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked of the back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read {
        offset: u64,
        length: usize,
    },
    Write {
        offset: u64,
        length: usize,
    },
    Flush,
    Discard {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        unmap: Unmap,
    },
}

/// When requests complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    AtOnce,
    /// When the test completes them, or at a drain, the last one first.
    Held,
}

#[derive(Debug)]
struct Inner {
    content: Vec<u8>,
    durable: Vec<u8>,
    read_only: bool,
    pace: Pace,
    waiting: Vec<(u32, DiskRequest)>,
    most_waiting: usize,
    done: Vec<DiskCompletion>,
    operations: Vec<Operation>,
    fail_next: Option<io::ErrorKind>,
    fail_flushes: bool,
    drain_fails: bool,
}

/// The disk as the test sees it; the back end is [`open`](Self::open)ed.
#[derive(Debug, Clone)]
pub(super) struct TestDisk {
    inner: Arc<Mutex<Inner>>,
    /// Something is done: a byte is sent at one end and waits at the other.
    event: Arc<(UnixStream, UnixStream)>,
}

impl TestDisk {
    pub(super) fn new() -> Self {
        Self::sized(SECTORS * SECTOR_BYTES)
    }

    pub(super) fn sized(bytes: u64) -> Self {
        Self::with_content(vec![0; usize::try_from(bytes).unwrap()])
    }

    pub(super) fn read_only() -> Self {
        let disk = Self::new();
        disk.lock().read_only = true;
        disk
    }

    pub(super) fn with_content(content: Vec<u8>) -> Self {
        let inner = Inner {
            durable: content.clone(),
            content,
            read_only: false,
            pace: Pace::AtOnce,
            waiting: Vec::new(),
            most_waiting: 0,
            done: Vec::new(),
            operations: Vec::new(),
            fail_next: None,
            fail_flushes: false,
            drain_fails: false,
        };
        let event = UnixStream::pair().unwrap();
        event.0.set_nonblocking(true).unwrap();
        event.1.set_nonblocking(true).unwrap();
        Self {
            inner: Arc::new(Mutex::new(inner)),
            event: Arc::new(event),
        }
    }

    /// The back end.
    pub(super) fn open(&self) -> Self {
        self.clone()
    }

    pub(super) fn content(&self) -> Vec<u8> {
        self.lock().content.clone()
    }

    /// A disk with the same content at which the same requests wait.
    pub(super) fn snapshot(&self) -> Self {
        let (content, waiting) = {
            let inner = self.lock();
            (
                inner.content.clone(),
                inner.waiting.iter().map(copy).collect(),
            )
        };
        let copy = Self::with_content(content);
        let mut inner = copy.lock();
        inner.pace = Pace::Held;
        inner.waiting = waiting;
        drop(inner);
        copy
    }

    /// What a power failure leaves.
    pub(super) fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    pub(super) fn operations(&self) -> Vec<Operation> {
        self.lock().operations.clone()
    }

    pub(super) fn set_pace(&self, pace: Pace) {
        self.lock().pace = pace;
    }

    pub(super) fn fail_next(&self, error: io::ErrorKind) {
        self.lock().fail_next = Some(error);
    }

    pub(super) fn fail_flushes(&self) {
        self.lock().fail_flushes = true;
    }

    pub(super) fn break_drain(&self, broken: bool) {
        self.lock().drain_fails = broken;
    }

    /// How many requests wait for the test.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The most that ever waited.
    pub(super) fn most_waiting(&self) -> usize {
        self.lock().most_waiting
    }

    pub(super) fn wait_for_waiting(&self, count: usize) {
        let begin = Instant::now();
        while self.waiting() < count {
            assert!(begin.elapsed() < PATIENCE, "the back end is not asked");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Completes one of the requests that wait, if there are any.
    pub(super) fn complete(&self, index: usize) {
        let mut inner = self.lock();
        if !inner.waiting.is_empty() {
            let index = index % inner.waiting.len();
            inner.complete(index);
            self.tell();
        }
    }

    /// A full socket is as readable as can be.
    fn tell(&self) {
        let _ = (&self.event.0).write(&[1]);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

impl Inner {
    fn complete(&mut self, index: usize) {
        let (tag, mut request) = self.waiting.remove(index);
        let error = self.fail_next.take();
        let flush_fails = self.fail_flushes && request == DiskRequest::Flush;
        let result = match error {
            Some(kind) => Err(kind.into()),
            None if flush_fails => Err(io::Error::other("no flush")),
            None => {
                self.apply(&mut request);
                Ok(())
            }
        };
        let buffer = match request {
            DiskRequest::Read { buffer, .. } | DiskRequest::Write { buffer, .. } => buffer,
            _ => Vec::new(),
        };
        self.done.push(DiskCompletion {
            tag,
            result,
            buffer,
        });
    }

    fn apply(&mut self, request: &mut DiskRequest) {
        let part = |offset: u64, length: usize| {
            let start = usize::try_from(offset).unwrap();
            start..start + length
        };
        match request {
            DiskRequest::Read { offset, buffer } => {
                let range = part(*offset, buffer.len());
                buffer.copy_from_slice(&self.content[range]);
            }
            DiskRequest::Write { offset, buffer } => {
                self.content[part(*offset, buffer.len())].copy_from_slice(buffer);
            }
            DiskRequest::Flush => self.durable.clone_from(&self.content),
            DiskRequest::Discard { offset, length }
            | DiskRequest::WriteZeroes { offset, length, .. } => {
                self.content[part(*offset, usize::try_from(*length).unwrap())].fill(0);
            }
        }
    }
}

fn copy((tag, request): &(u32, DiskRequest)) -> (u32, DiskRequest) {
    let request = match request {
        DiskRequest::Read { offset, buffer } => DiskRequest::Read {
            offset: *offset,
            buffer: buffer.clone(),
        },
        DiskRequest::Write { offset, buffer } => DiskRequest::Write {
            offset: *offset,
            buffer: buffer.clone(),
        },
        DiskRequest::Flush => DiskRequest::Flush,
        DiskRequest::Discard { offset, length } => DiskRequest::Discard {
            offset: *offset,
            length: *length,
        },
        DiskRequest::WriteZeroes {
            offset,
            length,
            unmap,
        } => DiskRequest::WriteZeroes {
            offset: *offset,
            length: *length,
            unmap: *unmap,
        },
    };
    (*tag, request)
}

impl DiskBackend for TestDisk {
    fn geometry(&self) -> DiskGeometry {
        let inner = self.lock();
        DiskGeometry {
            capacity_bytes: inner.content.len() as u64,
            block_bytes: 512,
            read_only: inner.read_only,
            discard: true,
            write_zeroes: true,
        }
    }

    fn submit(&mut self, tag: u32, request: DiskRequest) {
        let mut inner = self.lock();
        inner.operations.push(match &request {
            DiskRequest::Read { offset, buffer } => Operation::Read {
                offset: *offset,
                length: buffer.len(),
            },
            DiskRequest::Write { offset, buffer } => Operation::Write {
                offset: *offset,
                length: buffer.len(),
            },
            DiskRequest::Flush => Operation::Flush,
            DiskRequest::Discard { offset, length } => Operation::Discard {
                offset: *offset,
                length: *length,
            },
            DiskRequest::WriteZeroes {
                offset,
                length,
                unmap,
            } => Operation::WriteZeroes {
                offset: *offset,
                length: *length,
                unmap: *unmap,
            },
        });
        inner.waiting.push((tag, request));
        inner.most_waiting = inner.most_waiting.max(inner.waiting.len());
        if inner.pace == Pace::AtOnce {
            let last = inner.waiting.len() - 1;
            inner.complete(last);
            self.tell();
        }
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        while (&self.event.1)
            .read(&mut [0; 64])
            .is_ok_and(|count| count > 0)
        {}
        into.append(&mut self.lock().done);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.event.1.as_fd()
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.drain_fails {
            return Err(io::Error::other("the ring is gone"));
        }
        while let Some(last) = inner.waiting.len().checked_sub(1) {
            inner.complete(last);
        }
        self.tell();
        Ok(())
    }
}
