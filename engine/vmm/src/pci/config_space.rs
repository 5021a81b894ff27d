// SPDX-License-Identifier: Apache-2.0
//! A function's configuration space: 256 bytes, and which of their bits a guest may write.
//!
//! Everything a function is (identity, capabilities, the size of its BAR) is set when it is made and
//! cannot be changed by the guest, nor by a state that is loaded: both go through the same mask.
//! Layout: PCI local bus specification 3.0, chapter 6.

/// Bytes that are there; the rest of the 4 KiB reads zero.
pub(crate) const BYTES: usize = 256;

pub(crate) const COMMAND: usize = 0x04;
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
pub(crate) const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const INTERRUPT_LINE: usize = 0x3c;

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
    /// Base class, subclass, programming interface: 24 bits.
    pub(crate) class: u32,
    pub(crate) revision: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    next_capability: usize,
    last_link: usize,
}

impl ConfigSpace {
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES_POINTER,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        space.put(0x08, &class.to_le_bytes());
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives the function a 32-bit memory BAR 0 of `bytes` (a power of two) at `address`.
    pub(crate) fn with_bar0(mut self, address: u32, bytes: u32) -> Self {
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(bytes - 1)).to_le_bytes());
        self
    }

    /// Adds a capability; `body` is what follows its identifier and link, `writable` the mask of
    /// what a guest may write of it. Returns the offset of the capability.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.put(self.last_link, &[u8::try_from(at).unwrap_or(0)]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.last_link = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        let status = self.u16_at(STATUS) | STATUS_CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        at
    }

    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes what may be written.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        for (value, at) in data.iter().zip(offset..) {
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    pub(crate) fn u16_at(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub(crate) fn u32_at(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where BAR 0 is, when the function decodes memory.
    pub(crate) fn bar0(&self) -> Option<u64> {
        (self.u16_at(COMMAND) & COMMAND_MEMORY != 0).then(|| u64::from(self.u32_at(BAR0)))
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    pub(crate) fn restore(&mut self, bytes: &[u8]) {
        self.write(0, bytes);
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        for (value, at) in data.iter().zip(at..) {
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte = *value;
            }
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (value, at) in mask.iter().zip(at..) {
            if let Some(byte) = self.writable.get_mut(at) {
                *byte = *value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1041,
            subsystem_vendor: 0x1af4,
            subsystem: 1,
            class: 0x02_0000,
            revision: 1,
        };
        ConfigSpace::new(&identity).with_bar0(0xd000_0000, 0x8000)
    }

    #[test]
    fn sizing_a_bar_tells_its_size_and_restoring_its_address_works() {
        let mut space = space();
        space.write(BAR0, &u32::MAX.to_le_bytes());
        assert_eq!(space.u32_at(BAR0), 0xffff_8000);
        space.write(BAR0, &0xd000_0000u32.to_le_bytes());
        assert_eq!(space.bar0(), None);
        space.write(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.bar0(), Some(0xd000_0000));
    }

    #[test]
    fn capabilities_are_chained() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3, 4, 5], &[]);
        let second = space.add_capability(0x11, &[0; 10], &[]);
        assert_eq!(usize::from(space.bytes[CAPABILITIES_POINTER]), first);
        assert_eq!(usize::from(space.bytes[first + 1]), second);
        assert_eq!(space.bytes[second + 1], 0);
        assert_eq!(second % 4, 0);
    }

    proptest! {
        #[test]
        fn a_guest_cannot_change_what_a_function_is(
            writes in proptest::collection::vec((0usize..5000, any::<[u8; 8]>(), 1usize..=8), 0..50),
        ) {
            let before = space();
            let mut after = before.clone();
            for (offset, data, length) in writes {
                after.write(offset, &data[..length]);
            }
            prop_assert_eq!(&before.bytes[..COMMAND], &after.bytes[..COMMAND]);
            prop_assert_eq!(&before.bytes[0x08..0x0c], &after.bytes[0x08..0x0c]);
            prop_assert_eq!(after.u32_at(BAR0) & 0x7fff, 0);
            prop_assert_eq!(&before.bytes[0x2c..0x3c], &after.bytes[0x2c..0x3c]);
        }
    }
}
