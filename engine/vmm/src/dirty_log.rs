// SPDX-License-Identifier: Apache-2.0
//! Tracking which pages changed: KVM's log joined with the writes of this program.
//!
//! Neither knows of the other's writes, so both are read and cleared together. Reading takes pages
//! out of KVM's log, so nothing harvested may be forgotten: what a failed harvest already took, and
//! what a caller hands back, is *carried* into the next harvest.
//!
//! KVM's side is one of [three ways](crate::dirty::tracking). What they have in common:
//!
//! * `start` comes before the initial copy, which reads every page. What was written before it, and
//!   before the page's `arm`, is that copy's business.
//! * `harvest` gives every page that changed since `start`, since its `arm` if that is later, or
//!   since the last harvest. It may give more; never less.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::errno;

use crate::dirty::DirtyPages;
use crate::dirty::bitmap::BitmapLog;
use crate::dirty::calls::{KvmCalls, Logging, Slot, VmCalls};
use crate::dirty::ring::DirtyRing;
use crate::dirty::rings::DirtyRings;
use crate::dirty::tracking::{DirtyTracking, Method, Offer, TrackingMode};
use crate::error::{CreateMachineError, DirtyLogError};
use crate::ram::GuestRam;
use crate::sys;

#[derive(Debug)]
pub(crate) struct DirtyLog {
    calls: Arc<dyn KvmCalls>,
    ram: GuestRam,
    slots: Vec<Slot>,
    method: Method,
    side: KvmSide,
    tracking: bool,
    carried: DirtyPages,
}

#[derive(Debug)]
enum KvmSide {
    Bitmap(BitmapLog),
    Ring(Arc<DirtyRings>),
}

impl DirtyLog {
    /// Settles how the VM, which has no vCPU yet, tracks pages, and registers RAM as its memory,
    /// untracked. The log keeps RAM mapped as long as the VM.
    pub(crate) fn new(
        vm: Arc<VmFd>,
        ram: GuestRam,
        wanted: DirtyTracking,
    ) -> Result<Self, CreateMachineError> {
        let method = Offer::of_host(&vm).choose(wanted)?;
        method.enable(&vm)?;
        let calls = Arc::new(VmCalls {
            vm,
            ram: ram.clone(),
        });
        let log = Self::with_calls(calls, ram, method);
        log.set_slots(Logging::Off)
            .map_err(CreateMachineError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(log)
    }

    fn with_calls(calls: Arc<dyn KvmCalls>, ram: GuestRam, method: Method) -> Self {
        let slots = Slot::of(&ram);
        let pages = ram.page_count();
        let side = match method {
            Method::Bitmap(clearing) => {
                KvmSide::Bitmap(BitmapLog::new(slots.clone(), pages, clearing))
            }
            Method::Ring { .. } => {
                let rings = DirtyRings::new(Arc::clone(&calls), slots.clone(), pages);
                KvmSide::Ring(Arc::new(rings))
            }
        };
        Self {
            calls,
            ram,
            slots,
            method,
            side,
            tracking: false,
            carried: DirtyPages::none(pages),
        }
    }

    /// To be called for every vCPU, before it runs.
    pub(crate) fn add_vcpu(&self, vcpu: &VcpuFd) -> Result<(), CreateMachineError> {
        let (KvmSide::Ring(rings), Method::Ring { bytes, .. }) = (&self.side, self.method) else {
            return Ok(());
        };
        let ring = sys::vcpu_file(vcpu)
            .and_then(|file| DirtyRing::map(file, bytes))
            .map_err(CreateMachineError::DirtyRing)?;
        rings.add(ring);
        Ok(())
    }

    /// What a vCPU thread needs when its vCPU's ring is full; `None` where there are no rings.
    pub(crate) fn rings(&self) -> Option<Arc<DirtyRings>> {
        match &self.side {
            KvmSide::Ring(rings) => Some(Arc::clone(rings)),
            KvmSide::Bitmap(_) => None,
        }
    }

    pub(crate) fn mode(&self) -> TrackingMode {
        self.method.mode()
    }

    pub(crate) fn start(&mut self) -> Result<(), DirtyLogError> {
        self.set_slots(Logging::On)
            .map_err(DirtyLogError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        if !self.tracking
            && let KvmSide::Bitmap(log) = &mut self.side
        {
            log.started();
        }
        self.carried = DirtyPages::none(self.ram.page_count());
        // What was written before tracking began is the initial copy's business. It is read after
        // this call returned, so a write forgotten here is seen there.
        self.ram
            .take_written(&mut DirtyPages::none(self.ram.page_count()));
        self.tracking = true;
        Ok(())
    }

    /// The initial copy is about to read these pages: from now on their changes are noticed. Pages
    /// that were armed before stay so.
    pub(crate) fn arm(&mut self, pages: Range<u64>) -> Result<(), DirtyLogError> {
        match &mut self.side {
            KvmSide::Bitmap(log) if self.tracking => log.arm(self.calls.as_ref(), pages),
            KvmSide::Bitmap(_) | KvmSide::Ring(_) => Ok(()),
        }
    }

    pub(crate) fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.tracking = false;
        self.carried = DirtyPages::none(self.ram.page_count());
        self.set_slots(Logging::Off)
            .map_err(DirtyLogError::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        match &self.side {
            KvmSide::Ring(rings) => rings
                .discard()
                .map_err(DirtyLogError::kvm("KVM_RESET_DIRTY_RINGS")),
            KvmSide::Bitmap(_) => Ok(()),
        }
    }

    pub(crate) fn harvest(&mut self) -> Result<DirtyPages, DirtyLogError> {
        if !self.tracking {
            return Err(DirtyLogError::NotTracking);
        }
        match &mut self.side {
            KvmSide::Bitmap(log) => log.harvest(self.calls.as_ref(), &mut self.carried)?,
            KvmSide::Ring(rings) => rings
                .harvest(&mut self.carried)
                .map_err(DirtyLogError::kvm("KVM_RESET_DIRTY_RINGS"))?,
        }
        self.ram.take_written(&mut self.carried);
        let none = DirtyPages::none(self.ram.page_count());
        Ok(std::mem::replace(&mut self.carried, none))
    }

    /// Hands pages back: they will be in the next harvest.
    pub(crate) fn carry(&mut self, pages: &DirtyPages) {
        self.carried.union(pages);
    }

    fn set_slots(&self, logging: Logging) -> Result<(), errno::Error> {
        self.slots
            .iter()
            .try_for_each(|slot| self.calls.set_slot(slot, logging))
    }
}
