// SPDX-License-Identifier: Apache-2.0
//! The PCI bus: one bus, up to 31 functions beside the host bridge, memory BARs, MSI-X.
//!
//! Guests reach configuration space by ECAM (PCI Express base specification, section 7.2.2) or by the
//! old ports 0xcf8 and 0xcfc. There is no firmware, so BARs have addresses from the start; a guest
//! that moves them is obeyed. There are no I/O BARs and no INTx lines: everything here signals by
//! MSI-X, which every guest that knows virtio 1.x has, and whose injection is complete when the
//! call returns, so that nothing is under way at a cut.
//!
//! | address | content |
//! | --- | --- |
//! | 0xd000_0000..0xe000_0000 | BARs |
//! | 0xe000_0000..0xe010_0000 | ECAM of bus 0 |

pub(crate) mod config_space;
pub(crate) mod host_bridge;
pub(crate) mod kvm;
pub(crate) mod msix;
pub(crate) mod ports;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::vcpu::mmio::MmioHandler;
use host_bridge::HostBridge;

/// First address of the window for BARs.
pub(crate) const WINDOW_START: u32 = 0xd000_0000;
/// First address after the window for BARs.
pub(crate) const WINDOW_END: u32 = 0xe000_0000;
/// Where configuration space is mapped.
pub(crate) const ECAM_START: u32 = 0xe000_0000;
/// One bus: 32 devices of 8 functions of 4 KiB.
pub(crate) const ECAM_BYTES: u32 = 1 << 20;
/// Devices on the bus, the host bridge included.
pub(crate) const SLOTS: usize = 32;

const ECAM: Range<u64> = ECAM_START as u64..ECAM_START as u64 + ECAM_BYTES as u64;
const FUNCTION_BYTES: u64 = 4096;

/// One function's place on the bus.
pub(crate) trait PciFunction: Send + Sync + Debug {
    /// Reads configuration space. `offset` is below 4096; `data` is at most 8 bytes long and may
    /// end beyond what the function has, which reads as zero.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// The addresses its memory BAR decodes now, if any.
    fn window(&self) -> Option<Range<u64>>;

    /// Reads the BAR at `offset` from its start.
    fn read_window(&self, offset: u64, data: &mut [u8]);

    /// Writes the BAR at `offset` from its start.
    fn write_window(&self, offset: u64, data: &[u8]);
}

/// What a function reaches outside itself: the guest's interrupt controllers, and KVM's shortcut
/// from a register write to an event descriptor.
pub(crate) trait Platform: Send + Sync + Debug {
    /// Delivers a message-signalled interrupt; delivered when this returns.
    fn signal_msi(&self, address: u64, data: u32);

    /// From now on a write of any width to `address` makes `event` readable, without an exit.
    fn attach_doorbell(&self, event: &EventFd, address: u64) -> Result<(), errno::Error>;

    /// Ends what [`Self::attach_doorbell`] began.
    fn detach_doorbell(&self, event: &EventFd, address: u64) -> Result<(), errno::Error>;
}

/// The functions of bus 0, by device number. Settled when the machine is made.
#[derive(Debug)]
pub(crate) struct PciBus {
    slots: Vec<Arc<dyn PciFunction>>,
}

impl PciBus {
    /// The host bridge in slot 0, then these functions; those that find no slot are left out, which
    /// the machine's configuration prevents.
    pub(crate) fn new(functions: impl IntoIterator<Item = Arc<dyn PciFunction>>) -> Self {
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
        let slots = std::iter::once(bridge)
            .chain(functions)
            .take(SLOTS)
            .collect();
        Self { slots }
    }

    /// Reads configuration space of a device's function 0; nobody there reads as all ones.
    pub(crate) fn read_config(&self, place: ConfigPlace, data: &mut [u8]) {
        match self.function(place) {
            Some(function) => function.read_config(place.offset, data),
            None => data.fill(0xff),
        }
    }

    pub(crate) fn write_config(&self, place: ConfigPlace, data: &[u8]) {
        if let Some(function) = self.function(place) {
            function.write_config(place.offset, data);
        }
    }

    fn function(&self, place: ConfigPlace) -> Option<&Arc<dyn PciFunction>> {
        if place.bus != 0 || place.function != 0 {
            return None;
        }
        self.slots.get(usize::from(place.device))
    }

    fn decode(&self, address: u64) -> Option<(&Arc<dyn PciFunction>, u64)> {
        self.slots.iter().find_map(|function| {
            let window = function.window()?;
            window
                .contains(&address)
                .then(|| (function, address - window.start))
        })
    }
}

/// An address in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConfigPlace {
    bus: u8,
    device: u8,
    function: u8,
    offset: u16,
}

impl ConfigPlace {
    /// From an offset into ECAM.
    fn in_ecam(offset: u64) -> Self {
        let bits = |shift: u32, count: u32| {
            u16::try_from(offset >> shift & ((1 << count) - 1)).unwrap_or(0)
        };
        Self {
            bus: u8::try_from(bits(20, 8)).unwrap_or(0),
            device: u8::try_from(bits(15, 5)).unwrap_or(0),
            function: u8::try_from(bits(12, 3)).unwrap_or(0),
            offset: bits(0, 12),
        }
    }
}

impl MmioHandler for PciBus {
    fn read(&self, address: u64, data: &mut [u8]) {
        if ECAM.contains(&address) {
            return self.read_config(ConfigPlace::in_ecam(address - ECAM.start), data);
        }
        match self.decode(address) {
            Some((function, offset)) => function.read_window(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        if ECAM.contains(&address) {
            return self.write_config(ConfigPlace::in_ecam(address - ECAM.start), data);
        }
        if let Some((function, offset)) = self.decode(address) {
            function.write_window(offset, data);
        }
    }
}

const _: () = assert!(FUNCTION_BYTES * 8 * SLOTS as u64 == ECAM_BYTES as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_bridge_answers_and_empty_slots_read_all_ones() {
        let bus = PciBus::new([]);
        let mut id = [0; 4];
        bus.read(u64::from(ECAM_START), &mut id);
        assert_eq!(u32::from_le_bytes(id), 0x0008_1b36);
        bus.read(u64::from(ECAM_START) + (1 << 15), &mut id);
        assert_eq!(id, [0xff; 4]);
        // Function 1 of the bridge does not exist either.
        bus.read(u64::from(ECAM_START) + (1 << 12), &mut id);
        assert_eq!(id, [0xff; 4]);
    }

    #[test]
    fn an_ecam_offset_is_taken_apart() {
        let place = ConfigPlace::in_ecam(3 << 15 | 1 << 12 | 0x7c);
        assert_eq!(
            (place.bus, place.device, place.function, place.offset),
            (0, 3, 1, 0x7c)
        );
    }
}
