// SPDX-License-Identifier: Apache-2.0
//! A KVM for tests: it protects pages, logs the first write to a protected page, and knows all
//! writes. What a real KVM does between two calls, because vCPUs run, it does when told to.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;
use vmm_sys_util::errno;

use super::bitmap::Clearing;
use super::calls::{KvmCalls, Logging, Slot};
use super::ring::{DIRTY, DirtyRing, ENTRY_BYTES, RESET};
use super::tracking::Method;
use crate::dirty::{DirtyPages, PageIndex};

/// Entries of a ring; those of the real one are many more.
pub(crate) const RING_SIZE: usize = 64;
/// Entries from which on a vCPU does not enter the guest.
const SOFT_LIMIT: usize = 48;

/// The vCPU's ring is full: it leaves, and has written nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RingFull;

#[derive(Debug)]
pub(crate) struct FakeKvm {
    method: Method,
    slots: Vec<Slot>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    logging: bool,
    bitmap: DirtyPages,
    protected: DirtyPages,
    rings: Vec<Ring>,
    /// Writes of (vCPU, page) that happen when pages are about to be protected again.
    before_protecting: Vec<(usize, PageIndex)>,
    /// Those of them that happened.
    performed: Vec<PageIndex>,
    /// Entries after which the next reset ends, as if a signal came.
    reset_limit: Option<usize>,
    refuse_resets: bool,
    /// How many entries fewer (or more, if negative) than were reset the next reset tells.
    resets_lost: isize,
}

#[derive(Debug)]
struct Ring {
    memory: Arc<MmapRegion<()>>,
    written: usize,
    reset: usize,
}

impl FakeKvm {
    pub(crate) fn new(method: Method, slots: Vec<Slot>, vcpus: usize) -> Arc<Self> {
        let page_count = slots.iter().map(|slot| slot.pages).sum();
        let ring = || Ring {
            memory: Arc::new(MmapRegion::new(RING_SIZE * ENTRY_BYTES).unwrap()),
            written: 0,
            reset: 0,
        };
        Arc::new(Self {
            method,
            slots,
            state: Mutex::new(State {
                logging: false,
                bitmap: DirtyPages::none(page_count),
                protected: DirtyPages::none(page_count),
                rings: std::iter::repeat_with(ring).take(vcpus).collect(),
                before_protecting: Vec::new(),
                performed: Vec::new(),
                reset_limit: None,
                refuse_resets: false,
                resets_lost: 0,
            }),
        })
    }

    /// Our end of each ring.
    pub(crate) fn rings(&self) -> Vec<DirtyRing> {
        let state = self.state.lock().unwrap();
        let ring = |ring: &Ring| DirtyRing::over(Arc::clone(&ring.memory));
        state.rings.iter().map(ring).collect()
    }

    /// The guest writes to a page.
    pub(crate) fn write(&self, vcpu: usize, page: PageIndex) -> Result<(), RingFull> {
        self.state.lock().unwrap().write(self, vcpu, page)
    }

    /// KVM writes an entry of its own account, even into a full ring.
    pub(crate) fn push(&self, vcpu: usize, slot: u32, offset: u64) {
        self.state.lock().unwrap().rings[vcpu].push(slot, offset);
    }

    /// These pages are written when the next call comes that protects pages, before it does.
    pub(crate) fn write_before_protecting(&self, writes: &[(usize, PageIndex)]) {
        self.state.lock().unwrap().before_protecting = writes.to_vec();
    }

    /// What of that was done; what was not will not be.
    pub(crate) fn written_before_protecting(&self) -> Vec<PageIndex> {
        let mut state = self.state.lock().unwrap();
        state.before_protecting.clear();
        std::mem::take(&mut state.performed)
    }

    /// The next reset ends after this many entries.
    pub(crate) fn interrupt_next_reset(&self, after: usize) {
        self.state.lock().unwrap().reset_limit = Some(after);
    }

    /// From now on resets fail, or do not any more.
    pub(crate) fn refuse_resets(&self, refuse: bool) {
        self.state.lock().unwrap().refuse_resets = refuse;
    }

    /// The next reset tells this many entries fewer than it reset; more, if negative.
    pub(crate) fn lose_resets(&self, count: isize) {
        self.state.lock().unwrap().resets_lost = count;
    }

    /// The beginning of a call that protects pages again.
    fn protect(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        for (vcpu, page) in std::mem::take(&mut state.before_protecting) {
            // A vCPU with a full ring just does not run.
            if state.write(self, vcpu, page).is_ok() {
                state.performed.push(page);
            }
        }
        state
    }
}

impl State {
    fn write(&mut self, kvm: &FakeKvm, vcpu: usize, page: PageIndex) -> Result<(), RingFull> {
        let is_ring = matches!(kvm.method, Method::Ring { .. });
        let ring = &mut self.rings[vcpu];
        if is_ring && ring.written - ring.reset >= SOFT_LIMIT {
            return Err(RingFull);
        }
        if self.logging && self.protected.contains(page) {
            self.protected.remove(page);
            if is_ring {
                let slot = kvm.slots.iter().rfind(|slot| slot.first <= page).unwrap();
                ring.push(slot.number, page.0 - slot.first.0);
            } else {
                self.bitmap.insert(page);
            }
        }
        Ok(())
    }
}

impl Ring {
    fn flags(&self, entry: usize) -> &AtomicU32 {
        let at = entry % RING_SIZE * ENTRY_BYTES;
        self.memory.get_atomic_ref(at).unwrap()
    }

    fn push(&mut self, slot: u32, offset: u64) {
        let at = self.written % RING_SIZE * ENTRY_BYTES;
        let slots = self.memory.get_atomic_ref::<AtomicU32>(at + 4).unwrap();
        slots.store(slot, Ordering::Relaxed);
        let offsets = self.memory.get_atomic_ref::<AtomicU64>(at + 8).unwrap();
        offsets.store(offset, Ordering::Relaxed);
        self.flags(self.written).store(DIRTY, Ordering::Release);
        self.written += 1;
    }

    /// Resets the oldest entry if it was taken; gives its slot and offset.
    fn reset_one(&mut self) -> Option<(u32, u64)> {
        if self.flags(self.reset).load(Ordering::Acquire) & RESET == 0 {
            return None;
        }
        let at = self.reset % RING_SIZE * ENTRY_BYTES;
        let slot = self.memory.get_atomic_ref::<AtomicU32>(at + 4).unwrap();
        let offset = self.memory.get_atomic_ref::<AtomicU64>(at + 8).unwrap();
        let entry = (slot.load(Ordering::Relaxed), offset.load(Ordering::Relaxed));
        self.flags(self.reset).store(0, Ordering::Relaxed);
        self.reset += 1;
        Some(entry)
    }
}

impl KvmCalls for FakeKvm {
    fn set_slot(&self, slot: &Slot, logging: Logging) -> Result<(), errno::Error> {
        let mut state = self.state.lock().unwrap();
        let on = logging == Logging::On;
        if state.logging == on {
            return Ok(());
        }
        // The slots are switched together here: the last one does it.
        if Some(slot) != self.slots.last() {
            return Ok(());
        }
        state.logging = on;
        let all = DirtyPages::all(state.bitmap.page_count());
        let none = DirtyPages::none(state.bitmap.page_count());
        let initially_set = self.method == Method::Bitmap(Clearing::ManualInitiallySet);
        (state.bitmap, state.protected) = match (on, initially_set) {
            (true, true) => (all, none),
            (true, false) => (none, all),
            (false, _) => (none.clone(), none),
        };
        Ok(())
    }

    fn get_dirty_log(&self, slot: &Slot) -> Result<Vec<u64>, errno::Error> {
        let mut state = match self.method {
            Method::Bitmap(Clearing::Plain) => self.protect(),
            _ => self.state.lock().unwrap(),
        };
        let bitmap = match self.method {
            Method::Ring { .. } => return Err(errno::Error::new(libc::ENXIO)),
            Method::Bitmap(_) => state.bitmap.bitmap(slot.first, slot.pages).to_vec(),
        };
        if self.method == Method::Bitmap(Clearing::Plain) {
            state.bitmap.remove_bitmap(slot.first, 0, &bitmap);
            state
                .protected
                .insert_bitmap(slot.first, slot.pages, &bitmap);
        }
        Ok(bitmap)
    }

    fn clear_dirty_log(
        &self,
        slot: &Slot,
        first_word: usize,
        bitmap: &[u64],
    ) -> Result<(), errno::Error> {
        let mut state = self.protect();
        assert!(first_word as u64 * 64 < slot.pages && !bitmap.is_empty());
        let set: Vec<u64> = state
            .bitmap
            .bitmap(slot.first, slot.pages)
            .iter()
            .skip(first_word)
            .zip(bitmap)
            .map(|(set, wanted)| set & wanted)
            .collect();
        let first = PageIndex(slot.first.0 + first_word as u64 * 64);
        let pages = (set.len() as u64 * 64).min(slot.pages - first_word as u64 * 64);
        state.bitmap.remove_bitmap(first, 0, &set);
        state.protected.insert_bitmap(first, pages, &set);
        Ok(())
    }

    fn reset_dirty_rings(&self) -> Result<usize, errno::Error> {
        let mut state = self.protect();
        if state.refuse_resets {
            return Err(errno::Error::new(libc::EIO));
        }
        let most = state.reset_limit.take().unwrap_or(usize::MAX);
        let mut entries = Vec::new();
        for ring in &mut state.rings {
            while entries.len() < most
                && let Some(entry) = ring.reset_one()
            {
                entries.push(entry);
            }
        }
        for (number, offset) in &entries {
            let slot = self.slots.iter().find(|slot| slot.number == *number);
            if let Some(page) = slot.and_then(|slot| slot.page(*offset)) {
                state.protected.insert(page);
            }
        }
        let lost = std::mem::take(&mut state.resets_lost);
        Ok(entries.len().saturating_add_signed(-lost))
    }
}
