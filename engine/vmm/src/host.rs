// SPDX-License-Identifier: Apache-2.0
//! What KVM on this host can do, asked once per machine.

use std::fs::File;
use std::sync::OnceLock;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::errno;

use crate::config::{CpuModel, VcpuCount};
use crate::cpuid::{self, CpuidLeaf};
use crate::error::CreateMachineError;
use crate::{msrs, sys};

/// The part of KVM's abilities that saving and restoring depend on.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Bytes of the XSAVE area.
    pub(crate) xsave_bytes: usize,
    /// Whether there are extended control registers (the host's CPU has XSAVE).
    pub(crate) xcrs: bool,
    /// Whether page-directory pointers can be read and written.
    pub(crate) sregs2: bool,
    /// Whether the guest's TSC can be given another offset, with effect.
    pub(crate) tsc_offset_works: bool,
    /// Whether the guest's TSC can run at another frequency than the host's.
    pub(crate) tsc_scaling: bool,
    /// The guest's TSC frequency when not scaled.
    pub(crate) tsc_khz: u32,
    /// The model-specific registers of a vCPU's state.
    pub(crate) msrs: Vec<u32>,
    /// What the guest sees of the CPU.
    pub(crate) cpuid: Vec<CpuidLeaf>,
    /// Hash of `cpuid`.
    pub(crate) cpuid_hash: u64,
}

impl Host {
    pub(crate) fn probe(
        kvm: &Kvm,
        vm: &VmFd,
        vcpu: &VcpuFd,
        model: CpuModel,
        cpuid: Vec<CpuidLeaf>,
    ) -> Result<Self, CreateMachineError> {
        let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        if xsave_bytes == 0 {
            return Err(CreateMachineError::MissingCapability {
                capability: "KVM_CAP_XSAVE2",
            });
        }
        Ok(Self {
            xsave_bytes: xsave_bytes.max(4096).next_multiple_of(4),
            xcrs: kvm.check_extension(Cap::Xcrs),
            sregs2: sys::sregs2(vcpu).is_ok(),
            tsc_offset_works: tsc_offset_works(vcpu),
            tsc_scaling: kvm.check_extension(Cap::TscControl),
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(CreateMachineError::kvm("KVM_GET_TSC_KHZ"))?,
            msrs: msrs::of_host(kvm, vcpu, model)?,
            cpuid_hash: cpuid::hash(&cpuid),
            cpuid,
        })
    }
}

/// `/dev/kvm`, opened at the first use and kept: a process that has given up its rights since then
/// still makes machines. Fails with the remedy where there is a usual reason.
pub(crate) fn open_kvm() -> Result<&'static Kvm, CreateMachineError> {
    static KVM: OnceLock<Kvm> = OnceLock::new();
    if let Some(kvm) = KVM.get() {
        return Ok(kvm);
    }
    let kvm = Kvm::new().map_err(why_not_opened)?;
    Ok(KVM.get_or_init(|| kvm))
}

/// Opens `/dev/kvm` for all machines that this process will make, before it gives up its rights.
///
/// # Errors
/// KVM is absent or not permitted.
pub fn hold_kvm() -> Result<(), CreateMachineError> {
    open_kvm().map(drop)
}

fn why_not_opened(error: errno::Error) -> CreateMachineError {
    match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => CreateMachineError::NoKvm,
        libc::EACCES | libc::EPERM => CreateMachineError::KvmPermission,
        _ => CreateMachineError::OpenKvm(error),
    }
}

/// Refuses a KVM that lacks what every machine needs.
pub(crate) fn check_capabilities(kvm: &Kvm) -> Result<(), CreateMachineError> {
    let needed = [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Pit2, "KVM_CAP_PIT2"),
        (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    match needed
        .into_iter()
        .find(|(cap, _)| !kvm.check_extension(*cap))
    {
        Some((_, capability)) => Err(CreateMachineError::MissingCapability { capability }),
        None => Ok(()),
    }
}

/// Refuses more vCPUs than KVM runs in one VM.
pub(crate) fn check_vcpus(kvm: &Kvm, count: VcpuCount) -> Result<(), CreateMachineError> {
    let limit = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id());
    if usize::try_from(count.get()).is_ok_and(|count| count <= limit) {
        return Ok(());
    }
    Err(CreateMachineError::TooManyVcpus { count, limit })
}

/// Some KVMs (kvm_pvm) accept an offset and ignore it: the guest reads the host's TSC.
fn tsc_offset_works(vcpu: &VcpuFd) -> bool {
    /// Far enough that no time passing between two calls can be mistaken for it.
    const STEP: u64 = 1 << 50;
    let try_it = || {
        let offset = sys::tsc_offset(vcpu).ok()?;
        let before = msrs::read_one(vcpu, msrs::TSC)?;
        sys::set_tsc_offset(vcpu, offset.wrapping_add(STEP)).ok()?;
        let after = msrs::read_one(vcpu, msrs::TSC)?;
        sys::set_tsc_offset(vcpu, offset).ok()?;
        Some(after.wrapping_sub(before) >= STEP)
    };
    try_it().unwrap_or(false)
}

/// Whether `/dev/kvm` exists and can be opened; for tests and for messages.
#[must_use]
pub fn kvm_is_usable() -> bool {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_cannot_be_opened_comes_with_the_remedy() {
        let said = |number| why_not_opened(errno::Error::new(number)).to_string();
        assert!(said(libc::ENOENT).contains("load the module kvm_amd or kvm_intel"));
        assert!(said(libc::EACCES).contains("run as root, or as a user in the group kvm"));
        assert_eq!(said(libc::EIO), "Cannot open /dev/kvm");
    }
}
