// SPDX-License-Identifier: Apache-2.0
//! What dirty tracking asks of KVM, as a trait, so that the tracking can be tested against a KVM
//! whose every write is known.

use std::fmt::Debug;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryRegion};
use vmm_sys_util::errno;

use crate::dirty::{PAGE_SIZE, PageIndex};
use crate::ram::GuestRam;
use crate::sys;

/// A memory slot of the VM: a contiguous part of RAM. Slots follow each other without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    /// Its first page.
    pub(crate) first: PageIndex,
    /// How many pages it has.
    pub(crate) pages: u64,
}

impl Slot {
    /// The slots that RAM is registered as.
    pub(crate) fn of(ram: &GuestRam) -> Vec<Self> {
        let slot = |((first, region), number): ((PageIndex, &_), u32)| Self {
            number,
            first,
            pages: GuestMemoryRegion::len(region) / PAGE_SIZE as u64,
        };
        ram.regions().zip(0..).map(slot).collect()
    }

    /// The page at this offset into the slot.
    pub(crate) fn page(&self, offset: u64) -> Option<PageIndex> {
        (offset < self.pages).then(|| PageIndex(self.first.0 + offset))
    }
}

/// Whether KVM logs the writes to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logging {
    Off,
    On,
}

/// The calls; sections 4.8, 4.35, 4.117 and 8.29 of the KVM API.
pub(crate) trait KvmCalls: Debug + Send + Sync {
    /// `KVM_SET_USER_MEMORY_REGION`: registers the slot, or changes its logging.
    fn set_slot(&self, slot: &Slot, logging: Logging) -> Result<(), errno::Error>;

    /// `KVM_GET_DIRTY_LOG`: one bit per page of the slot.
    fn get_dirty_log(&self, slot: &Slot) -> Result<Vec<u64>, errno::Error>;

    /// `KVM_CLEAR_DIRTY_LOG`: clears the bits set in `bitmap`, whose bit 0 is page `first_word * 64`
    /// of the slot, and protects their pages again.
    fn clear_dirty_log(
        &self,
        slot: &Slot,
        first_word: usize,
        bitmap: &[u64],
    ) -> Result<(), errno::Error>;

    /// `KVM_RESET_DIRTY_RINGS`: how many harvested entries of all rings are free again, and their
    /// pages protected.
    fn reset_dirty_rings(&self) -> Result<usize, errno::Error>;
}

/// The real KVM. Keeps RAM mapped as long as the VM.
#[derive(Debug)]
pub(crate) struct VmCalls {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: GuestRam,
}

impl KvmCalls for VmCalls {
    fn set_slot(&self, slot: &Slot, logging: Logging) -> Result<(), errno::Error> {
        let mut regions = self.ram.regions();
        let (_, region) = regions
            .find(|(first, _)| *first == slot.first)
            .ok_or_else(|| errno::Error::new(libc::EINVAL))?;
        let description = kvm_userspace_memory_region {
            slot: slot.number,
            flags: match logging {
                Logging::Off => 0,
                Logging::On => KVM_MEM_LOG_DIRTY_PAGES,
            },
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: sys::host_address(region),
        };
        // SAFETY: the region is mapped with this length, and both `self` and the machine hold the
        // mapping as long as they hold the VM.
        unsafe { sys::set_memory_region(&self.vm, description) }
    }

    fn get_dirty_log(&self, slot: &Slot) -> Result<Vec<u64>, errno::Error> {
        let bytes = usize::try_from(slot.pages).unwrap_or(usize::MAX / PAGE_SIZE) * PAGE_SIZE;
        self.vm.get_dirty_log(slot.number, bytes)
    }

    fn clear_dirty_log(
        &self,
        slot: &Slot,
        first_word: usize,
        bitmap: &[u64],
    ) -> Result<(), errno::Error> {
        let first_page = first_word as u64 * 64;
        // The last word of a slot may be cut short by the end of the slot, no other.
        let pages = (bitmap.len() as u64 * 64).min(slot.pages.saturating_sub(first_page));
        sys::clear_dirty_log(&self.vm, slot.number, first_page, pages, bitmap)
    }

    fn reset_dirty_rings(&self) -> Result<usize, errno::Error> {
        sys::reset_dirty_rings(&self.vm)
    }
}
