// SPDX-License-Identifier: Apache-2.0
//! The way of a request: out of the ring, to the back end, and back to the guest.

use std::io;

use vm_memory::{Bytes, GuestMemoryError};

use super::carried;
use super::flight::{Ending, Reply, Work};
use super::request::{ID_BYTES, Request, Status};
use super::{Block, QUEUE, layout};
use crate::backend::{DiskCompletion, DiskRequest};
use crate::ram::Mapping;
use crate::virtio::DeviceFault;
use crate::virtio::queues::{QueueFault, Queues};

/// Requests taken before others get the lock.
const BATCH: usize = 64;

/// Why taking requests ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// There are no more.
    All,
    /// A batch was taken; there may be more.
    Batch,
    /// There are more, but no room for them until some in flight are done.
    UpToTheBrim,
}

impl Block {
    /// Takes requests out of the ring.
    pub(super) fn take(&mut self, queues: &mut Queues) -> Result<Taken, DeviceFault> {
        let memory = queues.memory();
        for _ in 0..BATCH {
            if !self.flights.has_slot() {
                return Ok(Taken::UpToTheBrim);
            }
            let Some(chain) = queues.pop(QUEUE)? else {
                return Ok(Taken::All);
            };
            let head = chain.head_index();
            self.parts.gather(chain, &memory);
            if !self.take_parts(head, &memory, queues)? {
                queues.put_back(QUEUE);
                return Ok(Taken::UpToTheBrim);
            }
        }
        Ok(Taken::Batch)
    }

    /// Makes the requests again that were in flight at the cut this device goes on from.
    pub(super) fn take_carried(&mut self, queues: &mut Queues) -> Result<Taken, DeviceFault> {
        let memory = queues.memory();
        while let Some(head) = self.carried.next()? {
            let chain = queues
                .popped_before(QUEUE, head)
                .ok_or_else(|| carried::fault("its head is beyond the queue"))?;
            self.parts.gather(chain, &memory);
            if self.parts.status.is_none() {
                return Err(carried::fault("its chain is broken"));
            }
            if !self.flights.has_slot() || !self.take_parts(head, &memory, queues)? {
                return Ok(Taken::UpToTheBrim);
            }
            self.carried.is_made();
        }
        Ok(Taken::All)
    }

    /// Starts or answers the request whose parts were gathered. `false`: there is no room for it now.
    fn take_parts(
        &mut self,
        head: u16,
        memory: &Mapping,
        queues: &mut Queues,
    ) -> Result<bool, DeviceFault> {
        let Some(status) = self.parts.status else {
            return queues.push_used(QUEUE, head, 0).map(|()| true);
        };
        let reply = Reply {
            head,
            status,
            room: self.parts.writable.bytes(),
        };
        match self.rules.judge(&self.parts, memory, &mut self.ranges) {
            Err(refusal) => answer(queues, memory, reply, refusal, 0)?,
            Ok(Request::Identify) => {
                let (status, written) = self.identify(memory);
                answer(queues, memory, reply, status, written)?;
            }
            Ok(Request::Discard | Request::WriteZeroes) if self.ranges.is_empty() => {
                answer(queues, memory, reply, Status::Ok, 0)?;
            }
            Ok(request) if self.flights.has_room(bytes_of(request)) => {
                if self.start(request, reply, memory).is_err() {
                    answer(queues, memory, reply, Status::IoError, 0)?;
                }
            }
            Ok(_) => return Ok(false),
        }
        Ok(true)
    }

    fn identify(&self, memory: &Mapping) -> (Status, usize) {
        let id = self.serial.padded();
        let count = self.parts.writable.bytes().min(ID_BYTES);
        let (id, _) = id.split_at(count);
        match self.parts.writable.write(memory, id) {
            Ok(()) => (Status::Ok, count),
            Err(_) => (Status::IoError, 0),
        }
    }

    /// Hands a request to the back end. There is a slot for it.
    fn start(
        &mut self,
        request: Request,
        reply: Reply,
        memory: &Mapping,
    ) -> Result<(), GuestMemoryError> {
        let (work, ending) = self.plan(request);
        let first = match request {
            Request::Read { offset, bytes } => {
                let buffer = self.pool.take(bytes);
                Some(DiskRequest::Read { offset, buffer })
            }
            Request::Write { offset, bytes } => {
                let mut buffer = self.pool.take(bytes);
                self.parts.read_payload(memory, &mut buffer)?;
                Some(DiskRequest::Write { offset, buffer })
            }
            _ => None,
        };
        let bytes = bytes_of(request);
        let Some((tag, flight)) = self.flights.begin(reply, work, ending, bytes) else {
            return Ok(());
        };
        std::mem::swap(&mut flight.into, &mut self.parts.writable);
        std::mem::swap(&mut flight.ranges, &mut self.ranges);
        let step = first.map(|request| (tag, request));
        if let Some((tag, request)) = step.or_else(|| self.flights.next_step(tag)) {
            self.backend.submit(tag, request);
        }
        Ok(())
    }

    /// What a request is, and whether it ends with a flush: because it is one, or because the
    /// driver knows of no cache.
    fn plan(&self, request: Request) -> (Work, Ending) {
        let changed = if self.rules.features & layout::F_FLUSH == 0 {
            Ending::Flushed
        } else {
            Ending::Plain
        };
        match request {
            Request::Read { .. } | Request::Identify => (Work::Read, Ending::Plain),
            Request::Write { .. } => (Work::Write, changed),
            Request::Flush => (Work::Flush, Ending::Flushed),
            Request::Discard => (Work::Discard, Ending::Plain),
            Request::WriteZeroes => (Work::WriteZeroes, changed),
        }
    }

    /// Completes towards the guest what the host has done; whether there was anything.
    pub(super) fn reap(&mut self, queues: &mut Queues) -> Result<bool, DeviceFault> {
        let mut completions = std::mem::take(&mut self.completions);
        let mut any = false;
        // Ends: each request has a bounded number of steps, and none is added here.
        let reaped = loop {
            self.backend.completed(&mut completions);
            if completions.is_empty() {
                break Ok(any);
            }
            any = true;
            let result = completions
                .drain(..)
                .try_for_each(|completion| self.complete(completion, queues));
            if let Err(fault) = result {
                break Err(fault);
            }
        };
        self.completions = completions;
        reaped
    }

    /// Goes on with a request whose step is over.
    fn complete(
        &mut self,
        completion: DiskCompletion,
        queues: &mut Queues,
    ) -> Result<(), DeviceFault> {
        let DiskCompletion {
            tag,
            result,
            buffer,
        } = completion;
        let memory = queues.memory();
        let (status, written) = match result {
            Ok(()) => {
                let read = self.deliver(tag, &buffer, &memory);
                self.pool.put(buffer);
                if let Some((tag, request)) = self.flights.next_step(tag) {
                    self.backend.submit(tag, request);
                    return Ok(());
                }
                read
            }
            Err(error) => {
                self.pool.put(buffer);
                if let Some(flight) = self.flights.find(tag) {
                    self.complaints.tell(&self.serial, flight.work, &error);
                }
                (Status::IoError, 0)
            }
        };
        // One that was given up is nobody's any more.
        let Some(reply) = self.flights.find(tag).map(|flight| flight.reply) else {
            return Ok(());
        };
        self.flights.end(tag);
        answer(queues, &memory, reply, status, written)
    }

    /// Copies what was read into guest memory.
    fn deliver(&mut self, tag: u32, data: &[u8], memory: &Mapping) -> (Status, usize) {
        match self.flights.find(tag) {
            Some(flight) if flight.work == Work::Read => {
                let whole = data.len() == flight.bytes;
                if whole && flight.into.write(memory, data).is_ok() {
                    (Status::Ok, data.len())
                } else {
                    (Status::IoError, 0)
                }
            }
            _ => (Status::Ok, 0),
        }
    }

    /// Forgets what is in flight and what was carried here, once the host has nothing of it any more.
    pub(super) fn forget_all(&mut self) {
        self.carried.clear();
        if self.flights.is_empty() {
            return;
        }
        if let Err(error) = self.backend.drain() {
            tracing::warn!(disk = %self.serial, %error, "Requests given up may still change the disk");
        }
        self.flights.clear();
        self.backend.completed(&mut self.completions);
        for completion in self.completions.drain(..) {
            self.pool.put(completion.buffer);
        }
    }
}

/// Bytes of the buffer that a request needs.
fn bytes_of(request: Request) -> usize {
    match request {
        Request::Read { bytes, .. } | Request::Write { bytes, .. } => bytes,
        _ => 0,
    }
}

/// Writes the status and gives the chain back. What is counted as written is what lies before the
/// first byte that was not (section 2.7.8.2), so the status counts only behind all of the data.
fn answer(
    queues: &mut Queues,
    memory: &Mapping,
    reply: Reply,
    status: Status,
    written: usize,
) -> Result<(), DeviceFault> {
    memory
        .write_obj(status.code(), reply.status)
        .map_err(|error| DeviceFault::Queue {
            queue: QUEUE,
            fault: QueueFault::Memory(io::Error::other(error)),
        })?;
    let counted = written + usize::from(written == reply.room);
    let counted = u32::try_from(counted).unwrap_or(u32::MAX);
    queues.push_used(QUEUE, reply.head, counted)
}
