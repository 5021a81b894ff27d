// SPDX-License-Identifier: Apache-2.0
//! MSI-X: the table of messages, the bits of those that wait while masked, and the capability.
//!
//! PCI local bus specification 3.0, section 6.8.2. A message is injected by `KVM_SIGNAL_MSI`, which
//! is complete when it returns and needs no routing table; an irqfd would need one more thing to
//! save and would cost the same system call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Platform;

/// Capability identifier.
pub(crate) const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
const ENTRY_BYTES: u64 = 16;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// A number that stands for "no vector" in virtio's registers.
pub(crate) const NO_VECTOR: u16 = 0xffff;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    /// The message waits until it is unmasked.
    pending: Pending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Pending {
    No,
    Yes,
}

/// What a state keeps of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MsixState {
    control: u16,
    entries: Vec<Entry>,
}

#[derive(Debug)]
pub(crate) struct Msix {
    platform: Arc<dyn Platform>,
    /// The capability's message control word, as far as the guest may write it.
    control: u16,
    entries: Vec<Entry>,
}

impl Msix {
    pub(crate) fn new(platform: Arc<dyn Platform>, vectors: u16) -> Self {
        let masked = Entry {
            address: 0,
            data: 0,
            control: VECTOR_MASKED,
            pending: Pending::No,
        };
        Self {
            platform,
            control: 0,
            entries: vec![masked; usize::from(vectors)],
        }
    }

    /// The capability behind its identifier and link, with table and pending bits in BAR 0, and
    /// the mask of what may be written.
    pub(crate) fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let count = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(u16::MAX);
        let mut body = [0; 10];
        let words = count
            .to_le_bytes()
            .into_iter()
            .chain(table.to_le_bytes())
            .chain(pending.to_le_bytes());
        for (byte, value) in body.iter_mut().zip(words) {
            *byte = value;
        }
        (body, (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes())
    }

    /// Whether a driver may name this vector.
    pub(crate) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.entries.len()
    }

    /// The guest wrote the capability's control word.
    pub(crate) fn set_control(&mut self, control: u16) {
        self.control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        self.deliver_pending();
    }

    /// Signals a vector; one that is masked waits. Without MSI-X enabled nothing is signalled.
    pub(crate) fn trigger(&mut self, vector: u16) {
        let deliverable = self.is_open();
        let enabled = self.control & CONTROL_ENABLE != 0;
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else {
            return;
        };
        if deliverable && entry.control & VECTOR_MASKED == 0 {
            self.platform.signal_msi(entry.address, entry.data);
        } else if enabled {
            entry.pending = Pending::Yes;
        }
    }

    fn is_open(&self) -> bool {
        self.control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE
    }

    fn deliver_pending(&mut self) {
        if !self.is_open() {
            return;
        }
        for entry in &mut self.entries {
            if entry.pending == Pending::Yes && entry.control & VECTOR_MASKED == 0 {
                entry.pending = Pending::No;
                self.platform.signal_msi(entry.address, entry.data);
            }
        }
    }

    /// Reads the table; aligned accesses of 4 or 8 bytes, others read zero.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let image = self.entry_at(offset).map_or([0; 16], |entry| entry.image());
        let start = usize::try_from(offset % ENTRY_BYTES).unwrap_or(0);
        let mut bytes = image.iter().skip(start);
        for byte in data {
            *byte = bytes.next().copied().unwrap_or(0);
        }
    }

    pub(crate) fn write_table(&mut self, offset: u64, data: &[u8]) {
        let index = usize::try_from(offset / ENTRY_BYTES).unwrap_or(usize::MAX);
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let mut image = entry.image();
        let start = usize::try_from(offset % ENTRY_BYTES).unwrap_or(0);
        for (byte, value) in image.iter_mut().skip(start).zip(data) {
            *byte = *value;
        }
        entry.set_image(&image);
        self.deliver_pending();
    }

    /// Reads the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(0..) {
            let at = offset.saturating_add(at).saturating_mul(8);
            let first = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = self
                .entries
                .iter()
                .skip(first)
                .take(8)
                .enumerate()
                .filter(|(_, entry)| entry.pending == Pending::Yes)
                .fold(0, |bits, (bit, _)| bits | 1 << bit);
        }
    }

    fn entry_at(&self, offset: u64) -> Option<&Entry> {
        self.entries
            .get(usize::try_from(offset / ENTRY_BYTES).ok()?)
    }

    pub(crate) fn save(&self) -> MsixState {
        MsixState {
            control: self.control,
            entries: self.entries.clone(),
        }
    }

    /// Loads what is there of as many entries as this table has. Signals nothing: what was
    /// delivered is in the interrupt controllers' state.
    pub(crate) fn restore(&mut self, state: &MsixState) {
        self.control = state.control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        for (entry, saved) in self.entries.iter_mut().zip(&state.entries) {
            *entry = *saved;
        }
    }
}

impl Entry {
    fn image(self) -> [u8; 16] {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = self.address.to_le_bytes();
        let [d0, d1, d2, d3] = self.data.to_le_bytes();
        let [c0, c1, c2, c3] = self.control.to_le_bytes();
        [
            a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, c0, c1, c2, c3,
        ]
    }

    fn set_image(&mut self, image: &[u8; 16]) {
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            d0,
            d1,
            d2,
            d3,
            c0,
            c1,
            c2,
            c3,
        ] = *image;
        self.address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        self.data = u32::from_le_bytes([d0, d1, d2, d3]);
        self.control = u32::from_le_bytes([c0, c1, c2, c3]) & VECTOR_MASKED;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use vmm_sys_util::errno;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    /// A platform that remembers what it was told.
    #[derive(Debug, Default)]
    pub(crate) struct Recorder {
        pub(crate) messages: Mutex<Vec<(u64, u32)>>,
        pub(crate) doorbells: Mutex<Vec<u64>>,
    }

    impl Platform for Recorder {
        fn signal_msi(&self, address: u64, data: u32) {
            self.messages.lock().unwrap().push((address, data));
        }

        fn attach_doorbell(&self, _: &EventFd, address: u64) -> Result<(), errno::Error> {
            self.doorbells.lock().unwrap().push(address);
            Ok(())
        }

        fn detach_doorbell(&self, _: &EventFd, address: u64) -> Result<(), errno::Error> {
            self.doorbells.lock().unwrap().retain(|at| *at != address);
            Ok(())
        }
    }

    fn program(msix: &mut Msix, vector: u64, data: u32, control: u32) {
        msix.write_table(vector * 16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        msix.write_table(vector * 16 + 12, &control.to_le_bytes());
    }

    #[test]
    fn a_masked_message_waits_and_leaves_when_unmasked() {
        let recorder = Arc::new(Recorder::default());
        let mut msix = Msix::new(recorder.clone(), 2);
        program(&mut msix, 1, 0x41, VECTOR_MASKED);
        msix.trigger(1);
        assert!(recorder.messages.lock().unwrap().is_empty(), "not enabled");
        msix.set_control(CONTROL_ENABLE);
        msix.trigger(1);
        let mut pending = [0];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, [2]);
        program(&mut msix, 1, 0x41, 0);
        assert_eq!(*recorder.messages.lock().unwrap(), [(0xfee0_1000, 0x41)]);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        msix.trigger(1);
        msix.trigger(1);
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(recorder.messages.lock().unwrap().len(), 2);
    }

    #[test]
    fn accesses_beyond_the_table_are_harmless() {
        let mut msix = Msix::new(Arc::new(Recorder::default()), 1);
        msix.write_table(16, &[1; 8]);
        msix.write_table(12, &[1; 8]);
        let mut data = [7; 8];
        msix.read_table(u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
        msix.read_pending(u64::MAX - 3, &mut data);
        assert_eq!(data, [0; 8]);
        msix.trigger(NO_VECTOR);
    }

    #[test]
    fn the_state_is_whole() {
        let mut msix = Msix::new(Arc::new(Recorder::default()), 2);
        program(&mut msix, 0, 0x31, 0);
        msix.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
        msix.trigger(0);
        let recorder = Arc::new(Recorder::default());
        let mut other = Msix::new(recorder.clone(), 2);
        other.restore(&msix.save());
        assert!(recorder.messages.lock().unwrap().is_empty());
        other.set_control(CONTROL_ENABLE);
        assert_eq!(*recorder.messages.lock().unwrap(), [(0xfee0_1000, 0x31)]);
    }
}
