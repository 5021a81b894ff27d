// SPDX-License-Identifier: Apache-2.0
//! The network device (section 5.1): an Ethernet interface in front of a [`NetworkBackend`].
//!
//! ```text
//!  guest                          this device                         back end
//!  transmit queues ──gather──▶ one packet buffer ──────transmit────▶
//!  receive queues  ◀──write─── one packet buffer a pair ◀──receive──
//!  control queue   ◀─────────▶ session: pairs, MAC, offloads, announcement
//! ```
//!
//! * Each packet is copied once each way, into and out of buffers that are made once.
//! * Nothing is lost between guest and back end, and nothing doubled, wherever the machine is cut: a
//!   packet is in the guest's ring, or in the back end, or (where it was taken from outside and the
//!   guest has had too little room) in the state. Only packets that are none are dropped.
//! * All queue pairs are served by the device's one thread, in turns ([`turns`]). More pairs let a
//!   guest's CPUs send and receive without meeting; they do not make this side faster.
//! * With fewer pairs in use than the back end has, its pairs share the receive queues. Their order
//!   within a flow stays, because a flow stays in one pair of the back end.
//! * Offers what the back end can carry. Frames are not filtered ([`control`]).
//! * The link is always up. A back end whose link is down loses packets, as a wire does.

mod control;
mod features;
mod lost;
mod parts;
mod receive;
mod session;
#[cfg(test)]
mod tests;
mod transmit;
mod turns;

use std::fmt;
use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};
use vm_memory::Bytes;

use super::queues::{QueueFault, Queues};
use super::state::{DeviceState, WrongDeviceState};
use super::transport::ConfigChange;
use super::{Device, DeviceFault, Kind, Progress, Wake, read_from};
use crate::backend::{MacAddress, NetworkAttachment, NetworkBackend, Offloads, PACKET_BYTES_MAX};
use lost::Lost;
use parts::{Places, gather};
use receive::{Inbound, Receiver};
pub(crate) use session::NetState;
use session::{Announcement, Session};
use transmit::Transmitter;
use turns::{Budget, Due, Lane, Turn};

const KIND: Kind = Kind {
    name: "virtio-net/1",
    device_type: 1,
    class: 0x02_0000,
};
const QUEUE_SIZE: u16 = 256;

/// A network interface.
pub(crate) struct Net {
    backend: Box<dyn NetworkBackend>,
    /// Its address after a reset.
    mac: MacAddress,
    mtu: Option<u16>,
    pairs: usize,
    offered: u64,
    session: Session,
    due: Due,
    inbound: Vec<Inbound>,
    places: Places,
    packet: Box<[u8]>,
    lost: Lost,
}

impl Net {
    /// An interface as it is after power-on.
    pub(crate) fn new(attachment: NetworkAttachment) -> Self {
        let mtu = features::mtu_to_tell(&attachment);
        let NetworkAttachment { mac, backend, .. } = attachment;
        let pairs = backend.pairs().clamp(1, NetworkAttachment::PAIRS_MAX);
        Self {
            offered: features::offered(backend.offloads(), pairs, mtu),
            backend,
            mac,
            mtu,
            pairs,
            session: Session::new(0, mac),
            due: Due::new(pairs),
            inbound: (0..pairs).map(|_| Inbound::new()).collect(),
            places: Places::default(),
            packet: vec![0; PACKET_BYTES_MAX].into_boxed_slice(),
            lost: Lost::default(),
        }
    }

    /// Forgets what was agreed with a driver, and what waited for it.
    fn begin(&mut self, features: u64) {
        self.session = Session::new(features, self.mac);
        self.due.clear();
        self.inbound.iter_mut().for_each(Inbound::clear);
    }

    /// Where the control queue is: behind all pairs, or behind the first where the driver knows of
    /// no others (section 5.1.2).
    fn control_queue(&self) -> usize {
        if self.session.has(features::MULTIQUEUE) {
            2 * self.pairs
        } else {
            2
        }
    }

    fn mark(&mut self, wake: Wake) {
        match wake {
            Wake::All => self.due.mark_all(),
            Wake::Source(pair) if pair < self.pairs => self.due.mark(Lane::Receive(pair)),
            // The last source: the back end has room again.
            Wake::Source(_) => {
                (0..self.pairs).for_each(|pair| self.due.mark(Lane::Transmit(pair)));
            }
            Wake::Queue(queue) if queue == self.control_queue() => self.due.mark(Lane::Control),
            Wake::Queue(queue) if queue % 2 == 1 => self.due.mark(Lane::Transmit(queue / 2)),
            // The guest has buffers again. Several lanes may share them.
            Wake::Queue(_) => {
                for (pair, inbound) in self.inbound.iter().enumerate() {
                    if inbound.is_stalled() {
                        self.due.mark(Lane::Receive(pair));
                    }
                }
            }
        }
    }

    fn turn(
        &mut self,
        lane: Lane,
        queues: &mut Queues,
        budget: &mut Budget,
    ) -> Result<Turn, DeviceFault> {
        match lane {
            Lane::Receive(pair) => {
                let Some(inbound) = self.inbound.get_mut(pair) else {
                    return Ok(Turn::Settled);
                };
                let mut receiver = Receiver {
                    pair,
                    queue: 2 * (pair % self.session.pairs),
                    inbound,
                    places: &mut self.places,
                    session: &self.session,
                    backend: self.backend.as_mut(),
                    lost: &mut self.lost,
                };
                receiver.run(queues, budget)
            }
            // Section 5.1.6.5.5: queues beyond those in use are left alone.
            Lane::Transmit(pair) if pair >= self.session.pairs => Ok(Turn::Settled),
            Lane::Transmit(pair) => {
                let mut transmitter = Transmitter {
                    queue: 2 * pair + 1,
                    packet: &mut self.packet,
                    backend: self.backend.as_mut(),
                    lost: &mut self.lost,
                };
                transmitter.run(queues, budget)
            }
            Lane::Control => self.obey(queues, budget),
        }
    }

    /// Carries out the driver's commands.
    fn obey(&mut self, queues: &mut Queues, budget: &mut Budget) -> Result<Turn, DeviceFault> {
        if !self.session.has(features::CONTROL_QUEUE) {
            return Ok(Turn::Settled);
        }
        let queue = self.control_queue();
        let memory = queues.memory();
        while budget.is_left() {
            let Some(chain) = queues.pop(queue)? else {
                return Ok(Turn::Settled);
            };
            let head = chain.head_index();
            let gathered = gather(&memory, chain, &mut self.packet).map_err(fault_in(queue))?;
            let Some(place) = gathered.answer else {
                let fault = QueueFault::Shape("a command has no place for its answer");
                return Err(fault_in(queue)(fault));
            };
            let request = gathered.length.and_then(|length| self.packet.get(..length));
            // A command of one that is too long is as unknown as an empty one.
            let request = request.unwrap_or_default();
            budget.spend(request.len());
            let backend = self.backend.as_mut();
            let answer = control::execute(request, &mut self.session, self.pairs, backend);
            memory.write_obj(answer.code(), place).map_err(|error| {
                fault_in(queue)(QueueFault::Memory(std::io::Error::other(error)))
            })?;
            queues.push_used(queue, head, 1)?;
            // Other queues may be in use now.
            self.due.mark_all();
        }
        Ok(Turn::Interrupted)
    }

    /// Section 5.1.4: address, status, pairs, MTU.
    fn config(&self) -> [u8; 12] {
        let asked = self.session.has(features::GUEST_ANNOUNCE)
            && self.session.announcement == Announcement::Wanted;
        let announce = if asked { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP | announce).unwrap_or(1);
        let pairs = u16::try_from(self.pairs).unwrap_or(1);
        let [a, b, c, d, e, f] = self.session.mac.octets();
        let [g, h] = status.to_le_bytes();
        let [i, j] = pairs.to_le_bytes();
        let [k, l] = self.mtu.unwrap_or(0).to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        KIND
    }

    fn traits(&self) -> String {
        let Self {
            mac,
            pairs,
            offered,
            ..
        } = self;
        let mtu = self.mtu.map(|mtu| format!(" mtu={mtu}"));
        let mtu = mtu.unwrap_or_default();
        format!("mac={mac} pairs={pairs}{mtu} features={offered:#x}")
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // All are alike, because which one is for control depends on the driver.
        vec![QUEUE_SIZE; 2 * self.pairs + 1]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config(), offset, data);
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        self.begin(features);
        Ok(self.backend.set_offloads(self.session.offloads)?)
    }

    fn reset(&mut self) {
        self.begin(0);
        // The next driver may know no offloads, and packets for it may be queueing already. One
        // that it cannot take is the worst of a failure here; activating tells of that.
        if let Err(error) = self.backend.set_offloads(Offloads::NONE) {
            tracing::warn!(%error, "Cannot switch the offloads of a network interface off");
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        (0..self.pairs)
            .map(|pair| self.backend.readable(pair))
            .chain(self.backend.room())
            .collect()
    }

    fn serve(&mut self, wake: Wake, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        if self.due.is_empty() {
            self.mark(wake);
        } else {
            // The worker does not listen for others while it continues with this one.
            self.due.mark_all();
        }
        let mut budget = Budget::new();
        while budget.is_left()
            && let Some(lane) = self.due.take_turn()
        {
            if self.turn(lane, queues, &mut budget)? == Turn::Settled {
                self.due.settle(lane);
            }
        }
        Ok(if self.due.is_empty() {
            Progress::Done
        } else {
            Progress::More
        })
    }

    fn announce(&mut self) -> ConfigChange {
        let can = features::GUEST_ANNOUNCE | features::STATUS | features::CONTROL_QUEUE;
        if self.session.features & can != can {
            return ConfigChange::Nothing;
        }
        self.session.announcement = Announcement::Wanted;
        ConfigChange::Tell
    }

    fn save(&self) -> DeviceState {
        let pending = self.inbound.iter().map(Inbound::pending);
        DeviceState::Net(NetState::new(&self.session, pending))
    }

    fn restore(&mut self, state: &DeviceState, features: u64) -> Result<(), WrongDeviceState> {
        let DeviceState::Net(state) = state else {
            return Err(WrongDeviceState::kind(KIND.name));
        };
        let wrong = |reason: &str| WrongDeviceState::new(KIND.name, reason);
        let session = state.session(features, self.pairs).map_err(wrong)?;
        self.backend
            .set_offloads(session.offloads)
            .map_err(|error| wrong(&format!("the back end refuses its offloads: {error}")))?;
        self.begin(features);
        self.session = session;
        for pending in state.pending(self.pairs) {
            let (pair, packet) = pending.map_err(wrong)?;
            if let Some(inbound) = self.inbound.get_mut(pair) {
                inbound.set_pending(packet);
            }
        }
        Ok(())
    }
}

/// Makes a queue's fault the device's.
fn fault_in(queue: usize) -> impl FnOnce(QueueFault) -> DeviceFault {
    move |fault| DeviceFault::Queue { queue, fault }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("pairs", &self.pairs)
            .field("session", &self.session)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
