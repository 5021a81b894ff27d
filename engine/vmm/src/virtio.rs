// SPDX-License-Identifier: Apache-2.0
//! Virtio 1.x devices over PCI, with split rings.
//!
//! ```text
//!  vCPU thread ──MMIO──▶ registers (transport) ─┐
//!      └──doorbell (ioeventfd)──▶ worker thread ─┴─lock─▶ core: registers, queues, device model
//!                      back end ──readable──▶ ┘                     └──▶ back end, MSI-X
//! ```
//!
//! * [`transport::VirtioFunction`] is one device on the bus: capabilities, registers, MSI-X.
//! * [`queues::Queues`] are its rings. They lie in guest memory, so everything read from them is
//!   hostile: a ring that makes no sense stops that device, and says so, but never the machine.
//! * [`worker`] is the device's thread, which does all the work on the rings.
//! * A [`Device`] is a device model: it knows what requests mean, and neither PCI nor replication.
//!   What it lets out goes through a back end ([`crate::backend`]).
//!
//! Cutting: stopping a device takes its lock, which ends the batch in progress. A *pause* quiesces it:
//! what the host still works on is waited for and completed towards the guest. A *freeze* waits for
//! nobody: what the host works on is part of the state, and completes towards the guest after the
//! device is resumed. In between the device changes nothing. Doorbells rung in between are not in any state; they need
//! not be, because resuming looks at every queue.
//!
//! References are to the Virtual I/O Device specification, version 1.2.

pub(crate) mod balloon;
pub(crate) mod block;
pub(crate) mod common;
pub(crate) mod console;
#[cfg(test)]
pub(crate) mod driver;
pub(crate) mod fleet;
pub(crate) mod net;
pub(crate) mod queues;
pub(crate) mod rng;
pub(crate) mod state;
pub(crate) mod transport;
pub(crate) mod walk;
pub(crate) mod worker;

use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use queues::{QueueFault, Queues};
use state::{DeviceState, WrongDeviceState};
use transport::ConfigChange;

/// A device's virtio type (section 5) and what PCI calls its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Name for logs, thread and fingerprint, with a version that changes with its state.
    pub(crate) name: &'static str,
    /// Virtio device type.
    pub(crate) device_type: u16,
    /// Base class, subclass and programming interface.
    pub(crate) class: u32,
}

/// Why a device is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Anything may be due: the device was activated or resumed.
    All,
    /// The guest rang the doorbell of this queue.
    Queue(usize),
    /// This source of the back end became readable (its place in [`Device::sources`]).
    Source(usize),
}

/// Whether there is more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing until something wakes the device.
    Done,
    /// A batch is done; there is more, after others had their turn with the lock.
    More,
}

/// Why a device stopped. The guest must reset it.
#[derive(Debug, Error)]
pub(crate) enum DeviceFault {
    /// A ring or a chain makes no sense.
    #[error("queue {queue} is broken")]
    Queue {
        /// The queue's number.
        queue: usize,
        /// What is wrong.
        #[source]
        fault: QueueFault,
    },
    /// The back end failed for good.
    #[error("the back end failed")]
    BackEnd(#[from] std::io::Error),
}

/// A device model. All calls are made under the device's lock; none may block for longer than a
/// batch of requests takes, except [`quiesce`](Self::quiesce), which waits for the host.
pub(crate) trait Device: Send + Debug {
    /// What it is.
    fn kind(&self) -> Kind;

    /// What else a device must have in common with this one for its state to run there: what the
    /// driver was told, or what its configuration is. One line of `name=value` and flags.
    fn traits(&self) -> String {
        String::new()
    }

    /// The features it offers; the transport adds its own.
    fn features(&self) -> u64;

    /// Size of each queue, powers of two up to 1,024.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads its configuration (section 2.5); what is beyond its end reads zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes its configuration. Most devices have nothing that can be written.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready and negotiated these features.
    ///
    /// # Errors
    /// The device cannot work with them.
    fn activate(&mut self, features: u64) -> Result<(), DeviceFault>;

    /// Back to the state after power-on. Nothing is in flight: it was quiesced before.
    fn reset(&mut self);

    /// Descriptors of the back end. They are watched edge-triggered: a device reads until nothing
    /// is there, or remembers that there is more.
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Does what is due, at most a batch of it. Never called before it is activated.
    ///
    /// # Errors
    /// The device stops until it is reset.
    fn serve(&mut self, wake: Wake, queues: &mut Queues) -> Result<Progress, DeviceFault>;

    /// The machine runs elsewhere than before: asks the guest to tell the outside so, where a device
    /// has an outside that must know.
    fn announce(&mut self) -> ConfigChange {
        ConfigChange::Nothing
    }

    /// A balloon: asks the guest for this many pages in all.
    fn set_balloon(&mut self, pages: u32) -> ConfigChange {
        let _ = pages;
        ConfigChange::Nothing
    }

    /// A balloon: pages wanted and given; `None` for every other device.
    fn balloon(&self) -> Option<(u32, u32)> {
        None
    }

    /// Waits until the host has nothing of this device's in flight, and completes that.
    ///
    /// # Errors
    /// The device stops until it is reset.
    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), DeviceFault> {
        let _ = queues;
        Ok(())
    }

    /// The device stands still for a cut that must not wait for the host. What the host has in flight
    /// is in the next [`save`](Self::save), or is completed as by [`quiesce`](Self::quiesce).
    ///
    /// # Errors
    /// The device stops until it is reset.
    fn freeze(&mut self, queues: &mut Queues) -> Result<(), DeviceFault> {
        self.quiesce(queues)
    }

    /// The device stopped, or its driver is not ready any more, without a reset: waits until the
    /// host has nothing in flight, and forgets that. The rings must not be touched.
    fn abandon(&mut self) {}

    /// Its state beside queues and registers. Only called when it stands still.
    fn save(&self) -> DeviceState;

    /// Loads a state; `features` were negotiated, or zero where the driver was not ready.
    ///
    /// # Errors
    /// It is the state of another kind of device, or makes no sense.
    fn restore(&mut self, state: &DeviceState, features: u64) -> Result<(), WrongDeviceState>;
}

/// Copies the part of a configuration that an access asks for.
pub(crate) fn read_from(image: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut bytes = image.iter().skip(start);
    for byte in data {
        *byte = bytes.next().copied().unwrap_or(0);
    }
}
