// SPDX-License-Identifier: Apache-2.0
//! The requests that the host works on, and how each goes on when a part of it is done.
//!
//! A request may take several steps at the back end, one after the other: its ranges, then a flush
//! for a driver that does not flush itself. Each step has a tag of its own that no other step has
//! (but for 2^24 later ones), so a completion that comes too late, for a request given up, is known
//! as such.
//!
//! Bounds: a slot for each entry of the queue, and so many bytes of buffers, because what the guest
//! can ask for at once is more than a disk is worth.

use std::fmt;

use vm_memory::GuestAddress;

use super::chain::Scatter;
use super::layout::QUEUE_SIZE;
use super::request::Range;
use crate::backend::DiskRequest;

/// Most bytes of buffers in flight. A single request always finds room when nothing else is there.
pub(super) const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;

/// Bits of a tag that are the slot; the others count.
const SLOT_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const _: () = assert!(SLOTS == QUEUE_SIZE as usize);

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// The chain.
    pub(super) head: u16,
    /// Where the status byte goes.
    pub(super) status: GuestAddress,
    /// Bytes that the device may write before the status.
    pub(super) room: usize,
}

/// What a request does, for whoever reads about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes",
        })
    }
}

/// Whether a request ends with a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Flushed,
    Plain,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Flight {
    /// The step at the back end; none while the slot is free.
    tag: Option<u32>,
    /// Its place in the order in which requests were taken.
    number: u64,
    pub(super) reply: Reply,
    pub(super) work: Work,
    /// Where the data read goes.
    pub(super) into: Scatter,
    /// What is left to be zeroed or discarded, the next one last.
    pub(super) ranges: Vec<Range>,
    ending: Ending,
    /// Bytes of its buffer.
    pub(super) bytes: usize,
}

impl Flight {
    fn idle() -> Self {
        Self {
            tag: None,
            number: 0,
            reply: Reply {
                head: 0,
                status: GuestAddress(0),
                room: 0,
            },
            work: Work::Flush,
            into: Scatter::default(),
            ranges: Vec::new(),
            ending: Ending::Plain,
            bytes: 0,
        }
    }

    /// What the back end does next for this request; none when it is complete.
    fn next_step(&mut self) -> Option<DiskRequest> {
        if let Some(Range { extent, unmap }) = self.ranges.pop() {
            let (offset, length) = (extent.offset, extent.length);
            return Some(match self.work {
                Work::Discard => DiskRequest::Discard { offset, length },
                _ => DiskRequest::WriteZeroes {
                    offset,
                    length,
                    unmap,
                },
            });
        }
        let ending = std::mem::replace(&mut self.ending, Ending::Plain);
        (ending == Ending::Flushed).then_some(DiskRequest::Flush)
    }
}

/// All requests in flight.
#[derive(Debug)]
pub(super) struct Flights {
    slots: Vec<Flight>,
    free: Vec<usize>,
    steps: u32,
    /// Requests taken so far.
    taken: u64,
    bytes: usize,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Flight::idle()).collect(),
            free: (0..SLOTS).rev().collect(),
            steps: 0,
            taken: 0,
            bytes: 0,
        }
    }

    /// The chains of all requests in flight, in the order they were taken.
    pub(super) fn heads(&self) -> Vec<u16> {
        let in_flight = self.slots.iter().filter(|flight| flight.tag.is_some());
        let mut numbered: Vec<_> = in_flight
            .map(|flight| (flight.number, flight.reply.head))
            .collect();
        numbered.sort_unstable();
        numbered.into_iter().map(|(_, head)| head).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == SLOTS
    }

    /// Whether there is a slot.
    pub(super) fn has_slot(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether a request with a buffer of so many bytes may go off.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.is_empty() || self.has_slot() && self.bytes + bytes <= IN_FLIGHT_BYTES_MAX
    }

    /// Takes a slot for a request; its tag, and the flight for the caller to fill. None when there
    /// is no slot.
    pub(super) fn begin(
        &mut self,
        reply: Reply,
        work: Work,
        ending: Ending,
        bytes: usize,
    ) -> Option<(u32, &mut Flight)> {
        let slot = self.free.pop()?;
        self.steps = self.steps.wrapping_add(1);
        let tag = tag(self.steps, slot);
        let flight = self.slots.get_mut(slot)?;
        self.taken += 1;
        self.bytes += bytes;
        flight.tag = Some(tag);
        flight.number = self.taken;
        flight.reply = reply;
        flight.work = work;
        flight.ending = ending;
        flight.bytes = bytes;
        flight.ranges.clear();
        Some((tag, flight))
    }

    /// The flight whose step this is.
    pub(super) fn find(&mut self, tag: u32) -> Option<&mut Flight> {
        let flight = self.slots.get_mut(slot_of(tag))?;
        (flight.tag == Some(tag)).then_some(flight)
    }

    /// The step after this one and its tag; none when the request is complete.
    pub(super) fn next_step(&mut self, done: u32) -> Option<(u32, DiskRequest)> {
        let steps = self.steps.wrapping_add(1);
        let flight = self.find(done)?;
        let request = flight.next_step()?;
        let tag = tag(steps, slot_of(done));
        flight.tag = Some(tag);
        self.steps = steps;
        Some((tag, request))
    }

    /// The request is over: frees its slot.
    pub(super) fn end(&mut self, tag: u32) {
        let Some(flight) = self.find(tag) else {
            return;
        };
        flight.tag = None;
        let bytes = flight.bytes;
        self.bytes -= bytes;
        self.free.push(slot_of(tag));
    }

    /// Gives all of them up.
    pub(super) fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.tag = None;
        }
        self.free.clear();
        self.free.extend((0..SLOTS).rev());
        self.bytes = 0;
    }
}

fn tag(steps: u32, slot: usize) -> u32 {
    // The slot is below 256; the count loses its upper bits.
    steps << SLOT_BITS | u32::try_from(slot).unwrap_or(0)
}

fn slot_of(tag: u32) -> usize {
    usize::try_from(tag).unwrap_or(0) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Unmap;
    use crate::virtio::block::request::Extent;

    const REPLY: Reply = Reply {
        head: 3,
        status: GuestAddress(0x1000),
        room: 0,
    };

    fn range(offset: u64) -> Range {
        Range {
            extent: Extent {
                offset,
                length: 512,
            },
            unmap: Unmap::Allowed,
        }
    }

    #[test]
    fn steps_follow_each_other_under_tags_of_their_own() {
        let mut flights = Flights::new();
        let begun = flights.begin(REPLY, Work::WriteZeroes, Ending::Flushed, 0);
        let (first, flight) = begun.unwrap();
        flight.ranges.push(range(1024));
        let (second, request) = flights.next_step(first).unwrap();
        assert!(matches!(
            request,
            DiskRequest::WriteZeroes { offset: 1024, .. }
        ));
        assert!(flights.find(first).is_none());
        let (third, request) = flights.next_step(second).unwrap();
        assert_eq!(request, DiskRequest::Flush);
        assert!(flights.next_step(third).is_none());
        assert_eq!(flights.heads(), [REPLY.head]);
        flights.end(third);
        assert!(flights.is_empty());
        // Told twice, or too late: nothing is freed twice.
        flights.end(third);
        assert_eq!(flights.free.len(), SLOTS);
    }

    #[test]
    fn slots_and_bytes_are_bounded() {
        let mut flights = Flights::new();
        assert!(flights.has_room(usize::MAX), "one request always goes");
        flights.begin(REPLY, Work::Read, Ending::Plain, IN_FLIGHT_BYTES_MAX - 512);
        assert!(flights.has_room(512));
        assert!(!flights.has_room(513));
        for _ in 1..SLOTS {
            let begun = flights.begin(REPLY, Work::Flush, Ending::Plain, 0);
            assert!(begun.is_some());
        }
        assert!(!flights.has_room(0));
        let more = flights.begin(REPLY, Work::Flush, Ending::Plain, 0);
        assert!(more.is_none());
        flights.clear();
        assert!(flights.is_empty() && flights.has_room(IN_FLIGHT_BYTES_MAX));
    }
}
