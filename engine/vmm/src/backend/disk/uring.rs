// SPDX-License-Identifier: Apache-2.0
//! The engine on io_uring: requests are handed to the kernel, which does them side by side and tells
//! by an eventfd what is done.
//!
//! * A request owns its buffer in a *slot* from submission to completion; its index is the request's
//!   name in the ring. There are as many slots as entries in the submission queue; what finds none
//!   free waits in a backlog, whose length is bounded by the device's queue.
//! * The kernel does a request wholly or it goes to the slow lane, from its beginning: after a short
//!   transfer, an interruption, or a call that the file system has no asynchronous way for. To write
//!   twice is to write once.
//! * A flush is ordered after nothing: virtio asks for the writes that *completed* before it, and
//!   those are in the page cache or on the device when their completion is seen, so fdatasync covers
//!   them (VIRTIO 1.x, 5.2.6.2).
//! * No flag ties the ring to one thread, because the owner of a paused machine drains it, too. The
//!   kernel cancels what a thread has in flight when that thread ends; such requests go to the slow
//!   lane.

mod flight;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode};

use self::flight::{InFlight, Outcome, Way};
use super::bounce::BouncePool;
use super::file::RawFile;
use super::open::OpenDiskError;
use super::raw::{Engine, IoEngine};
use super::slow_lane::SlowLane;
use super::{DiskCompletion, DiskRequest};
use crate::backend::doorbell::Doorbell;

/// Requests the kernel has at once.
const DEPTH: u32 = 128;

/// What the ring must be able to do.
const OPERATIONS: [u8; 4] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

pub(super) struct Uring {
    ring: IoUring,
    /// Never grows: what the kernel has pointers into stays where it is.
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    backlog: VecDeque<(u32, DiskRequest)>,
    /// What is over and was not asked for yet. The kernel and the slow lane ring the bell by
    /// themselves; what gets in here otherwise needs ringing for.
    done: Vec<DiskCompletion>,
    pool: BouncePool,
    slow_lane: SlowLane,
    bell: Arc<Doorbell>,
    file: Arc<RawFile>,
    failed_submissions: u64,
}

impl Uring {
    /// The engine if it is wanted and can be had. None: take the plain one.
    pub(super) fn wanted(
        file: &Arc<RawFile>,
        engine: IoEngine,
    ) -> Result<Option<Self>, OpenDiskError> {
        match engine {
            IoEngine::Plain => Ok(None),
            IoEngine::Uring => Self::new(Arc::clone(file))
                .map(Some)
                .map_err(OpenDiskError::NoUring),
            IoEngine::Auto => Ok(Self::new(Arc::clone(file))
                .inspect_err(|error| {
                    tracing::warn!(%error, "No io_uring here; disk requests will block their thread");
                })
                .ok()),
        }
    }

    fn new(file: Arc<RawFile>) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let bell = Arc::new(Doorbell::new()?);
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        let depth = usize::try_from(DEPTH).unwrap_or_default();
        Ok(Self {
            ring,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            backlog: VecDeque::new(),
            done: Vec::new(),
            pool: BouncePool::default(),
            slow_lane: SlowLane::new(Arc::clone(&file), Arc::clone(&bell)),
            bell,
            file,
            failed_submissions: 0,
        })
    }

    /// Hands a request to the kernel, the slow lane, or back if there is nothing to do.
    fn launch(&mut self, slot: usize, tag: u32, request: DiskRequest) {
        let mut flight = InFlight::new(tag, request);
        match flight.way(&self.file, &mut self.pool) {
            Way::Nothing => {
                self.free.push(slot);
                let completion = flight.end(Ok(()), &mut self.pool);
                self.done.push(completion);
            }
            Way::Slowly => {
                self.free.push(slot);
                self.take_slow_lane(flight);
            }
            Way::Ring(entry) => {
                let entry = entry.user_data(u64::try_from(slot).unwrap_or(u64::MAX));
                if let Some(place) = self.slots.get_mut(slot) {
                    *place = Some(flight);
                }
                // SAFETY: the entry points into the heap memory of the request's buffer, or of its
                // aligned buffer, and names `self.file`'s descriptors (see `InFlight::way`). Both stay
                // as they are until the completion is seen: `slots` owns the buffers, gives them up in
                // `land` only, and `drop` waits for the kernel, or leaks them. Moving a Vec leaves its
                // heap memory in place, and no reference to its content exists meanwhile.
                if unsafe { self.ring.submission().push(&entry) }.is_err() {
                    // Cannot be, as there is an entry for each slot. The kernel has not seen it.
                    self.abandon(slot);
                }
            }
        }
    }

    /// Tells the kernel of new entries.
    fn enter(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        if let Err(error) = self.ring.submit() {
            // Out of memory, most likely. The entries stay; they are offered again soon.
            self.failed_submissions += 1;
            if self.failed_submissions.is_power_of_two() {
                tracing::warn!(%error, count = self.failed_submissions, "io_uring took no request");
            }
            self.bell.ring();
        }
    }

    /// Takes what the kernel has done, and launches what waited for it.
    fn reap(&mut self) {
        let landed: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (slot, result) in landed {
            self.land(slot, result);
        }
        self.slow_lane.collect(&mut self.done);
        while !self.backlog.is_empty()
            && let Some(slot) = self.free.pop()
            && let Some((tag, request)) = self.backlog.pop_front()
        {
            self.launch(slot, tag, request);
        }
        self.enter();
    }

    /// The kernel is done with the request in this slot.
    fn land(&mut self, slot: u64, result: i32) {
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        let Some(flight) = self.slots.get_mut(slot).and_then(Option::take) else {
            tracing::error!(slot, "io_uring completed a request that was not made");
            return;
        };
        self.free.push(slot);
        match flight.outcome(result) {
            Outcome::Over(result) => {
                let completion = flight.end(result, &mut self.pool);
                self.done.push(completion);
            }
            Outcome::Again => self.take_slow_lane(flight),
        }
    }

    fn take_slow_lane(&mut self, flight: InFlight) {
        let (tag, request) = flight.abort(&mut self.pool);
        if let Some(completion) = self.slow_lane.push(tag, request) {
            self.done.push(completion);
        }
    }

    fn abandon(&mut self, slot: usize) {
        if let Some(flight) = self.slots.get_mut(slot).and_then(Option::take) {
            self.free.push(slot);
            self.take_slow_lane(flight);
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len() && self.backlog.is_empty()
    }

    /// Waits until the kernel has nothing.
    fn wait_for_kernel(&mut self) -> io::Result<()> {
        loop {
            self.reap();
            if self.is_idle() {
                return Ok(());
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Out of memory, or completions to be taken first.
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Engine for Uring {
    fn start(&mut self, tag: u32, request: DiskRequest) {
        match self.free.pop() {
            Some(slot) => {
                self.launch(slot, tag, request);
                self.enter();
                if !self.done.is_empty() {
                    self.bell.ring();
                }
            }
            None => self.backlog.push_back((tag, request)),
        }
    }

    fn finish(&mut self, completion: DiskCompletion) {
        self.done.push(completion);
        self.bell.ring();
    }

    fn completed(&mut self, into: &mut Vec<DiskCompletion>) {
        self.bell.silence();
        self.reap();
        into.append(&mut self.done);
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn drain(&mut self) -> io::Result<()> {
        self.wait_for_kernel()?;
        self.slow_lane.wait(&mut self.done)?;
        if !self.done.is_empty() {
            self.bell.ring();
        }
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if let Err(error) = self.wait_for_kernel() {
            tracing::error!(%error, "The kernel does not finish disk requests; their memory and the lock stay");
            std::mem::forget(std::mem::take(&mut self.slots));
            // And it stays locked.
            std::mem::forget(Arc::clone(&self.file));
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Uring")
            .field("file", &self.file)
            .field("in_flight", &(self.slots.len() - self.free.len()))
            .finish_non_exhaustive()
    }
}
