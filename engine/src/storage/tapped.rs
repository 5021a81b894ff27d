// SPDX-License-Identifier: Apache-2.0
//! A replicated disk's back end: every change goes into the log before it goes to the disk.
//!
//! Changes that overlap and are in flight together may reach the disk in either order, and the
//! other host's disk in the other. So one that overlaps waits for the one before it. So does one whose
//! place is not yet in the record of what may differ.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use kemari_replication::storage::{ChangeEnd, DiskNumber};
use kemari_vmm::backend::{DiskBackend, DiskCompletion, DiskGeometry, DiskRequest};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;

use super::changes::Changes;
use super::log::DiskLog;

/// A change on its way.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    tag: u32,
    offset: u64,
    length: u64,
}

/// The back end.
pub struct TappedDisk {
    number: DiskNumber,
    disk: Box<dyn DiskBackend>,
    log: Arc<DiskLog>,
    changes: Arc<Changes>,
    in_flight: Vec<InFlight>,
    /// Tags of flushes on their way.
    flushes: Vec<u32>,
    /// What waits, in the order it came.
    held: VecDeque<(u32, DiskRequest)>,
    done: Vec<DiskCompletion>,
    room: Arc<EventFd>,
    /// The disk's own descriptor and `room`.
    readable: Epoll,
}

impl std::fmt::Debug for TappedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TappedDisk")
            .field("number", &self.number)
            .field("in_flight", &self.in_flight)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

impl TappedDisk {
    pub(super) fn new(
        number: DiskNumber,
        disk: Box<dyn DiskBackend>,
        log: Arc<DiskLog>,
        changes: Arc<Changes>,
    ) -> io::Result<Self> {
        let room = log
            .room(number)
            .ok_or_else(|| io::Error::other("no such disk"))?;
        let room = Arc::clone(room);
        let readable = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        readable.add(disk.readable(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        readable.add(room.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Self {
            number,
            disk,
            log,
            changes,
            in_flight: Vec::new(),
            flushes: Vec::new(),
            held: VecDeque::new(),
            done: Vec::new(),
            room,
            readable,
        })
    }

    fn overlaps(&self, request: &DiskRequest) -> bool {
        let Some((offset, length)) = request.range() else {
            return false;
        };
        self.in_flight.iter().any(|other| {
            offset < other.offset.saturating_add(other.length)
                && other.offset < offset.saturating_add(length)
        })
    }

    /// Whether its place is recorded; otherwise it soon is.
    fn is_recorded(&self, request: &DiskRequest) -> bool {
        let range = request.range().filter(|_| request.changes());
        range.is_none_or(|(offset, length)| self.changes.may_start(self.number, offset, length))
    }

    fn start(&mut self, tag: u32, request: DiskRequest) {
        // What the disk will refuse changes nothing and has no place in the log.
        if self.disk.geometry().check(&request).is_ok() {
            if let Some((offset, length)) = request.range().filter(|_| request.changes()) {
                self.changes.starts(self.number, offset, length);
            }
            self.log.starts(self.number, &request);
        }
        if request == DiskRequest::Flush {
            self.flushes.push(tag);
        }
        if let Some((offset, length)) = request.range().filter(|_| request.changes()) {
            self.in_flight.push(InFlight {
                tag,
                offset,
                length,
            });
        }
        self.disk.submit(tag, request);
    }

    /// Takes what the disk has done.
    fn reap(&mut self) {
        let before = self.done.len();
        self.disk.completed(&mut self.done);
        for completion in self.done.iter().skip(before) {
            let place = self
                .in_flight
                .iter()
                .position(|change| change.tag == completion.tag);
            if let Some(place) = place {
                let change = self.in_flight.swap_remove(place);
                let (offset, length) = (change.offset, change.length);
                self.log.completed(self.number, offset, length);
                let end = match completion.result {
                    Ok(()) => ChangeEnd::Done,
                    Err(_) => ChangeEnd::Failed,
                };
                self.changes.ended(self.number, offset, length, end);
            }
            let flush = self.flushes.iter().position(|tag| *tag == completion.tag);
            if let Some(flush) = flush {
                self.flushes.swap_remove(flush);
                if completion.result.is_err() {
                    self.changes.sync_failed();
                }
            }
        }
    }

    /// Lets go what waited and may go.
    fn let_go(&mut self) {
        while let Some((tag, request)) = self.held.pop_front() {
            if self.overlaps(&request) || !self.log.has_room() || !self.is_recorded(&request) {
                return self.held.push_front((tag, request));
            }
            self.start(tag, request);
        }
    }

    /// Lets go what waited for room or the record, which it waits for.
    fn let_go_whatever(&mut self) -> io::Result<()> {
        while let Some((tag, request)) = self.held.pop_front() {
            let range = request.range().filter(|_| request.changes());
            let recorded = range.map_or(Ok(()), |(offset, length)| {
                self.changes.wait_to_start(self.number, offset, length)
            });
            if self.overlaps(&request) || recorded.is_err() {
                self.held.push_front((tag, request));
                return recorded;
            }
            self.start(tag, request);
        }
        Ok(())
    }
}

impl DiskBackend for TappedDisk {
    fn geometry(&self) -> DiskGeometry {
        self.disk.geometry()
    }

    fn submit(&mut self, tag: u32, request: DiskRequest) {
        let waits = request.changes()
            && (!self.held.is_empty()
                || self.overlaps(&request)
                || !self.log.has_room()
                || !self.is_recorded(&request));
        if waits {
            self.held.push_back((tag, request));
        } else {
            self.start(tag, request);
        }
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        if !self.held.is_empty() || !self.done.is_empty() {
            // Read to be asked again; nothing there is fine.
            let _ = self.room.read();
        }
        self.reap();
        self.let_go();
        into.append(&mut self.done);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.0.as_fd()
    }

    /// What waited goes now, and ends up in the open epoch.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            self.disk.drain()?;
            self.reap();
            if self.held.is_empty() && self.in_flight.is_empty() {
                break;
            }
            self.let_go_whatever()?;
        }
        if !self.done.is_empty() {
            self.room.write(1)?;
        }
        Ok(())
    }
}
