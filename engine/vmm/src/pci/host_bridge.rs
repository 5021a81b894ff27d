// SPDX-License-Identifier: Apache-2.0
//! The host bridge in slot 0: only an identity, so that guests see a sound bus.

use std::ops::Range;

use super::PciFunction;
use super::config_space::{ConfigSpace, Identity};

/// QEMU's generic PCI Express host bridge, which every guest knows.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    class: 0x06_0000,
    revision: 0,
};

#[derive(Debug)]
pub(crate) struct HostBridge(ConfigSpace);

impl HostBridge {
    pub(crate) fn new() -> Self {
        Self(ConfigSpace::new(&IDENTITY))
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.read(usize::from(offset), data);
    }

    /// Ignored: a bridge that forwards everything has nothing to set, and so no state.
    fn write_config(&self, _: u16, _: &[u8]) {}

    fn window(&self) -> Option<Range<u64>> {
        None
    }

    fn read_window(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_window(&self, _: u64, _: &[u8]) {}
}
