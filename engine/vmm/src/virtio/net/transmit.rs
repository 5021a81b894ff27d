// SPDX-License-Identifier: Apache-2.0
//! Packets from the guest to the outside, and the driver's commands.
//!
//! A packet is copied once, from the guest's buffers into one buffer that is used again and again;
//! after that nothing the guest does matters to it. While the back end has no room, packets stay in
//! the guest's ring: none is lost, and the guest feels the pressure.

use super::fault_in;
use super::lost::Lost;
use super::parts::gather;
use super::turns::{Budget, Turn};
use crate::backend::{NetworkBackend, PACKET_HEADER_BYTES};
use crate::virtio::DeviceFault;
use crate::virtio::queues::Queues;

/// One lane at work.
pub(super) struct Transmitter<'a> {
    pub(super) queue: usize,
    /// Room for the longest packet.
    pub(super) packet: &'a mut [u8],
    pub(super) backend: &'a mut dyn NetworkBackend,
    pub(super) lost: &'a mut Lost,
}

impl Transmitter<'_> {
    /// Sends packets until there are none, or no room, or the budget is spent.
    pub(super) fn run(
        &mut self,
        queues: &mut Queues,
        budget: &mut Budget,
    ) -> Result<Turn, DeviceFault> {
        let memory = queues.memory();
        while budget.is_left() {
            if !self.backend.has_room() {
                return Ok(Turn::Settled);
            }
            let Some(chain) = queues.pop(self.queue)? else {
                return Ok(Turn::Settled);
            };
            let head = chain.head_index();
            let gathered = gather(&memory, chain, self.packet).map_err(fault_in(self.queue))?;
            let packet = gathered.length.and_then(|length| self.packet.get(..length));
            budget.spend(packet.map_or(self.packet.len(), <[u8]>::len));
            match packet {
                None => self.lost.sent("it is too long"),
                Some(packet) if packet.len() <= PACKET_HEADER_BYTES => {
                    self.lost.sent("it has no frame");
                }
                Some(packet) => self.backend.transmit(packet),
            }
            queues.push_used(self.queue, head, 0)?;
        }
        Ok(Turn::Interrupted)
    }
}
