// SPDX-License-Identifier: Apache-2.0
//! Packets from outside to the guest.
//!
//! A packet is taken from the back end only when the guest has at least one buffer. With mergeable
//! buffers it may turn out to need more than there are; then it waits here, as part of the device's
//! state, and goes first when the guest has added buffers.
//!
//! A packet is copied once, from this buffer to the guest's. All its chains become visible to the
//! guest at the same moment.

use super::lost::Lost;
use super::parts::Places;
use super::session::Session;
use super::turns::{Budget, Turn};
use super::{fault_in, features};
use crate::backend::{NetworkBackend, Offloads, PACKET_BYTES_MAX, PACKET_HEADER_BYTES};
use crate::virtio::DeviceFault;
use crate::virtio::queues::{Chain, QueueFault, Queues};

/// Where the header says how many chains a packet is in (section 5.1.6).
const CHAINS_AT: usize = 10;

/// One queue pair of the back end: the packet that was taken from it last.
#[derive(Debug)]
pub(super) struct Inbound {
    packet: Box<[u8]>,
    /// Its length, where it could not be delivered yet.
    pending: Option<usize>,
    /// The guest had no room; there may be more outside.
    stalled: bool,
}

/// Whether a packet can be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// There is a place for all of it.
    Whole,
    /// Not until the guest adds buffers.
    Later,
    /// Not with the buffers that this driver has.
    Never,
}

impl Inbound {
    pub(super) fn new() -> Self {
        Self {
            packet: vec![0; PACKET_BYTES_MAX].into_boxed_slice(),
            pending: None,
            stalled: false,
        }
    }

    /// A packet that waits is forgotten: the driver it was for is gone.
    pub(super) fn clear(&mut self) {
        self.pending = None;
        self.stalled = false;
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// The packet that waits.
    pub(super) fn pending(&self) -> Option<&[u8]> {
        self.packet.get(..self.pending?)
    }

    /// Loads a packet that waits.
    pub(super) fn set_pending(&mut self, packet: &[u8]) {
        if let Some(place) = self.packet.get_mut(..packet.len()) {
            place.copy_from_slice(packet);
            self.pending = Some(packet.len());
        }
    }

    /// The packet that waits, or the next one from outside: its length.
    fn next(
        &mut self,
        pair: usize,
        backend: &mut dyn NetworkBackend,
    ) -> std::io::Result<Option<usize>> {
        if let Some(length) = self.pending.take() {
            return Ok(Some(length));
        }
        let length = backend.receive(pair, &mut self.packet)?;
        Ok(length.map(|length| length.min(self.packet.len())))
    }
}

/// One lane at work.
pub(super) struct Receiver<'a> {
    pub(super) pair: usize,
    pub(super) queue: usize,
    pub(super) inbound: &'a mut Inbound,
    pub(super) places: &'a mut Places,
    pub(super) session: &'a Session,
    pub(super) backend: &'a mut dyn NetworkBackend,
    pub(super) lost: &'a mut Lost,
}

impl Receiver<'_> {
    /// Delivers packets until there are none, or no buffers, or the budget is spent.
    pub(super) fn run(
        &mut self,
        queues: &mut Queues,
        budget: &mut Budget,
    ) -> Result<Turn, DeviceFault> {
        self.inbound.stalled = false;
        while budget.is_left() {
            let Some(first) = queues.pop(self.queue)? else {
                self.inbound.stalled = true;
                return Ok(Turn::Settled);
            };
            let next = self.inbound.next(self.pair, self.backend);
            let Some(length) = next.inspect_err(|_| queues.put_back(self.queue))? else {
                queues.put_back(self.queue);
                return Ok(Turn::Settled);
            };
            budget.spend(length);
            if length <= PACKET_HEADER_BYTES {
                queues.put_back(self.queue);
                self.lost.received("it has no frame");
                continue;
            }
            match self.find_places(first, length, queues)? {
                Fit::Whole => self.deliver(length, queues)?,
                Fit::Never => self.lost.received("the guest's buffers are too small"),
                Fit::Later => {
                    self.inbound.pending = Some(length);
                    self.inbound.stalled = true;
                    return Ok(Turn::Settled);
                }
            }
        }
        Ok(Turn::Interrupted)
    }

    /// Takes chains until the packet fits; puts all of them back where it does not.
    fn find_places(
        &mut self,
        first: Chain,
        length: usize,
        queues: &mut Queues,
    ) -> Result<Fit, DeviceFault> {
        self.places.clear();
        self.add(first, length)?;
        while self.places.bytes() < length {
            let taken = self.places.chains().len();
            // A driver whose whole ring is too small will never have room.
            let hopeless = !self.session.has(features::MERGEABLE_BUFFERS)
                || taken >= usize::from(queues.size(self.queue));
            let next = if hopeless {
                None
            } else {
                queues.pop(self.queue)?
            };
            let Some(chain) = next else {
                (0..taken).for_each(|_| queues.put_back(self.queue));
                return Ok(if hopeless { Fit::Never } else { Fit::Later });
            };
            self.add(chain, length)?;
        }
        Ok(Fit::Whole)
    }

    fn add(&mut self, chain: Chain, length: usize) -> Result<(), DeviceFault> {
        let added = self
            .places
            .add(chain, length)
            .map_err(fault_in(self.queue))?;
        let mergeable = self.session.has(features::MERGEABLE_BUFFERS);
        // Section 5.1.6.3.1: each is at least as large as the header.
        if mergeable && added < PACKET_HEADER_BYTES && self.places.bytes() < length {
            let fault = QueueFault::Shape("a receive buffer is smaller than a header");
            return Err(fault_in(self.queue)(fault));
        }
        Ok(())
    }

    fn deliver(&mut self, length: usize, queues: &mut Queues) -> Result<(), DeviceFault> {
        let chains = u16::try_from(self.places.chains().len()).unwrap_or(u16::MAX);
        if let Some(count) = self.inbound.packet.get_mut(CHAINS_AT..CHAINS_AT + 2) {
            count.copy_from_slice(&chains.to_le_bytes());
        }
        // Section 5.1.6.4.1: no flags for a driver that wants whole checksums. (A TAP says
        // "checked already" to everybody.)
        if !self.session.offloads.contains(Offloads::CHECKSUM)
            && let Some(flags) = self.inbound.packet.first_mut()
        {
            *flags = 0;
        }
        let packet = self.inbound.packet.get(..length).unwrap_or_default();
        self.places
            .write(&queues.memory(), packet)
            .map_err(fault_in(self.queue))?;
        queues.push_used_together(self.queue, self.places.chains())
    }
}
