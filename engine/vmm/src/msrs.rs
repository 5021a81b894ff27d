// SPDX-License-Identifier: Apache-2.0
//! Which model-specific registers are part of a vCPU's state, and how they are read and written.
//!
//! The list is KVM's own (`KVM_GET_MSR_INDEX_LIST`) without what the guest's CPUID hides, plus the
//! MTRRs, which that list omits. It is settled when the machine is made. From then on every MSR
//! counts: one that cannot be read or written fails the whole save or restore.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::config::CpuModel;
use crate::error::{CreateMachineError, RestoreError, SaveError};

/// Time-stamp counter.
pub(crate) const TSC: u32 = 0x10;
/// Deadline of the local APIC's timer in TSC-deadline mode.
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
/// Miscellaneous features; bit 0 is "fast string operations".
pub(crate) const MISC_ENABLE: u32 = 0x1a0;
/// Default memory type and MTRR enables.
pub(crate) const MTRR_DEFAULT_TYPE: u32 = 0x2ff;

const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// Base and mask of the eight variable-range MTRRs that KVM has.
const MTRR_VARIABLE: std::ops::RangeInclusive<u32> = 0x200..=0x20f;

/// MSRs that some KVMs list but cannot read when the feature is absent; the guest cannot have
/// written them then either. Nothing else is skipped.
const MAY_BE_ABSENT: &[u32] = &[
    0x9e,        // SMBASE: no SMM
    0x34,        // SMI count: no SMM
    0x3b,        // TSC_ADJUST: not in CPUID
    0xe1,        // UMWAIT_CONTROL
    0xc000_0103, // TSC_AUX: no RDTSCP
    0xd90,       // BNDCFGS: no MPX
    0xda0,       // XSS
    0x1c4,
    0x1c5,       // XFD, XFD_ERR: no AMX
    0xc001_0015, // HWCR
    0x122,       // TSX_CTRL
    0x49,        // PRED_CMD: write-only
    0x48,
    0xc001_011f, // SPEC_CTRL, VIRT_SPEC_CTRL
    0xc000_0104, // AMD TSC ratio
    0x140,       // MISC_FEATURES_ENABLES
    0xce,        // PLATFORM_INFO
];

/// One register's number and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Msr {
    pub(crate) index: u32,
    pub(crate) value: u64,
}

/// Whether the guest cannot use the register, because its CPUID hides the feature.
fn hidden(index: u32) -> bool {
    matches!(index,
        // Performance monitoring: Intel counters, selectors, controls; AMD likewise.
        0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0x345 | 0x38d..=0x391 | 0x3f1..=0x3f2 | 0x4c1..=0x4c8
        | 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b | 0xc000_0300..=0xc000_0303
        // Debug store, last-branch records, processor trace.
        | 0x1d9 | 0x600 | 0x1c8 | 0x560..=0x561 | 0x570..=0x572 | 0x580..=0x587 | 0x14ce | 0x14cf
        // Nested virtualisation.
        | 0x3a | 0x480..=0x492 | 0xc001_0114 | 0xc001_0117
        // Machine checks.
        | 0x179..=0x17b | 0x400..=0x47f | 0x4d0
        // ARCH_CAPABILITIES and PERF_CAPABILITIES.
        | 0x10a
        // Control-flow enforcement.
        | 0x6a0..=0x6a8
        // SGX launch control.
        | 0x8c..=0x8f
        // Hyper-V.
        | 0x4000_0000..=0x4000_01ff
        // KVM's asynchronous page faults, steal time, PV EOI, polling and migration control.
        | 0x4b56_4d02..=0x4b56_4d08)
}

/// What a guest with a CPU of a baseline level can use, but for the MTRRs: its CPUID hides every feature
/// with more. A fixed list, because KVM's depends on the host's CPU.
const BASELINE: &[u32] = &[
    TSC,
    0x11,
    0x12,  // kvmclock in its first form
    0x140, // MISC_FEATURES_ENABLES
    0x174,
    0x175,
    0x176, // SYSENTER
    MISC_ENABLE,
    0x277, // PAT
    TSC_DEADLINE,
    0xce, // PLATFORM_INFO
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084, // SYSCALL
    0xc000_0102, // kernel's GS
    0xc001_0015, // HWCR
    0x4b56_4d00,
    0x4b56_4d01, // kvmclock
];

/// The registers that make up the state of a vCPU of this model on this host.
pub(crate) fn of_host(
    kvm: &Kvm,
    vcpu: &VcpuFd,
    model: CpuModel,
) -> Result<Vec<u32>, CreateMachineError> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(CreateMachineError::kvm("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indexes: Vec<u32> = listed
        .as_slice()
        .iter()
        .copied()
        .filter(|index| !hidden(*index))
        .filter(|index| model == CpuModel::Host || BASELINE.contains(index))
        .chain(MTRR_FIXED)
        .chain(MTRR_VARIABLE)
        .chain([MTRR_DEFAULT_TYPE])
        .collect();
    indexes.sort_unstable();
    indexes.dedup();
    let mut readable = Vec::with_capacity(indexes.len());
    for index in indexes {
        if read_one(vcpu, index).is_some() {
            readable.push(index);
        } else if MAY_BE_ABSENT.contains(&index) {
            tracing::debug!(msr = format!("{index:#x}"), "MSR is listed but absent");
        } else {
            return Err(CreateMachineError::UnreadableMsr { index });
        }
    }
    Ok(readable)
}

/// The value of one register, if it can be read.
pub(crate) fn read_one(vcpu: &VcpuFd, index: u32) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[entry(index, 0)]).ok()?;
    let count = vcpu.get_msrs(&mut msrs).ok()?;
    (count == 1)
        .then(|| msrs.as_slice().first().map(|msr| msr.data))
        .flatten()
}

pub(crate) fn read(vcpu: &VcpuFd, indexes: &[u32]) -> Result<Vec<Msr>, SaveError> {
    let mut values = Vec::with_capacity(indexes.len());
    for chunk in indexes.chunks(KVM_MAX_MSR_ENTRIES) {
        let entries: Vec<_> = chunk.iter().map(|index| entry(*index, 0)).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| SaveError::TooManyMsrs)?;
        let count = vcpu
            .get_msrs(&mut msrs)
            .map_err(SaveError::kvm("KVM_GET_MSRS"))?;
        // KVM stops at the first register it cannot read and says how many it read.
        if let Some(index) = chunk.get(count) {
            return Err(SaveError::UnreadableMsr { index: *index });
        }
        values.extend(msrs.as_slice().iter().map(|msr| Msr {
            index: msr.index,
            value: msr.data,
        }));
    }
    Ok(values)
}

pub(crate) fn write(vcpu: &VcpuFd, values: &[Msr]) -> Result<(), RestoreError> {
    for chunk in values.chunks(KVM_MAX_MSR_ENTRIES) {
        let entries: Vec<_> = chunk
            .iter()
            .map(|msr| entry(msr.index, msr.value))
            .collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| RestoreError::TooManyMsrs)?;
        let count = vcpu
            .set_msrs(&msrs)
            .map_err(RestoreError::kvm("KVM_SET_MSRS"))?;
        if let Some(refused) = chunk.get(count) {
            return Err(RestoreError::RefusedMsr {
                index: refused.index,
                value: refused.value,
            });
        }
    }
    Ok(())
}

/// The TSC deadline, and the other registers in their order (the TSC among them).
pub(crate) fn split_deadline(msrs: &[Msr]) -> (Option<Msr>, Vec<Msr>) {
    let deadline = msrs.iter().copied().find(|msr| msr.index == TSC_DEADLINE);
    let others = msrs
        .iter()
        .copied()
        .filter(|msr| msr.index != TSC_DEADLINE)
        .collect();
    (deadline, others)
}

/// The deadline to restore: a saved zero becomes the TSC itself.
///
/// KVM reports zero once the timer expired, even if its interrupt was not delivered yet, and that
/// pending interrupt is in no state. With zero the guest might never tick again; with the present
/// time the timer fires at once, and one tick too many is harmless (Firecracker #4618).
pub(crate) fn armed(deadline: Msr, tsc: u64) -> Msr {
    Msr {
        value: if deadline.value == 0 {
            tsc
        } else {
            deadline.value
        },
        ..deadline
    }
}

pub(crate) fn value(msrs: &[Msr], index: u32) -> Option<u64> {
    msrs.iter()
        .find(|msr| msr.index == index)
        .map(|msr| msr.value)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecracker_4618_a_zero_deadline_becomes_the_tsc() {
        let zero = Msr {
            index: TSC_DEADLINE,
            value: 0,
        };
        assert_eq!(armed(zero, 77).value, 77);
        assert_eq!(armed(Msr { value: 5, ..zero }, 77).value, 5);
    }

    #[test]
    fn firecracker_4099_the_deadline_is_never_among_the_others() {
        let msrs = [TSC_DEADLINE, TSC, MISC_ENABLE].map(|index| Msr { index, value: 1 });
        let (deadline, others) = split_deadline(&msrs);
        assert_eq!(deadline.map(|msr| msr.index), Some(TSC_DEADLINE));
        assert_eq!(
            others.iter().map(|msr| msr.index).collect::<Vec<_>>(),
            [TSC, MISC_ENABLE]
        );
    }
}
