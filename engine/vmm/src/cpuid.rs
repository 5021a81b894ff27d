// SPDX-License-Identifier: Apache-2.0
//! The CPUID the guest sees, settled when the machine is made.
//!
//! First a model: what this host's KVM supports, cleaned ([`host_model`]), or a level that hosts of
//! different models have in common ([`baseline`]). Then the topology
//! ([`topology`]): what depends on the CPU this thread happens to run on gets fixed values for the number
//! of vCPUs, and each vCPU its own ids. What is hashed and compared between hosts is the first vCPU's.

mod baseline;
mod brand;
mod feature;
mod host_model;
mod topology;
pub(crate) mod vendor;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::config::{CpuModel, VcpuCount};
use crate::error::CreateMachineError;
use baseline::Level;
pub(crate) use topology::of_vcpu;

/// One CPUID leaf as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// Input EAX.
    pub function: u32,
    /// Input ECX.
    pub index: u32,
    /// KVM's flags: whether the index matters.
    pub flags: u32,
    /// Output EAX.
    pub eax: u32,
    /// Output EBX.
    pub ebx: u32,
    /// Output ECX.
    pub ecx: u32,
    /// Output EDX.
    pub edx: u32,
}

/// The CPUID for a guest with such a CPU, so many times, on this host, as its first vCPU sees it.
pub(crate) fn of_host(
    kvm: &Kvm,
    model: CpuModel,
    vcpus: VcpuCount,
) -> Result<Vec<CpuidLeaf>, CreateMachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(CreateMachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let leaves = supported.as_slice().iter().map(CpuidLeaf::from).collect();
    for_guest(leaves, model, vcpus)
        .map_err(|feature| CreateMachineError::CpuModel { model, feature })
}

/// Fails with the name of the feature that the host lacks.
fn for_guest(
    supported: Vec<CpuidLeaf>,
    model: CpuModel,
    vcpus: VcpuCount,
) -> Result<Vec<CpuidLeaf>, &'static str> {
    let mut leaves = match model {
        CpuModel::Host => host_model::leaves(supported),
        CpuModel::X86_64V2 => of_level(&supported, Level::V2)?,
        CpuModel::X86_64V3 => of_level(&supported, Level::V3)?,
    };
    topology::set(&mut leaves, vcpus);
    leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
    Ok(leaves)
}

fn of_level(supported: &[CpuidLeaf], level: Level) -> Result<Vec<CpuidLeaf>, &'static str> {
    match baseline::missing(supported, level) {
        Some(feature) => Err(feature),
        None => Ok(baseline::leaves(supported, level)),
    }
}

/// In KVM's form.
pub(crate) fn to_kvm(leaves: &[CpuidLeaf]) -> Result<CpuId, CreateMachineError> {
    let entries: Vec<kvm_cpuid_entry2> = leaves.iter().map(kvm_cpuid_entry2::from).collect();
    CpuId::from_entries(&entries).map_err(|_| CreateMachineError::MissingCapability {
        capability: "room for all CPUID leaves",
    })
}

/// A hash that is the same in every build and on every host.
pub(crate) fn hash(leaves: &[CpuidLeaf]) -> u64 {
    let mut hasher = Xxh3Default::new();
    for leaf in leaves {
        for value in leaf.words() {
            hasher.update(&value.to_le_bytes());
        }
    }
    hasher.digest()
}

impl CpuidLeaf {
    fn set(&mut self, eax: u32, ebx: u32, ecx: u32, edx: u32) {
        (self.eax, self.ebx, self.ecx, self.edx) = (eax, ebx, ecx, edx);
    }

    fn words(self) -> [u32; 7] {
        [
            self.function,
            self.index,
            self.flags,
            self.eax,
            self.ebx,
            self.ecx,
            self.edx,
        ]
    }
}

impl From<&kvm_cpuid_entry2> for CpuidLeaf {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(leaf: &CpuidLeaf) -> Self {
        Self {
            function: leaf.function,
            index: leaf.index,
            flags: leaf.flags,
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            padding: [0; 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn leaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidLeaf {
        let [eax, ebx, ecx, edx] = registers;
        CpuidLeaf {
            function,
            index,
            flags: 0,
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    proptest! {
        #[test]
        fn the_cpu_this_thread_runs_on_does_not_show(cpu in 0u32..256, vcpus in 1..=VcpuCount::MAX) {
            let vcpus = VcpuCount::new(vcpus).unwrap();
            let on = |cpu: u32| {
                for_guest(vec![
                    leaf(0x1, 0, [1, cpu << 24 | 4 << 16 | 0x0800, 0, 1 << 28]),
                    leaf(0xb, 0, [1, 2, 0x100, cpu]),
                    leaf(0x1f, 0, [1, 2, 0x100, cpu]),
                    leaf(0x8000_001e, 0, [cpu, cpu, cpu, 0]),
                    leaf(0x8000_0026, 0, [1, 2, 0x100, cpu]),
                ], CpuModel::Host, vcpus).unwrap()
            };
            prop_assert_eq!(on(0), on(cpu));
            prop_assert_eq!(hash(&on(0)), hash(&on(cpu)));
        }
    }
}
