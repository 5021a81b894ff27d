// SPDX-License-Identifier: Apache-2.0
//! A request's chain as stretches of guest memory: what the device may read, what it may write, and
//! where the status byte is.
//!
//! The driver is free to cut a request into descriptors as it likes (section 2.7.4.1), so nothing
//! here depends on where one ends. Everything is gathered in one walk and checked to be in guest
//! memory, so that copying later cannot fail half-way; the lists are kept and filled again, so that
//! a request costs no allocation.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::layout::QUEUE_SIZE;
use super::request::HEADER_BYTES;
use crate::ram::Mapping;

/// Most descriptors of a chain: the queue's size, also for an indirect table (section 2.7.5.3.1).
const DESCRIPTORS_MAX: usize = QUEUE_SIZE as usize;

/// Stretches of guest memory, one after the other. All of it is there.
#[derive(Debug, Default)]
pub(super) struct Scatter {
    stretches: Vec<(GuestAddress, usize)>,
    bytes: usize,
}

impl Scatter {
    /// How long it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Fills `into` from what comes after the first `skip` bytes.
    ///
    /// # Errors
    /// There is not as much.
    pub(super) fn read(
        &self,
        memory: &Mapping,
        skip: usize,
        into: &mut [u8],
    ) -> Result<(), GuestMemoryError> {
        let expected = into.len();
        let (mut skip, mut rest) = (skip, into);
        for &(address, length) in &self.stretches {
            let passed = skip.min(length);
            skip -= passed;
            let count = rest.len().min(length - passed);
            if count == 0 {
                continue;
            }
            let (part, others) = rest.split_at_mut(count);
            memory.read_slice(part, GuestAddress(address.0 + passed as u64))?;
            rest = others;
        }
        all_copied(expected, rest.len())
    }

    /// Writes `from` to the beginning.
    ///
    /// # Errors
    /// There is not as much room.
    pub(super) fn write(&self, memory: &Mapping, from: &[u8]) -> Result<(), GuestMemoryError> {
        let mut rest = from;
        for &(address, length) in &self.stretches {
            if rest.is_empty() {
                break;
            }
            let (part, others) = rest.split_at(rest.len().min(length));
            memory.write_slice(part, address)?;
            rest = others;
        }
        all_copied(from.len(), rest.len())
    }

    fn push(&mut self, address: GuestAddress, length: usize) {
        self.stretches.push((address, length));
        self.bytes += length;
    }

    /// Takes the last byte away and says where it is.
    fn pop_byte(&mut self) -> Option<GuestAddress> {
        let (address, length) = self.stretches.last_mut()?;
        *length -= 1;
        self.bytes -= 1;
        let at = GuestAddress(address.0 + *length as u64);
        if *length == 0 {
            self.stretches.pop();
        }
        Some(at)
    }

    fn clear(&mut self) {
        self.stretches.clear();
        self.bytes = 0;
    }
}

fn all_copied(expected: usize, missing: usize) -> Result<(), GuestMemoryError> {
    if missing == 0 {
        return Ok(());
    }
    Err(GuestMemoryError::PartialBuffer {
        expected,
        completed: expected - missing,
    })
}

/// The parts of one chain.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Header and data to be written to the disk.
    pub(super) readable: Scatter,
    /// Where data from the disk goes; the status byte is not in it.
    pub(super) writable: Scatter,
    /// Where the status goes: the last byte that the device may write. Without one there is no way
    /// to answer.
    pub(super) status: Option<GuestAddress>,
    /// Whether the chain is as a driver must build it.
    pub(super) shape: Shape,
}

/// Whether a chain can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Shape {
    /// It can.
    #[default]
    Sound,
    /// Parts of it are in the wrong order or not in guest memory.
    Unsound,
}

impl Parts {
    /// Takes a chain apart. One that breaks off (an impossible link, a loop, more descriptors than
    /// may be) has no end, and so no status.
    pub(super) fn gather(&mut self, chain: impl Iterator<Item = Descriptor>, memory: &Mapping) {
        self.readable.clear();
        self.writable.clear();
        self.status = None;
        self.shape = Shape::Sound;
        let mut ends = false;
        for descriptor in chain.take(DESCRIPTORS_MAX) {
            ends = !descriptor.has_next();
            let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            self.add(
                memory,
                descriptor.addr(),
                length,
                descriptor.is_write_only(),
            );
        }
        if ends && self.last_byte_exists(memory) {
            self.status = self.writable.pop_byte();
        }
    }

    /// Fills `into` with the data behind the header.
    ///
    /// # Errors
    /// There is not as much.
    pub(super) fn read_payload(
        &self,
        memory: &Mapping,
        into: &mut [u8],
    ) -> Result<(), GuestMemoryError> {
        self.readable.read(memory, HEADER_BYTES, into)
    }

    fn add(&mut self, memory: &Mapping, address: GuestAddress, length: usize, writable: bool) {
        let misplaced = !writable && self.writable.bytes > 0;
        if misplaced || !memory.check_range(address, length) {
            self.shape = Shape::Unsound;
        }
        match (length, writable) {
            (0, _) => {}
            (_, true) => self.writable.push(address, length),
            (_, false) => self.readable.push(address, length),
        }
    }

    fn last_byte_exists(&self, memory: &Mapping) -> bool {
        let last = self.writable.stretches.last();
        last.and_then(|(address, length)| memory.checked_offset(*address, *length - 1))
            .is_some()
    }
}
