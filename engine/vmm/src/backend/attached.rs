// SPDX-License-Identifier: Apache-2.0
//! Everything a machine is connected to, and the devices that come of it.

use std::fmt;
use std::sync::Arc;

use super::{DiskBackend, DiskSerial};
use crate::backend::ConsoleBackend;
use crate::config::{MachineConfig, Presence};
use crate::event::ConsoleOutput;
use crate::ram::GuestRam;
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::rng::Rng;

/// The back ends of one machine. What is here becomes a device on its bus, in this order.
pub struct Backends {
    /// Where the serial port's output goes.
    pub serial: Arc<dyn ConsoleOutput>,
    /// A virtio console.
    pub console: Option<Box<dyn ConsoleBackend>>,
    /// Its disks.
    pub disks: Vec<DiskAttachment>,
}

/// A disk of the machine. Replicas must agree on its serial and on everything in its geometry.
pub struct DiskAttachment {
    /// What the guest knows it by.
    pub serial: DiskSerial,
    /// Where its content is.
    pub backend: Box<dyn DiskBackend>,
}

impl Backends {
    /// A machine with nothing but a serial port.
    #[must_use]
    pub fn new(serial: Arc<dyn ConsoleOutput>) -> Self {
        Self {
            serial,
            console: None,
            disks: Vec::new(),
        }
    }

    /// Takes the virtio devices out, in the order of their slots.
    pub(crate) fn devices(
        &mut self,
        config: &MachineConfig,
        ram: &GuestRam,
    ) -> Vec<Box<dyn Device>> {
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        if let Some(console) = self.console.take() {
            devices.push(Box::new(Console::new(console)));
        }
        if let Some(reporting) = config.balloon {
            devices.push(Box::new(Balloon::new(ram.clone(), reporting)));
        }
        if config.rng == Presence::Present {
            devices.push(Box::new(Rng));
        }
        for disk in self.disks.drain(..) {
            devices.push(Box::new(Block::new(disk)));
        }
        devices
    }
}

impl fmt::Debug for DiskAttachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskAttachment({})", self.serial)
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backends")
    }
}
