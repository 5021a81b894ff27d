// SPDX-License-Identifier: Apache-2.0
//! One vCPU's dirty ring: memory shared with KVM, where it writes down each page that the vCPU
//! dirties (KVM API, section 8.29).
//!
//! ```text
//! entry:  flags u32 | slot u32 | offset in the slot u64
//! flags:  0 empty ──KVM──▶ DIRTY ──we──▶ RESET ──KVM_RESET_DIRTY_RINGS──▶ 0
//! ```
//!
//! KVM writes an entry, then its flag; so the flag is read first (acquire), and set to RESET
//! (release) only after the entry was read. Entries are taken in order: the first that is not DIRTY
//! ends the harvest. No entry may change before it was reset; KVM promises that by stopping the vCPU
//! while the ring is nearly full. The content is KVM's, yet nothing here trusts it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::KVM_DIRTY_LOG_PAGE_OFFSET;
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{FileOffset, VolatileMemory};

use crate::dirty::PAGE_SIZE;

/// Bytes of an entry (`struct kvm_dirty_gfn`).
pub(crate) const ENTRY_BYTES: usize = 16;
const FLAGS_AT: usize = 0;
const SLOT_AT: usize = 4;
const OFFSET_AT: usize = 8;

/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET`.
pub(crate) const DIRTY: u32 = 1;
pub(crate) const RESET: u32 = 2;

/// A page that KVM wrote down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The slot's number, and above it its address space.
    pub(crate) slot: u32,
    /// The page's offset in the slot.
    pub(crate) offset: u64,
}

/// The reading end of a ring.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    memory: Arc<MmapRegion<()>>,
    /// Number of entries.
    size: usize,
    /// The entry that is written next.
    next: usize,
    /// Entries taken that KVM was not yet asked to reset.
    taken: usize,
}

/// KVM wrote more entries than the ring has, so some were written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun;

impl DirtyRing {
    /// Maps the ring of `bytes` of the vCPU whose file this is.
    pub(crate) fn map(vcpu: File, bytes: usize) -> io::Result<Self> {
        let start = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE as u64;
        let memory = MmapRegion::from_file(FileOffset::new(vcpu, start), bytes).map_err(
            |error| match error {
                MmapRegionError::Mmap(error) => error,
                other => io::Error::other(other),
            },
        )?;
        Ok(Self::over(Arc::new(memory)))
    }

    /// The ring in this memory.
    pub(crate) fn over(memory: Arc<MmapRegion<()>>) -> Self {
        Self {
            size: memory.size() / ENTRY_BYTES,
            memory,
            next: 0,
            taken: 0,
        }
    }

    /// Gives every entry that is there to `each` and marks it taken. Ends after one round at the
    /// latest, even if the other side writes without end.
    pub(crate) fn harvest(&mut self, mut each: impl FnMut(Entry)) -> Result<usize, Overrun> {
        for count in 0..self.size {
            let Some(entry) = self.take() else {
                return Ok(count);
            };
            each(entry);
            self.taken += 1;
            if self.taken > self.size {
                return Err(Overrun);
            }
        }
        Ok(self.size)
    }

    /// What was taken is being reset.
    pub(crate) fn reset(&mut self) {
        self.taken = 0;
    }

    fn take(&mut self) -> Option<Entry> {
        let at = self.next * ENTRY_BYTES;
        let flags = self
            .memory
            .get_atomic_ref::<AtomicU32>(at + FLAGS_AT)
            .ok()?;
        if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
            return None;
        }
        let slot = self.memory.get_atomic_ref::<AtomicU32>(at + SLOT_AT).ok()?;
        let offset = self
            .memory
            .get_atomic_ref::<AtomicU64>(at + OFFSET_AT)
            .ok()?;
        let entry = Entry {
            slot: slot.load(Ordering::Relaxed),
            offset: offset.load(Ordering::Relaxed),
        };
        flags.store(RESET, Ordering::Release);
        self.next = (self.next + 1) % self.size;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 256;

    /// The writing end, as KVM is.
    struct Writer {
        memory: Arc<MmapRegion<()>>,
        next: usize,
        reset: usize,
    }

    impl Writer {
        fn word(&self, entry: usize, at: usize) -> &AtomicU32 {
            let at = entry % SIZE * ENTRY_BYTES + at;
            self.memory.get_atomic_ref(at).unwrap()
        }

        fn write(&mut self, entry: Entry) {
            let offset = self.next % SIZE * ENTRY_BYTES + OFFSET_AT;
            let offset = self.memory.get_atomic_ref::<AtomicU64>(offset).unwrap();
            offset.store(entry.offset, Ordering::Relaxed);
            self.word(self.next, SLOT_AT)
                .store(entry.slot, Ordering::Relaxed);
            self.word(self.next, FLAGS_AT)
                .store(DIRTY, Ordering::Release);
            self.next += 1;
        }

        fn reset(&mut self) -> usize {
            let before = self.reset;
            while self.word(self.reset, FLAGS_AT).load(Ordering::Acquire) & RESET != 0 {
                self.word(self.reset, FLAGS_AT).store(0, Ordering::Relaxed);
                self.reset += 1;
            }
            self.reset - before
        }
    }

    fn ends() -> (Writer, DirtyRing) {
        let memory = Arc::new(MmapRegion::new(SIZE * ENTRY_BYTES).unwrap());
        let writer = Writer {
            memory: Arc::clone(&memory),
            next: 0,
            reset: 0,
        };
        (writer, DirtyRing::over(memory))
    }

    fn entry(number: u64) -> Entry {
        Entry {
            slot: u32::try_from(number % 2).unwrap(),
            offset: number,
        }
    }

    fn harvest(ring: &mut DirtyRing) -> Vec<Entry> {
        let mut seen = Vec::new();
        let count = ring.harvest(|entry| seen.push(entry)).unwrap();
        assert_eq!(count, seen.len());
        seen
    }

    #[test]
    fn an_empty_ring_yields_nothing() {
        let (_, mut ring) = ends();
        assert!(harvest(&mut ring).is_empty());
    }

    #[test]
    fn a_full_ring_is_taken_once_and_starts_over_after_its_reset() {
        let (mut writer, mut ring) = ends();
        for round in 0..3 {
            let entries: Vec<Entry> = (0..SIZE as u64).map(|n| entry(round * 1000 + n)).collect();
            entries.iter().for_each(|entry| writer.write(*entry));
            assert_eq!(harvest(&mut ring), entries);
            // All entries say RESET now, the next one included.
            assert!(harvest(&mut ring).is_empty());
            assert_eq!(writer.reset(), SIZE);
            ring.reset();
        }
    }

    #[test]
    fn an_entry_whose_flag_is_not_yet_there_is_left_for_later() {
        let (mut writer, mut ring) = ends();
        writer.write(entry(1));
        // KVM has written the second one's slot and offset, but not its flag.
        writer.write(entry(2));
        writer.word(1, FLAGS_AT).store(0, Ordering::Relaxed);
        assert_eq!(harvest(&mut ring), [entry(1)]);
        writer.word(1, FLAGS_AT).store(DIRTY, Ordering::Release);
        assert_eq!(harvest(&mut ring), [entry(2)]);
    }

    #[test]
    fn entries_written_over_before_their_reset_are_an_overrun() {
        let (mut writer, mut ring) = ends();
        (0..SIZE as u64).for_each(|n| writer.write(entry(n)));
        assert_eq!(ring.harvest(drop), Ok(SIZE));
        writer.write(entry(0));
        assert_eq!(ring.harvest(drop), Err(Overrun));
    }

    #[test]
    fn a_writer_without_end_does_not_keep_the_harvest_busy_without_end() {
        let (mut writer, mut ring) = ends();
        (0..SIZE as u64).for_each(|n| writer.write(entry(n)));
        let mut given = 0;
        let result = ring.harvest(|_| {
            given += 1;
            writer.write(entry(given));
        });
        assert_eq!((result, given), (Ok(SIZE), SIZE as u64));
    }

    proptest! {
        /// Whatever the lengths of the steps, what is written is what is read, in order.
        #[test]
        fn nothing_is_lost_or_invented(steps in proptest::collection::vec((0..100u64, any::<bool>()), 1..200)) {
            let (mut writer, mut ring) = ends();
            let (mut written, mut seen) = (0, Vec::new());
            let mut unreset = 0;
            for (count, resets) in steps {
                let room = (SIZE - (writer.next - writer.reset)) as u64;
                for _ in 0..count.min(room) {
                    writer.write(entry(written));
                    written += 1;
                }
                let harvest = harvest(&mut ring);
                unreset += harvest.len();
                seen.extend(harvest);
                if resets {
                    prop_assert_eq!(writer.reset(), unreset);
                    ring.reset();
                    unreset = 0;
                }
            }
            prop_assert_eq!(seen, (0..written).map(entry).collect::<Vec<_>>());
        }

        /// Garbage in the ring ends nothing but the trust in it.
        #[test]
        fn garbage_is_read_within_bounds(words in proptest::collection::vec(any::<u32>(), SIZE * 4)) {
            let (writer, mut ring) = ends();
            for (number, word) in words.iter().enumerate() {
                writer.word(number / 4, number % 4 * 4).store(*word, Ordering::Relaxed);
            }
            let mut given = 0;
            let _ = ring.harvest(|_| given += 1);
            prop_assert!(given <= SIZE);
        }
    }
}
