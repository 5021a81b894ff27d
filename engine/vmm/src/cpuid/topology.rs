// SPDX-License-Identifier: Apache-2.0
//! How the guest's CPUs lie together: one socket of as many cores as there are vCPUs, one thread each.
//!
//! Caches of the first and second level belong to one core, the third level to all. Sources: Intel SDM
//! volume 2, CPUID; AMD APM volume 3, appendix E. APIC ids are the vCPUs' numbers.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::CpuidLeaf;
use super::vendor::Vendor;
use crate::config::{VcpuCount, VcpuIndex};

/// Intel has this leaf, and KVM lets an AMD guest have it too.
const EXTENDED_TOPOLOGY: u32 = 0xb;

/// Writes the topology that all vCPUs share, with the first one's ids.
pub(super) fn set(leaves: &mut Vec<CpuidLeaf>, vcpus: VcpuCount) {
    let amd = Vendor::of(leaves) == Vendor::Amd;
    for leaf in leaves.iter_mut() {
        match leaf.function {
            0x1 => set_package(leaf, vcpus),
            0x4 => set_intel_cache(leaf, vcpus),
            0x8000_001d => set_sharing(leaf, vcpus),
            // "Several cores": what AMD says in place of hyper-threading.
            0x8000_0001 => set_bit(&mut leaf.ecx, 1, amd && vcpus > VcpuCount::ONE),
            // Number of cores less one, and bits of their ids.
            0x8000_0008 if amd => leaf.ecx = (vcpus.get() - 1) | vcpus.id_bits() << 12,
            0x8000_0008 => leaf.ecx = 0,
            0x8000_001e => leaf.set(0, 0, 0, 0),
            _ => {}
        }
    }
    leaves.extend(levels(vcpus));
}

/// The leaves as one vCPU sees them: `leaves` with its ids.
pub(crate) fn of_vcpu(leaves: &[CpuidLeaf], vcpu: VcpuIndex) -> Vec<CpuidLeaf> {
    let amd = Vendor::of(leaves) == Vendor::Amd;
    let id = u32::from(vcpu.apic_id());
    let mut leaves = leaves.to_vec();
    for leaf in &mut leaves {
        match leaf.function {
            0x1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
            EXTENDED_TOPOLOGY => leaf.edx = id,
            // Extended APIC id; core id, with one thread a core; node 0 of one.
            0x8000_001e if amd => leaf.set(id, id, 0, 0),
            _ => {}
        }
    }
    leaves
}

/// Room for ids in the package, and whether it means anything ("hyper-threading"). The brand index
/// and the cache line size stay.
fn set_package(leaf: &mut CpuidLeaf, vcpus: VcpuCount) {
    let ids = (1 << vcpus.id_bits()).min(0xff);
    leaf.ebx = leaf.ebx & 0xffff | ids << 16;
    set_bit(&mut leaf.edx, 28, vcpus > VcpuCount::ONE);
}

/// Room for core ids in the package, less one, as far as six bits can say it.
fn set_intel_cache(leaf: &mut CpuidLeaf, vcpus: VcpuCount) {
    set_sharing(leaf, vcpus);
    leaf.eax &= 0x03ff_ffff;
    if is_cache(leaf) {
        leaf.eax |= ((1 << vcpus.id_bits()) - 1).min(0x3f) << 26;
    }
}

/// Room for the ids of those who share a cache, less one. The third level is everybody's.
fn set_sharing(leaf: &mut CpuidLeaf, vcpus: VcpuCount) {
    leaf.eax &= !(0xfff << 14);
    let level = leaf.eax >> 5 & 7;
    if is_cache(leaf) && level >= 3 {
        leaf.eax |= ((1 << vcpus.id_bits()) - 1) << 14;
    }
}

/// The list of caches ends with one of type 0.
fn is_cache(leaf: &CpuidLeaf) -> bool {
    leaf.eax & 0x1f != 0
}

fn set_bit(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}

/// Leaf 0xb: threads of a core, cores of the package, and the end.
fn levels(vcpus: VcpuCount) -> [CpuidLeaf; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index, bits, logical, kind| CpuidLeaf {
        function: EXTENDED_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: logical,
        ecx: kind << 8 | index,
        edx: 0,
    };
    [
        level(0, 0, 1, THREADS),
        level(1, vcpus.id_bits(), vcpus.get(), CORES),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::leaf;
    use super::*;

    const L1: u32 = 1 << 5 | 1;
    const L3: u32 = 3 << 5 | 3;

    fn intel() -> Vec<CpuidLeaf> {
        let [ebx, edx, ecx] = [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes);
        vec![
            leaf(0, 0, [0xd, ebx, ecx, edx]),
            leaf(1, 0, [0, 7 << 24 | 16 << 16 | 0x0800, 0, 1 << 28]),
            leaf(4, 0, [L1 | 7 << 26 | 1 << 14, 0, 0, 0]),
            leaf(4, 3, [L3 | 7 << 26 | 15 << 14, 0, 0, 0]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 1 << 1, 0]),
            leaf(0x8000_0008, 0, [0x3028, 0, 0x4007, 0]),
        ]
    }

    fn amd() -> Vec<CpuidLeaf> {
        let [ebx, edx, ecx] = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        let mut leaves = intel();
        leaves.retain(|leaf| leaf.function != 4);
        leaves[0] = leaf(0, 0, [0xd, ebx, ecx, edx]);
        leaves.push(leaf(0x8000_001d, 3, [L3 | 31 << 14, 0, 0, 0]));
        leaves.push(leaf(0x8000_001e, 0, [9, 0x0104, 0x0300, 0]));
        leaves
    }

    fn with(mut leaves: Vec<CpuidLeaf>, vcpus: u32) -> Vec<CpuidLeaf> {
        set(&mut leaves, VcpuCount::new(vcpus).unwrap());
        leaves
    }

    fn get(leaves: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
        *leaves
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn one_vcpu_is_alone() {
        let leaves = with(intel(), 1);
        let first = get(&leaves, 1, 0);
        assert_eq!((first.ebx, first.edx), (1 << 16 | 0x0800, 0));
        assert_eq!(get(&leaves, 4, 0).eax, L1);
        assert_eq!(get(&leaves, 4, 3).eax, L3);
        let cores = get(&leaves, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (0, 1, 0x201));
    }

    #[test]
    fn three_vcpus_are_three_cores_that_share_the_third_level() {
        let leaves = with(intel(), 3);
        let first = get(&leaves, 1, 0);
        assert_eq!((first.ebx, first.edx), (4 << 16 | 0x0800, 1 << 28));
        assert_eq!(get(&leaves, 4, 0).eax, L1 | 3 << 26);
        assert_eq!(get(&leaves, 4, 3).eax, L3 | 3 << 26 | 3 << 14);
        assert_eq!(get(&leaves, 4, 4).eax, 0);
        let threads = get(&leaves, 0xb, 0);
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
        let cores = get(&leaves, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
        assert_eq!(get(&leaves, 0x8000_0001, 0).ecx, 0);
        assert_eq!(get(&leaves, 0x8000_0008, 0).ecx, 0);
    }

    #[test]
    fn amd_says_it_in_its_own_leaves_too() {
        let leaves = with(amd(), 6);
        assert_eq!(get(&leaves, 0x8000_0001, 0).ecx, 1 << 1);
        assert_eq!(get(&leaves, 0x8000_0008, 0).ecx, 3 << 12 | 5);
        assert_eq!(get(&leaves, 0x8000_001d, 3).eax, L3 | 7 << 14);
    }

    #[test]
    fn each_vcpu_sees_its_own_ids() {
        let vcpus = VcpuCount::new(254).unwrap();
        let leaves = with(amd(), 254);
        assert_eq!(of_vcpu(&leaves, VcpuIndex::BOOT), leaves);
        for vcpu in vcpus.indexes() {
            let id = u32::from(vcpu.apic_id());
            let own = of_vcpu(&leaves, vcpu);
            assert_eq!(get(&own, 1, 0).ebx, id << 24 | 0xff << 16 | 0x0800);
            assert!((0..3).all(|index| get(&own, 0xb, index).edx == id));
            let extended = get(&own, 0x8000_001e, 0);
            assert_eq!((extended.eax, extended.ebx, extended.ecx), (id, id, 0));
        }
    }
}
