// SPDX-License-Identifier: Apache-2.0
//! Everything a machine is connected to, and the devices that come of it.

use std::fmt;
use std::sync::Arc;

use super::{DiskBackend, DiskSerial, MacAddress, NetworkBackend};
use crate::backend::ConsoleBackend;
use crate::config::{MachineConfig, Presence};
use crate::event::ConsoleOutput;
use crate::ram::GuestRam;
use crate::thread_hook::ThreadHook;
use crate::virtio::Device;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;

/// The back ends of one machine. What is here becomes a device on its bus, in this order.
pub struct Backends {
    /// Where the serial port's output goes.
    pub serial: Arc<dyn ConsoleOutput>,
    /// A virtio console.
    pub console: Option<Box<dyn ConsoleBackend>>,
    /// Its network interfaces.
    pub networks: Vec<NetworkAttachment>,
    /// Its disks.
    pub disks: Vec<DiskAttachment>,
    /// What each of the machine's threads does first.
    pub thread_hook: ThreadHook,
}

/// A disk of the machine. Replicas must agree on its serial and on everything in its geometry.
pub struct DiskAttachment {
    /// What the guest knows it by.
    pub serial: DiskSerial,
    /// Where its content is.
    pub backend: Box<dyn DiskBackend>,
}

/// A network interface of the guest and what it is plugged into.
pub struct NetworkAttachment {
    /// Its address, until the guest sets another.
    pub mac: MacAddress,
    /// The largest IP packet that its network carries, which the guest is told; at least
    /// [`Self::MTU_MIN`] (less is not told).
    pub mtu: Option<u16>,
    /// What it is plugged into. Queue pairs beyond [`Self::PAIRS_MAX`] are not served.
    pub backend: Box<dyn NetworkBackend>,
}

impl NetworkAttachment {
    /// Smallest MTU that a device may name (VIRTIO 1.2, 5.1.4.1).
    pub const MTU_MIN: u16 = 68;
    /// Most queue pairs of one interface.
    pub const PAIRS_MAX: usize = 16;
}

impl Backends {
    /// A machine with nothing but a serial port.
    #[must_use]
    pub fn new(serial: Arc<dyn ConsoleOutput>) -> Self {
        Self {
            serial,
            console: None,
            networks: Vec::new(),
            disks: Vec::new(),
            thread_hook: ThreadHook::default(),
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
        for network in self.networks.drain(..) {
            devices.push(Box::new(Net::new(network)));
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

impl fmt::Debug for NetworkAttachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkAttachment({})", self.mac)
    }
}
