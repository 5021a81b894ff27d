// SPDX-License-Identifier: Apache-2.0
//! Tracking which pages changed: KVM's dirty log, joined with the writes of this program.
//!
//! Neither knows of the other's writes, so both are read and cleared together. Reading KVM's log
//! clears it (plain `KVM_GET_DIRTY_LOG`, which also write-protects the pages again), so nothing
//! harvested may be forgotten: what a failed harvest already took, and what a caller hands back,
//! is *carried* into the next harvest.
//!
//! This is the bitmap way of tracking. The dirty ring, when it comes, goes beside it behind the same
//! three calls.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryRegion};
use vmm_sys_util::errno;

use crate::dirty::{DirtyPages, PAGE_SIZE};
use crate::error::DirtyLogError;
use crate::ram::GuestRam;
use crate::sys;

#[derive(Debug)]
pub(crate) struct DirtyLog {
    vm: Arc<VmFd>,
    ram: GuestRam,
    tracking: bool,
    carried: DirtyPages,
}

impl DirtyLog {
    /// Registers RAM as the VM's memory, untracked. The log keeps RAM mapped as long as the VM.
    pub(crate) fn new(vm: Arc<VmFd>, ram: GuestRam) -> Result<Self, errno::Error> {
        let carried = DirtyPages::none(ram.page_count());
        let log = Self {
            vm,
            ram,
            tracking: false,
            carried,
        };
        log.set_regions(0)?;
        Ok(log)
    }

    pub(crate) fn start(&mut self) -> Result<(), DirtyLogError> {
        self.set_regions(KVM_MEM_LOG_DIRTY_PAGES)
            .map_err(DirtyLogError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        self.carried = DirtyPages::none(self.ram.page_count());
        // What was written before tracking began is the initial copy's business. It is read after
        // this call returned, so a write forgotten here is seen there.
        self.ram
            .take_written(&mut DirtyPages::none(self.ram.page_count()));
        self.tracking = true;
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.tracking = false;
        self.carried = DirtyPages::none(self.ram.page_count());
        self.set_regions(0)
            .map_err(DirtyLogError::kvm("KVM_SET_USER_MEMORY_REGION"))
    }

    pub(crate) fn harvest(&mut self) -> Result<DirtyPages, DirtyLogError> {
        if !self.tracking {
            return Err(DirtyLogError::NotTracking);
        }
        for ((first, region), slot) in self.ram.regions().zip(0..) {
            let bytes = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let bitmap = self
                .vm
                .get_dirty_log(slot, bytes)
                .map_err(DirtyLogError::kvm("KVM_GET_DIRTY_LOG"))?;
            self.carried
                .insert_bitmap(first, region.len() / PAGE_SIZE as u64, &bitmap);
        }
        self.ram.take_written(&mut self.carried);
        let none = DirtyPages::none(self.ram.page_count());
        Ok(std::mem::replace(&mut self.carried, none))
    }

    /// Hands pages back: they will be in the next harvest.
    pub(crate) fn carry(&mut self, pages: &DirtyPages) {
        self.carried.union(pages);
    }

    fn set_regions(&self, flags: u32) -> Result<(), errno::Error> {
        for ((_, region), slot) in self.ram.regions().zip(0..) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: sys::host_address(region),
            };
            // SAFETY: the region is mapped with this length, and both `self` and the machine hold
            // the mapping as long as they hold the VM.
            unsafe { sys::set_memory_region(&self.vm, slot)? };
        }
        Ok(())
    }
}
