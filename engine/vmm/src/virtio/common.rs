// SPDX-License-Identifier: Apache-2.0
//! The common configuration registers (section 4.1.4.3): feature negotiation, status, queue set-up.
//!
//! Pure: it changes itself and the queues, and says what the device must do about it.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::queues::Queues;
use super::{DeviceFault, read_from};
use crate::pci::msix::{Msix, NO_VECTOR};

/// Bytes of the register block.
pub(crate) const BYTES: u64 = 0x40;

/// `VIRTIO_F_RING_EVENT_IDX`.
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub(crate) const VERSION_1: u64 = 1 << 32;
/// Features that every device here has.
pub(crate) const TRANSPORT_FEATURES: u64 = EVENT_IDX | VERSION_1;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 0x40;

/// What a write to the registers asks of the device.
#[derive(Debug)]
pub(crate) enum Consequence {
    Nothing,
    /// The driver is ready.
    Activate,
    /// The driver resets the device.
    Reset,
    /// The driver did what makes no sense.
    Fault(DeviceFault),
}

/// The registers as a state keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct CommonState {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
}

#[derive(Debug)]
pub(crate) struct Common {
    offered: u64,
    state: CommonState,
}

impl Common {
    pub(crate) fn new(device_features: u64) -> Self {
        Self {
            offered: device_features | TRANSPORT_FEATURES,
            state: CommonState {
                config_vector: NO_VECTOR,
                ..CommonState::default()
            },
        }
    }

    /// Whether the driver is ready and the device works.
    pub(crate) fn is_active(&self) -> bool {
        self.state.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    /// The negotiated features.
    pub(crate) fn features(&self) -> u64 {
        self.state.driver_features
    }

    /// The device stopped: tell the driver to reset it.
    pub(crate) fn stop(&mut self, msix: &mut Msix) {
        self.state.status |= STATUS_NEEDS_RESET;
        self.config_changed(msix);
    }

    /// The device's configuration changed.
    pub(crate) fn config_changed(&mut self, msix: &mut Msix) {
        self.state.generation = self.state.generation.wrapping_add(1);
        msix.trigger(self.state.config_vector);
    }

    pub(crate) fn reset(&mut self) {
        self.state = CommonState {
            config_vector: NO_VECTOR,
            ..CommonState::default()
        };
    }

    pub(crate) fn read(&self, queues: &Queues, offset: u64, data: &mut [u8]) {
        read_from(&self.image(queues), offset, data);
    }

    fn image(&self, queues: &Queues) -> [u8; 0x40] {
        let state = &self.state;
        let mut image = [0; 0x40];
        let mut put = |at: usize, bytes: &[u8]| {
            for (byte, value) in image.iter_mut().skip(at).zip(bytes) {
                *byte = *value;
            }
        };
        put(0x00, &state.device_feature_select.to_le_bytes());
        put(
            0x04,
            &half(self.offered, state.device_feature_select).to_le_bytes(),
        );
        put(0x08, &state.driver_feature_select.to_le_bytes());
        put(
            0x0c,
            &half(state.driver_features, state.driver_feature_select).to_le_bytes(),
        );
        put(0x10, &state.config_vector.to_le_bytes());
        put(
            0x12,
            &u16::try_from(queues.len()).unwrap_or(0).to_le_bytes(),
        );
        put(0x14, &[state.status, state.generation]);
        put(0x16, &state.queue_select.to_le_bytes());
        if let Some((queue, vector)) = queues.registers(usize::from(state.queue_select)) {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &vector.to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            // Each queue's doorbell is at its number times the multiplier.
            put(0x1e, &state.queue_select.to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
        image
    }

    pub(crate) fn write(
        &mut self,
        queues: &mut Queues,
        msix: &Msix,
        offset: u64,
        data: &[u8],
    ) -> Consequence {
        let selected = usize::from(self.state.queue_select);
        let vector = |value| if msix.has(value) { value } else { NO_VECTOR };
        match (offset, data) {
            (0x14, [value]) => return self.write_status(*value),
            (0x10, [a, b]) => self.state.config_vector = vector(u16::from_le_bytes([*a, *b])),
            (0x16, [a, b]) => self.state.queue_select = u16::from_le_bytes([*a, *b]),
            (0x18, [a, b]) => {
                let size = u16::from_le_bytes([*a, *b]);
                queues.configure(selected, |queue| queue.set_size(size));
            }
            (0x1a, [a, b]) => queues.set_vector(selected, vector(u16::from_le_bytes([*a, *b]))),
            (0x1c, [1, 0]) => {
                if let Err(fault) = queues.enable(selected) {
                    return Consequence::Fault(fault);
                }
            }
            (_, [a, b, c, d]) => {
                self.write_word(queues, offset, u32::from_le_bytes([*a, *b, *c, *d]));
            }
            (_, [a, b, c, d, e, f, g, h]) => {
                self.write_word(queues, offset, u32::from_le_bytes([*a, *b, *c, *d]));
                self.write_word(queues, offset + 4, u32::from_le_bytes([*e, *f, *g, *h]));
            }
            _ => {}
        }
        Consequence::Nothing
    }

    fn write_word(&mut self, queues: &mut Queues, offset: u64, value: u32) {
        let selected = usize::from(self.state.queue_select);
        match offset {
            0x00 => self.state.device_feature_select = value,
            0x08 => self.state.driver_feature_select = value,
            0x0c if self.state.status & STATUS_FEATURES_OK == 0 => {
                let (old, new) = (self.state.driver_features, u64::from(value));
                self.state.driver_features = match self.state.driver_feature_select {
                    0 => old & !0xffff_ffff | new,
                    1 => old & 0xffff_ffff | new << 32,
                    _ => old,
                };
            }
            0x20 => queues.configure(selected, |q| q.set_desc_table_address(Some(value), None)),
            0x24 => queues.configure(selected, |q| q.set_desc_table_address(None, Some(value))),
            0x28 => queues.configure(selected, |q| q.set_avail_ring_address(Some(value), None)),
            0x2c => queues.configure(selected, |q| q.set_avail_ring_address(None, Some(value))),
            0x30 => queues.configure(selected, |q| q.set_used_ring_address(Some(value), None)),
            0x34 => queues.configure(selected, |q| q.set_used_ring_address(None, Some(value))),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Consequence {
        if value == 0 {
            return Consequence::Reset;
        }
        let before = self.state.status;
        let mut wanted = value | before & STATUS_NEEDS_RESET;
        let features = self.state.driver_features;
        // Section 3.1.1, step 6: the driver reads the bit back to see whether it was accepted.
        if features & !self.offered != 0 || features & VERSION_1 == 0 {
            wanted &= !STATUS_FEATURES_OK;
        }
        if wanted & STATUS_FEATURES_OK == 0 {
            wanted &= !STATUS_DRIVER_OK;
        }
        self.state.status = wanted;
        if wanted & !before & STATUS_DRIVER_OK != 0 {
            return Consequence::Activate;
        }
        Consequence::Nothing
    }

    pub(crate) fn save(&self) -> CommonState {
        self.state.clone()
    }

    /// Loads the registers; features that this device does not offer are refused.
    pub(crate) fn restore(&mut self, state: &CommonState) -> Result<(), &'static str> {
        let negotiated = state.status & STATUS_FEATURES_OK != 0;
        if negotiated && state.driver_features & !self.offered != 0 {
            return Err("features that this device does not offer");
        }
        self.state = state.clone();
        Ok(())
    }
}

/// The low or high half of the features; there are no more than two.
fn half(features: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(shifted & 0xffff_ffff).unwrap_or(0)
}
