// SPDX-License-Identifier: Apache-2.0
//! A chain's descriptors from its head on, for a chain that was taken out of the ring long ago.
//!
//! virtio-queue shows a chain only when it takes it out of the available ring, and that place may
//! have been used again since. So this walks the table as its `DescriptorChain` does, with the same
//! bounds; a test holds the two together.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::ram::Mapping;

/// Bytes of a descriptor (section 2.7.5).
const DESCRIPTOR_BYTES: u32 = 16;

/// The descriptors of one chain, as far as they make sense.
#[derive(Debug)]
pub(crate) struct Walk {
    memory: Arc<Mapping>,
    table: u64,
    /// Descriptors of the table.
    size: u16,
    /// The next one; none at the end.
    next: Option<u16>,
    /// How many more there may be.
    left: u16,
    bytes: u32,
    indirect: bool,
}

impl Walk {
    /// The chain that begins with descriptor `head` of a table.
    pub(super) fn new(memory: Arc<Mapping>, table: u64, size: u16, head: u16) -> Self {
        Self {
            memory,
            table,
            size,
            next: Some(head),
            left: size,
            bytes: 0,
            indirect: false,
        }
    }

    fn read(&self, index: u16) -> Option<Descriptor> {
        let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
        let at = self.table.checked_add(offset)?;
        self.memory.read_obj(GuestAddress(at)).ok()
    }

    /// Section 2.7.5.3: one table, of whole descriptors, in no other.
    fn enter(&mut self, table: Descriptor) -> Option<Descriptor> {
        let whole = table.len().is_multiple_of(DESCRIPTOR_BYTES);
        if self.indirect || !whole {
            return None;
        }
        self.size = u16::try_from(table.len() / DESCRIPTOR_BYTES).ok()?;
        self.left = self.size;
        self.table = table.addr().0;
        self.indirect = true;
        self.next = Some(0);
        self.next()
    }
}

impl Iterator for Walk {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let index = self.next.take().filter(|index| *index < self.size)?;
        self.left = self.left.checked_sub(1)?;
        let descriptor = self.read(index)?;
        if descriptor.refers_to_indirect_table() {
            return self.enter(descriptor);
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};

    use super::*;
    use crate::config::MemorySize;
    use crate::ram::GuestRam;

    const SIZE: u16 = 8;
    const TABLE: u64 = 0x1000;
    const OTHER_TABLE: u64 = 0x2000;
    const AVAILABLE: u64 = 0x3000;
    const USED: u64 = 0x4000;

    type Raw = (u64, u32, u16, u16);

    fn descriptor() -> impl Strategy<Value = Raw> {
        let address = prop_oneof![Just(OTHER_TABLE), Just(TABLE), any::<u64>()];
        let length = prop_oneof![
            Just(4 * 16u32),
            0..200u32,
            Just(u32::MAX),
            any::<u32>(),
            Just(16 << 16)
        ];
        // Mostly linked, sometimes indirect.
        let flags = prop::sample::select(vec![0u16, 1, 1, 1, 2, 3, 4, 5]);
        (address, length, flags, 0..SIZE + 2)
    }

    fn put(memory: &Mapping, table: u64, descriptors: &[Raw]) {
        for (place, (address, length, flags, next)) in (0..).zip(descriptors) {
            let raw = Descriptor::new(*address, *length, *flags, *next);
            let at = GuestAddress(table + 16 * place);
            memory.write_obj(raw, at).unwrap();
        }
    }

    proptest! {
        #[test]
        fn a_chain_is_walked_as_when_it_was_taken(
            table in prop::collection::vec(descriptor(), usize::from(SIZE)),
            other in prop::collection::vec(descriptor(), 6),
            head in 0..SIZE,
        ) {
            let ram = GuestRam::new(MemorySize::from_mib(16).unwrap()).unwrap();
            let memory = Arc::new(ram.mapping().clone());
            put(&memory, TABLE, &table);
            put(&memory, OTHER_TABLE, &other);
            // One entry: flags, index, head.
            memory.write_obj([0u16, 1, head], GuestAddress(AVAILABLE)).unwrap();
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_desc_table_address(Some(u32::try_from(TABLE).unwrap()), Some(0));
            queue.set_avail_ring_address(Some(u32::try_from(AVAILABLE).unwrap()), Some(0));
            queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), Some(0));
            queue.set_ready(true);
            let taken = queue.iter(Arc::clone(&memory)).unwrap().next().unwrap();
            let walk = Walk::new(memory, TABLE, SIZE, head);
            let show = |one: Descriptor| (one.addr().0, one.len(), one.flags(), one.next());
            let taken: Vec<Raw> = taken.map(show).collect();
            prop_assert_eq!(walk.map(show).collect::<Vec<_>>(), taken);
        }
    }
}
