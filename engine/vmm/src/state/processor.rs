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
    tsc_khz: u32,
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
            msrs: msrs::read(vcpu, &host.msrs)?,
            // Last: reading other state may complete what is reported here.
            events: vcpu
                .get_vcpu_events()
                .map_err(SaveError::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    pub(crate) fn restore(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), RestoreError> {
        if self.xsave.len() != host.xsave_bytes {
            return Err(RestoreError::XsaveSize {
                found: self.xsave.len(),
                expected: host.xsave_bytes,
            });
        }
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
        self.restore_msrs(vcpu, host)?;
        // Last: everything above may clear what is pending.
        vcpu.set_vcpu_events(&self.events)
            .map_err(RestoreError::kvm("KVM_SET_VCPU_EVENTS"))
    }

    fn restore_msrs(&self, vcpu: &VcpuFd, host: &Host) -> Result<(), RestoreError> {
        let (deadline, others) = msrs::split_deadline(&self.msrs);
        msrs::write(vcpu, &others)?;
        let tsc = msrs::value(&self.msrs, msrs::TSC).ok_or(RestoreError::NoTsc)?;
        if host.tsc_offset_works {
            continue_tsc(vcpu, tsc)?;
        }
        // After the TSC, which it is compared with; a deadline of zero would never fire.
        match deadline {
            Some(deadline) => msrs::write(vcpu, &[msrs::armed(deadline, tsc)]),
            None => Ok(()),
        }
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

/// Makes the guest's TSC go on from `tsc`.
///
/// Writing the TSC's MSR is not enough: KVM takes a value within a second of what it expects for an
/// attempt to synchronise vCPUs and keeps the old offset, so the guest could see its TSC go back.
fn continue_tsc(vcpu: &VcpuFd, tsc: u64) -> Result<(), RestoreError> {
    let failed = RestoreError::kvm("KVM_VCPU_TSC_OFFSET");
    let offset = sys::tsc_offset(vcpu).map_err(&failed)?;
    let now = msrs::read_one(vcpu, msrs::TSC).ok_or(RestoreError::NoTsc)?;
    let ahead = tsc.wrapping_sub(now);
    sys::set_tsc_offset(vcpu, offset.wrapping_add(ahead)).map_err(failed)
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
