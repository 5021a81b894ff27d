// SPDX-License-Identifier: Apache-2.0
//! The block device (section 5.2): a disk of the guest's over a [`DiskBackend`].
//!
//! ```text
//!  chain ─▶ Parts ─▶ Rules::judge ─┬▶ status at once (refused, or the serial)
//!          (gather)                └▶ Flight ─▶ back end ─▶ next step … ─▶ data, status, used
//! ```
//!
//! * Data to be written is copied out of guest memory when the request is taken, data read is copied
//!   into it when the request completes: one copy each way. So guest memory is written by this
//!   device only, under its lock, and never while it is paused; the dirty log is exact.
//! * Buffers, slots and lists are used again; in steady state a request allocates nothing.
//! * A request that makes no sense is answered with an error status; a chain without a place for a
//!   status is given back with nothing written. Only a broken ring stops the device.
//! * A driver that negotiated no `FLUSH` has never heard of a cache (section 5.2.6.2): what it
//!   writes is flushed before it is told that it is done. For all others flushes are passed on as
//!   they are: the back end covers every write that completed before.
//! * One queue: the device has one thread, and the disk behind is one; more queues would share both.
//!   There are indirect descriptors instead, so that 256 requests can be in flight, however many
//!   pieces they are in.
//!
//! A state says which disk it is and which requests are in flight: none after [`Device::quiesce`];
//! after [`Device::freeze`] those that the host had at that instant. Here their completions are taken
//! when the device is served again, and so fall after the cut with all that they write; a device that
//! goes on from the state elsewhere makes these requests again ([`carried`]). What the driver has been
//! told about the disk cannot change under it: another machine's disk must have the same
//! [`traits`](Device::traits).

mod carried;
mod chain;
mod complaints;
mod flight;
mod layout;
mod pool;
mod request;
mod service;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::queues::Queues;
use super::state::{DeviceState, WrongDeviceState};
use super::{Device, DeviceFault, Kind, Progress, Wake, read_from};
use crate::backend::{DiskAttachment, DiskBackend, DiskCompletion, DiskGeometry, DiskSerial};
use carried::Carried;
use chain::Parts;
use complaints::Complaints;
use flight::{Flights, IN_FLIGHT_BYTES_MAX};
use pool::Pool;
use request::{ID_BYTES, Range, Rules};
use service::Taken;

const QUEUE: usize = 0;

/// What a state says of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockState {
    disk: DiskIdentity,
    /// Heads of the chains whose requests are in flight, in the order they were taken.
    in_flight: Vec<u16>,
}

/// Enough to refuse another disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DiskIdentity {
    capacity_bytes: u64,
    read_only: bool,
    serial: [u8; ID_BYTES],
}

/// A disk.
pub(crate) struct Block {
    backend: Box<dyn DiskBackend>,
    serial: DiskSerial,
    rules: Rules,
    flights: Flights,
    carried: Carried,
    pool: Pool,
    complaints: Complaints,
    // Filled for each request, and kept for the next.
    parts: Parts,
    ranges: Vec<Range>,
    completions: Vec<DiskCompletion>,
}

impl Block {
    pub(crate) fn new(attachment: DiskAttachment) -> Self {
        let DiskAttachment { serial, backend } = attachment;
        Self {
            rules: Rules {
                disk: backend.geometry(),
                features: 0,
            },
            backend,
            serial,
            flights: Flights::new(),
            carried: Carried::default(),
            pool: Pool::new(IN_FLIGHT_BYTES_MAX),
            complaints: Complaints::default(),
            parts: Parts::default(),
            ranges: Vec::new(),
            completions: Vec::new(),
        }
    }

    fn disk(&self) -> &DiskGeometry {
        &self.rules.disk
    }
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind {
            name: "virtio-blk/2",
            device_type: 2,
            // Mass storage, SCSI, as other virtio disks say.
            class: 0x01_0000,
        }
    }

    fn traits(&self) -> String {
        layout::traits(self.disk(), &self.serial)
    }

    fn features(&self) -> u64 {
        layout::features(self.disk())
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![layout::QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&layout::config(self.disk()), offset, data);
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceFault> {
        // A driver that took its readiness back, and gives it again, starts anew.
        self.forget_all();
        self.rules.features = features;
        Ok(())
    }

    fn reset(&mut self) {
        self.forget_all();
        self.rules.features = 0;
    }

    fn abandon(&mut self) {
        self.forget_all();
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.backend.readable()]
    }

    fn serve(&mut self, _: Wake, queues: &mut Queues) -> Result<Progress, DeviceFault> {
        self.reap(queues)?;
        let taken = match self.take_carried(queues)? {
            Taken::All => self.take(queues)?,
            not_all => not_all,
        };
        // What is done already is answered with the same interrupt.
        let reaped = self.reap(queues)?;
        Ok(match taken {
            Taken::Batch => Progress::More,
            Taken::UpToTheBrim if reaped => Progress::More,
            // A completion will wake the device.
            Taken::UpToTheBrim | Taken::All => Progress::Done,
        })
    }

    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), DeviceFault> {
        // What completes may have another step, or make room for what was carried here.
        loop {
            self.take_carried(queues)?;
            if self.flights.is_empty() {
                return Ok(());
            }
            self.backend.drain()?;
            if !self.reap(queues)? {
                let lost = "the disk's back end lost requests; detach the disk";
                return Err(DeviceFault::BackEnd(io::Error::other(lost)));
            }
        }
    }

    /// What the host has stays there; nothing of it is taken before the device is served again.
    fn freeze(&mut self, _: &mut Queues) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> DeviceState {
        let in_flight = self.flights.heads().into_iter();
        DeviceState::Block(BlockState {
            disk: self.identity(),
            in_flight: in_flight.chain(self.carried.heads()).collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState, features: u64) -> Result<(), WrongDeviceState> {
        let name = self.kind().name;
        let DeviceState::Block(state) = state else {
            return Err(WrongDeviceState::kind(name));
        };
        if state.disk != self.identity() {
            let reason = "it is that of a disk with another size, access or serial";
            return Err(WrongDeviceState::new(name, reason));
        }
        self.forget_all();
        self.carried = Carried::new(&state.in_flight);
        self.rules.features = features;
        Ok(())
    }
}

impl Block {
    fn identity(&self) -> DiskIdentity {
        DiskIdentity {
            capacity_bytes: self.disk().capacity_bytes,
            read_only: self.disk().read_only,
            serial: self.serial.padded(),
        }
    }
}

impl Drop for Block {
    /// The back end may serve another machine's device after this one.
    fn drop(&mut self) {
        self.forget_all();
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("serial", &self.serial)
            .field("disk", self.disk())
            .field("flights", &self.flights)
            .finish_non_exhaustive()
    }
}
