// SPDX-License-Identifier: Apache-2.0
//! State of one vCPU: what is read and written, and in which order.
//!
//! Reading and writing follow the order the KVM VMMs agree on; each step that must come before
//! another says why. The vCPU must be parked and drained.

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events,
    kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::error::{RestoreError, SaveError};
use crate::host::Host;
use crate::msrs::{self, Msr};
use crate::sys;

/// Largest relative deviation of TSC frequencies that needs no scaling, in parts per million; KVM's
/// and QEMU's limit too.
pub(crate) const TSC_TOLERANCE_PPM: u64 = 250;

/// State of one vCPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    pub(crate) regs: kvm_regs,
    system: SystemRegisters,
    xsave: Vec<u8>,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    pub(crate) tsc_khz: u32,
    /// Where the host has one that works.
    pub(crate) tsc_offset: Option<u64>,
    pub(crate) msrs: Vec<Msr>,
    events: kvm_vcpu_events,
}

/// Segment, control and descriptor-table registers; the PDPTRs too where KVM can tell them.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SystemRegisters {
    base: kvm_sregs,
    /// Flags and page-directory-pointer entries of `kvm_sregs2`.
    extended: Option<(u64, [u64; 4])>,
}

impl VcpuState {
    pub(crate) fn save(vcpu: &VcpuFd, host: &Host) -> Result<Self, SaveError> {
        // First: it lets a pending INIT or SIPI take effect, which changes CS, RIP and the LAPIC.
        let mp_state = vcpu
            .get_mp_state()
            .map_err(SaveError::kvm("KVM_GET_MP_STATE"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(SaveError::kvm("KVM_GET_REGS"))?,
            system: SystemRegisters::save(vcpu, host)?,
            xsave: sys::xsave(vcpu, host.xsave_bytes).map_err(SaveError::kvm("KVM_GET_XSAVE2"))?,
            xcrs: save_xcrs(vcpu, host)?,
            debug: vcpu
                .get_debug_regs()
                .map_err(SaveError::kvm("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(SaveError::kvm("KVM_GET_LAPIC"))?,
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(SaveError::kvm("KVM_GET_TSC_KHZ"))?,
            tsc_offset: save_tsc_offset(vcpu, host)?,
            msrs: msrs::read(vcpu, &host.msrs)?,
            // Last: reading other state may complete what is reported here.
            events: vcpu
                .get_vcpu_events()
                .map_err(SaveError::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Refuses a state that cannot be loaded on this host, before anything is changed.
    pub(crate) fn check_fits(&self, host: &Host) -> Result<(), RestoreError> {
        if self.xsave.len() != host.xsave_bytes {
            return Err(RestoreError::XsaveSize {
                found: self.xsave.len(),
                expected: host.xsave_bytes,
            });
        }
        self.tsc().map(drop)
    }

    /// Everything but what depends on the time-stamp counter's final value, or must come after that.
    pub(crate) fn restore_registers(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), RestoreError> {
        self.restore_tsc_frequency(vcpu, host)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(RestoreError::kvm("KVM_SET_MP_STATE"))?;
        // Before the events: it clears a pending exception.
        vcpu.set_regs(&self.regs)
            .map_err(RestoreError::kvm("KVM_SET_REGS"))?;
        // Before the LAPIC: it carries the APIC base, and with it the x2APIC mode.
        self.system.restore(vcpu, host)?;
        sys::set_xsave(vcpu, &self.xsave).map_err(RestoreError::kvm("KVM_SET_XSAVE"))?;
        if let Some(xcrs) = &self.xcrs {
            vcpu.set_xcrs(xcrs)
                .map_err(RestoreError::kvm("KVM_SET_XCRS"))?;
        }
        vcpu.set_debug_regs(&self.debug)
            .map_err(RestoreError::kvm("KVM_SET_DEBUGREGS"))?;
        // Before the MSRs: the timer mode decides what a TSC deadline means.
        vcpu.set_lapic(&self.lapic)
            .map_err(RestoreError::kvm("KVM_SET_LAPIC"))?;
        let (_, others) = msrs::split_deadline(&self.msrs);
        msrs::write(vcpu, &others)
    }

    /// What comes last, after the time-stamp counters of all vCPUs were set.
    pub(crate) fn restore_deadline_and_events(&self, vcpu: &VcpuFd) -> Result<(), RestoreError> {
        // Compared with the counter when written; a deadline of zero would never fire.
        if let (Some(deadline), _) = msrs::split_deadline(&self.msrs) {
            msrs::write(vcpu, &[msrs::armed(deadline, self.tsc()?)])?;
        }
        // Everything before may clear what is pending. This also forgets an INIT that the old guest
        // sent and this vCPU has not noticed; a start-up IPI without it does nothing.
        vcpu.set_vcpu_events(&self.events)
            .map_err(RestoreError::kvm("KVM_SET_VCPU_EVENTS"))
    }

    /// The saved time-stamp counter.
    pub(crate) fn tsc(&self) -> Result<u64, RestoreError> {
        msrs::value(&self.msrs, msrs::TSC).ok_or(RestoreError::NoTsc)
    }

    fn restore_tsc_frequency(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), RestoreError> {
        let here = vcpu
            .get_tsc_khz()
            .map_err(RestoreError::kvm("KVM_GET_TSC_KHZ"))?;
        if host.tsc_scaling && deviation_ppm(self.tsc_khz, here) > TSC_TOLERANCE_PPM {
            vcpu.set_tsc_khz(self.tsc_khz)
                .map_err(RestoreError::kvm("KVM_SET_TSC_KHZ"))?;
        }
        Ok(())
    }
}

fn save_xcrs(vcpu: &VcpuFd, host: &Host) -> Result<Option<kvm_xcrs>, SaveError> {
    if !host.xcrs {
        return Ok(None);
    }
    let xcrs = vcpu.get_xcrs().map_err(SaveError::kvm("KVM_GET_XCRS"))?;
    Ok(Some(xcrs))
}

/// Difference of two frequencies in parts per million of the first.
pub(crate) fn deviation_ppm(one: u32, other: u32) -> u64 {
    u64::from(one.abs_diff(other)) * 1_000_000 / u64::from(one.max(1))
}

fn save_tsc_offset(vcpu: &VcpuFd, host: &Host) -> Result<Option<u64>, SaveError> {
    if !host.tsc_offset_works {
        return Ok(None);
    }
    let offset = sys::tsc_offset(vcpu).map_err(SaveError::kvm("KVM_VCPU_TSC_OFFSET"))?;
    Ok(Some(offset))
}

impl SystemRegisters {
    fn save(vcpu: &VcpuFd, host: &Host) -> Result<Self, SaveError> {
        if !host.sregs2 {
            let base = vcpu.get_sregs().map_err(SaveError::kvm("KVM_GET_SREGS"))?;
            return Ok(Self {
                base,
                extended: None,
            });
        }
        let sregs = sys::sregs2(vcpu).map_err(SaveError::kvm("KVM_GET_SREGS2"))?;
        Ok(Self {
            base: base_of(&sregs),
            extended: Some((sregs.flags, sregs.pdptrs)),
        })
    }

    fn restore(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), RestoreError> {
        match self.extended {
            Some((flags, pdptrs)) if host.sregs2 => {
                sys::set_sregs2(vcpu, &with_pdptrs(&self.base, flags, pdptrs))
                    .map_err(RestoreError::kvm("KVM_SET_SREGS2"))
            }
            _ => vcpu
                .set_sregs(&self.base)
                .map_err(RestoreError::kvm("KVM_SET_SREGS")),
        }
    }
}

/// The part that both structures have. An interrupt being injected is in the vCPU events.
fn base_of(from: &kvm_sregs2) -> kvm_sregs {
    kvm_sregs {
        cs: from.cs,
        ds: from.ds,
        es: from.es,
        fs: from.fs,
        gs: from.gs,
        ss: from.ss,
        tr: from.tr,
        ldt: from.ldt,
        gdt: from.gdt,
        idt: from.idt,
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base: from.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

fn with_pdptrs(from: &kvm_sregs, flags: u64, pdptrs: [u64; 4]) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: from.cs,
        ds: from.ds,
        es: from.es,
        fs: from.fs,
        gs: from.gs,
        ss: from.ss,
        tr: from.tr,
        ldt: from.ldt,
        gdt: from.gdt,
        idt: from.idt,
        cr0: from.cr0,
        cr2: from.cr2,
        cr3: from.cr3,
        cr4: from.cr4,
        cr8: from.cr8,
        efer: from.efer,
        apic_base: from.apic_base,
        flags,
        pdptrs,
    }
}
