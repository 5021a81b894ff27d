// SPDX-License-Identifier: Apache-2.0
//! The CPUID the guest sees: what KVM supports on this host, made the same on every host of the kind.
//!
//! Three sorts of change: bits that KVM leaves to the VMM are set; what depends on the CPU this thread
//! happens to run on (APIC ids, topology) gets fixed values for one vCPU; and features whose state
//! is not carried over (or not yet) are hidden: performance counters, nested virtualisation, control-flow
//! enforcement, AMX, processor trace, SGX, machine checks, and KVM's asynchronous page faults, steal
//! time and PV EOI. The invariant-TSC bit is hidden so that guests keep time by kvmclock, which
//! carries the frequency of the host they run on.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::CreateMachineError;

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

/// The brand string, 48 bytes.
const BRAND: &[u8; 48] =
    b"Kemari virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const BRAND_LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// XCR0 and XSS components that are hidden: CET user and supervisor, AMX configuration and data.
const HIDDEN_XSAVE_COMPONENTS: u32 = 1 << 11 | 1 << 12 | 1 << 17 | 1 << 18;

/// The CPUID for the guest on this host.
pub(crate) fn of_host(kvm: &Kvm) -> Result<Vec<CpuidLeaf>, CreateMachineError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(CreateMachineError::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    let leaves = supported.as_slice().iter().map(CpuidLeaf::from).collect();
    Ok(for_guest(leaves))
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

fn for_guest(leaves: Vec<CpuidLeaf>) -> Vec<CpuidLeaf> {
    let mut leaves: Vec<CpuidLeaf> = leaves
        .into_iter()
        .filter(|leaf| keeps(*leaf))
        .map(adjust)
        .collect();
    leaves.extend(topology_leaves());
    for (function, text) in BRAND_LEAVES.zip(BRAND.chunks_exact(16)) {
        leaves.push(brand_leaf(function, text));
    }
    resize_xsave(&mut leaves);
    leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
    leaves
}

/// Leaves that are dropped: replaced below, or of hidden features.
fn keeps(leaf: CpuidLeaf) -> bool {
    let hidden_component = leaf.function == 0xd
        && leaf.index >= 2
        && leaf.index < 32
        && HIDDEN_XSAVE_COMPONENTS & (1 << leaf.index) != 0;
    let replaced = matches!(leaf.function, 0xb | 0x1f) || BRAND_LEAVES.contains(&leaf.function);
    !(hidden_component || replaced)
}

/// Clears bits.
fn hide(register: &mut u32, bits: &[u32]) {
    for bit in bits {
        *register &= !(1 << bit);
    }
}

fn adjust(mut leaf: CpuidLeaf) -> CpuidLeaf {
    match (leaf.function, leaf.index) {
        (0x1, _) => {
            // One logical processor with APIC id 0; the cache line size stays.
            leaf.ebx = leaf.ebx & 0xff00 | leaf.ebx & 0xff | 1 << 16;
            // DTES64, MONITOR, DS-CPL, VMX, SMX, PDCM.
            hide(&mut leaf.ecx, &[2, 3, 4, 5, 6, 15]);
            // "Runs under a hypervisor" and the APIC's TSC deadline, both left to us.
            leaf.ecx |= 1 << 31 | 1 << 24;
            // Machine checks, debug store, hyper-threading.
            hide(&mut leaf.edx, &[7, 14, 21, 28]);
        }
        // Caches are shared by nobody.
        (0x4, _) => leaf.eax &= 0x3fff,
        (0x8000_001d, _) => leaf.eax &= !(0xfff << 14),
        // Only "the APIC timer always runs".
        (0x6, _) => leaf.set(leaf.eax & 1 << 2, 0, 0, 0),
        (0x7, 0) => {
            // SGX, processor trace.
            hide(&mut leaf.ebx, &[2, 25]);
            // WAITPKG, shadow stack, SGX launch control.
            hide(&mut leaf.ecx, &[5, 7, 30]);
            // User interrupts, PCONFIG, architectural LBR, branch tracking, AMX, and
            // ARCH_CAPABILITIES, whose promises may differ between two hosts.
            hide(&mut leaf.edx, &[5, 18, 19, 20, 22, 24, 25, 29]);
        }
        (0x7, 1) => {
            hide(&mut leaf.eax, &[21]);
            hide(&mut leaf.edx, &[8, 18]);
        }
        (0xd, 0) => leaf.eax &= !HIDDEN_XSAVE_COMPONENTS,
        (0xd, 1) => leaf.ecx &= !HIDDEN_XSAVE_COMPONENTS,
        // Counters, SGX, trace, AMX, architectural LBR; AMD: SVM, IBS, SEV, topology, counters.
        (
            0xa | 0x12 | 0x14 | 0x1c | 0x1d | 0x1e | 0x23 | 0x8000_000a | 0x8000_001b | 0x8000_001e
            | 0x8000_001f | 0x8000_0022,
            _,
        ) => leaf.set(0, 0, 0, 0),
        // Asynchronous page faults, steal time, PV EOI, TLB flush (needs steal time), polling
        // control, migration control.
        (0x4000_0001, _) => hide(&mut leaf.eax, &[4, 5, 6, 9, 10, 12, 14, 17]),
        // Several cores, SVM, IBS, performance counters.
        (0x8000_0001, _) => hide(&mut leaf.ecx, &[1, 2, 10, 23, 24, 28]),
        (0x8000_0007, _) => hide(&mut leaf.edx, &[8]),
        (0x8000_0008, _) => leaf.ecx = 0,
        _ => {}
    }
    leaf
}

/// Leaf 0xb: one thread in one core.
fn topology_leaves() -> [CpuidLeaf; 3] {
    let level = |index, logical, ecx| CpuidLeaf {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: 0,
        ebx: logical,
        ecx,
        edx: 0,
    };
    [level(0, 1, 1 << 8), level(1, 1, 2 << 8 | 1), level(2, 0, 2)]
}

fn brand_leaf(function: u32, text: &[u8]) -> CpuidLeaf {
    let mut words = text.chunks_exact(4).map(|word| match word {
        [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    });
    let mut next = || words.next().unwrap_or(0);
    CpuidLeaf {
        function,
        index: 0,
        flags: 0,
        eax: next(),
        ebx: next(),
        ecx: next(),
        edx: next(),
    }
}

/// Leaf 0xd.0 ECX is the size with every component enabled; hiding components may have shrunk it.
fn resize_xsave(leaves: &mut [CpuidLeaf]) {
    const LEGACY_AND_HEADER: u32 = 576;
    let end = leaves
        .iter()
        .filter(|leaf| leaf.function == 0xd && leaf.index >= 2 && leaf.ecx & 1 == 0)
        .map(|leaf| leaf.ebx.saturating_add(leaf.eax))
        .fold(LEGACY_AND_HEADER, u32::max);
    for leaf in leaves {
        if leaf.function == 0xd && leaf.index == 0 {
            leaf.ecx = end;
        }
    }
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

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidLeaf {
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

    #[test]
    fn the_cpu_this_thread_runs_on_does_not_show() {
        let on = |cpu: u32| {
            for_guest(vec![
                leaf(0x1, 0, [1, cpu << 24 | 4 << 16 | 0x0800, 0, 1 << 28]),
                leaf(0xb, 0, [1, 2, 0x100, cpu]),
                leaf(0x8000_001e, 0, [cpu, cpu, cpu, 0]),
            ])
        };
        assert_eq!(on(0), on(3));
        assert_eq!(hash(&on(0)), hash(&on(3)));
    }

    #[test]
    fn hidden_features_stay_hidden_and_ours_are_set() {
        let leaves = for_guest(vec![
            leaf(0x1, 0, [0, 0, u32::MAX, u32::MAX]),
            leaf(0x7, 0, [u32::MAX; 4]),
            leaf(0x4000_0001, 0, [u32::MAX; 4]),
        ]);
        let find = |function| {
            *leaves
                .iter()
                .find(|leaf| leaf.function == function)
                .unwrap()
        };
        assert_eq!(find(1).ecx & (1 << 5 | 1 << 31), 1 << 31);
        assert_eq!(find(7).ecx & 1 << 7, 0);
        assert_eq!(find(0x4000_0001).eax & (1 << 5 | 1 << 3), 1 << 3);
    }
}
