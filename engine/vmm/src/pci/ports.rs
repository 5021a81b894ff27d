// SPDX-License-Identifier: Apache-2.0
//! Configuration mechanism 1: an address register at port 0xcf8 and a window onto it at 0xcfc.
//!
//! Guests use it before they have read the ACPI tables. The address is the only state.

use serde::{Deserialize, Serialize};

use super::{ConfigPlace, PciBus};

/// First port.
pub(crate) const FIRST: u16 = 0xcf8;
/// First port of the data window.
const DATA: u16 = 0xcfc;
/// Last port.
pub(crate) const LAST: u16 = 0xcff;
const ENABLE: u32 = 1 << 31;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ConfigPorts {
    address: u32,
}

impl ConfigPorts {
    pub(crate) fn read(self, bus: &PciBus, port: u16, data: &mut [u8]) {
        if port < DATA {
            let image = self.address.to_le_bytes();
            let mut bytes = image.iter().skip(usize::from(port - FIRST));
            for byte in data {
                *byte = bytes.next().copied().unwrap_or(0xff);
            }
            return;
        }
        match self.place(port) {
            Some(place) => bus.read_config(place, data),
            None => data.fill(0xff),
        }
    }

    pub(crate) fn write(&mut self, bus: &PciBus, port: u16, data: &[u8]) {
        if port >= DATA {
            if let Some(place) = self.place(port) {
                bus.write_config(place, data);
            }
            return;
        }
        // Only a whole double word is the address; smaller writes are other devices' on a PC.
        if let (FIRST, Ok(value)) = (port, <[u8; 4]>::try_from(data)) {
            self.address = u32::from_le_bytes(value);
        }
    }

    fn place(self, port: u16) -> Option<ConfigPlace> {
        let [low, function, bus, _] = self.address.to_le_bytes();
        (self.address & ENABLE != 0).then_some(ConfigPlace {
            bus,
            device: function >> 3,
            function: function & 7,
            offset: u16::from(low & !3) + (port - DATA),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_is_found_through_the_ports() {
        let bus = PciBus::new([]);
        let mut ports = ConfigPorts::default();
        ports.write(&bus, FIRST, &ENABLE.to_le_bytes());
        let mut id = [0; 2];
        ports.read(&bus, DATA + 2, &mut id);
        assert_eq!(u16::from_le_bytes(id), 0x0008);
        ports.write(&bus, FIRST, &0u32.to_le_bytes());
        ports.read(&bus, DATA, &mut id);
        assert_eq!(id, [0xff; 2]);
    }
}
