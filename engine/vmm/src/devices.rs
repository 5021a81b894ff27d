// SPDX-License-Identifier: Apache-2.0
//! The port I/O devices and the bus that reaches them.
//!
//! | ports | device | interrupt |
//! | --- | --- | --- |
//! | 0x60, 0x64 | keyboard controller: only its reset line | |
//! | 0x70, 0x71 | CMOS memory with the real-time clock | |
//! | 0x3f8..0x3ff | 16550 serial port | 4, edge |
//! | 0x600..0x605 | ACPI PM1a: event, enable and control registers | 9, level |
//! | 0xcf8..0xcff | PCI configuration, the old way | |
//!
//! Every other port reads all ones and ignores writes, and so does all memory outside RAM. The PIC,
//! IOAPIC, PIT and port 0x61 are in the kernel. The devices are touched only under one lock, and
//! only by exits of the vCPU or by their owner; they have no threads and no timers, so a paused
//! vCPU plus that lock is a consistent cut.

pub(crate) mod cmos;
pub(crate) mod i8042;
pub(crate) mod power;
pub(crate) mod serial;

use std::sync::Arc;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::errno;

use crate::pci::PciBus;
use crate::pci::ports::{self, ConfigPorts};
use crate::virtio::state::WrongDeviceState;
use cmos::{Cmos, CmosState};
use power::{PowerManagement, PowerState};
use serial::{SerialPort, SerialPortState};

/// What the devices of this version are called in a machine's fingerprint; changes whenever the
/// set of devices or the meaning of their state does.
pub(crate) const DEVICES: &[&str] = &[
    "serial16550/1",
    "i8042-reset/1",
    "cmos/1",
    "acpi-pm1a/1",
    "pci/1",
];

/// State of all port I/O devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    pub(crate) serial: SerialPortState,
    pub(crate) cmos: CmosState,
    pub(crate) power: PowerState,
    pub(crate) pci: ConfigPorts,
}

/// Device state that no device of this machine can have.
#[derive(Debug, Error)]
pub enum RestoreDevicesError {
    /// More received bytes than the receive FIFO holds.
    #[error("The serial port's receive FIFO cannot hold {bytes} bytes")]
    SerialFifo {
        /// Bytes in the refused state.
        bytes: usize,
    },
    /// A virtio device refused its state.
    #[error("Cannot load a virtio device")]
    Virtio(#[from] WrongDeviceState),
    /// KVM refused an interrupt line.
    #[error("Cannot set interrupt line {irq}")]
    InterruptLine {
        /// The line's number.
        irq: u32,
        /// KVM's answer.
        #[source]
        source: errno::Error,
    },
}

/// An interrupt line into the in-kernel controllers. Driven by ioctl, so that the change is complete
/// when the call returns (an irqfd would complete it later, perhaps after a cut).
#[derive(Debug, Clone)]
pub(crate) struct InterruptLine {
    vm: Arc<VmFd>,
    irq: u32,
}

impl InterruptLine {
    pub(crate) fn new(vm: Arc<VmFd>, irq: u32) -> Self {
        Self { vm, irq }
    }

    pub(crate) fn set(&self, active: bool) -> Result<(), errno::Error> {
        self.vm.set_irq_line(self.irq, active)
    }

    pub(crate) fn number(&self) -> u32 {
        self.irq
    }
}

/// What a port write asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortRequest {
    PowerOff,
    Reset,
}

#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) serial: SerialPort,
    cmos: Cmos,
    power: PowerManagement,
    pci: ConfigPorts,
    bus: Arc<PciBus>,
}

impl Devices {
    pub(crate) fn new(vm: &Arc<VmFd>, bus: Arc<PciBus>) -> Self {
        let line = |irq| InterruptLine::new(Arc::clone(vm), irq);
        Self {
            serial: SerialPort::new(line(serial::IRQ)),
            cmos: Cmos::new(),
            power: PowerManagement::new(line(u32::from(power::SCI_IRQ))),
            pci: ConfigPorts::default(),
            bus,
        }
    }

    /// Serves `in`. The devices with 8-bit registers serve a wider access (which KVM also uses for
    /// string instructions) as repeated accesses to the same port.
    pub(crate) fn read_port(&mut self, port: u16, data: &mut [u8]) {
        match port {
            i8042::DATA | i8042::COMMAND => data.fill(i8042::read()),
            cmos::INDEX | cmos::DATA => each(data, || self.cmos.read(port)),
            serial::FIRST..=serial::LAST => each(data, || self.serial.read(port)),
            power::FIRST..=power::LAST => self.power.read(port, data),
            ports::FIRST..=ports::LAST => self.pci.read(&self.bus, port, data),
            _ => data.fill(0xff),
        }
    }

    /// Serves `out`.
    pub(crate) fn write_port(&mut self, port: u16, data: &[u8]) -> Option<PortRequest> {
        match port {
            i8042::DATA | i8042::COMMAND => {
                return data.iter().find_map(|byte| i8042::write(port, *byte));
            }
            cmos::INDEX | cmos::DATA => data.iter().for_each(|byte| self.cmos.write(port, *byte)),
            serial::FIRST..=serial::LAST => {
                data.iter().for_each(|byte| self.serial.write(port, *byte));
            }
            power::FIRST..=power::LAST => return self.power.write(port, data),
            ports::FIRST..=ports::LAST => self.pci.write(&self.bus, port, data),
            _ => {}
        }
        None
    }

    /// The power button was pressed.
    pub(crate) fn press_power_button(&mut self) {
        self.power.press_button();
    }

    pub(crate) fn save(&self) -> DevicesState {
        DevicesState {
            serial: self.serial.save(),
            cmos: self.cmos.save(),
            power: self.power.save(),
            pci: self.pci,
        }
    }

    /// Must come after the interrupt controllers' restore, because it asserts levels.
    pub(crate) fn restore(&mut self, state: &DevicesState) -> Result<(), RestoreDevicesError> {
        self.serial.restore(&state.serial)?;
        self.cmos.restore(state.cmos);
        self.pci = state.pci;
        self.power
            .restore(state.power)
            .map_err(|source| RestoreDevicesError::InterruptLine {
                irq: u32::from(power::SCI_IRQ),
                source,
            })
    }
}

fn each(data: &mut [u8], mut read: impl FnMut() -> u8) {
    for byte in data {
        *byte = read();
    }
}
