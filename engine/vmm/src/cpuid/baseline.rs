// SPDX-License-Identifier: Apache-2.0
//! A CPU that is the same on every host of one vendor that has the level.
//!
//! Nothing is taken from the host but the vendor and KVM's own leaves: family, model, stepping, caches
//! and address sizes are fixed. Bits that cost nothing when the host lacks them are ours to set:
//! the hypervisor bit, the APIC's TSC deadline (both left to the VMM by KVM), and AMD's topology
//! leaves.
//!
//! The numbers claimed are of CPUs that have the level and *have* the known side-channel weaknesses, so
//! that guests choose mitigations that do without microcode. (A guest that believed itself on a newer
//! CPU would leave them out.)

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::feature::{self, Feature, Place};
use super::vendor::Vendor;
use super::{CpuidLeaf, brand};

/// A level of the psABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    V2,
    V3,
}

/// Bits of physical addresses: what the smallest CPUs of the levels have. Memory ends far below.
const PHYSICAL_BITS: u32 = 39;
const LINEAR_BITS: u32 = 48;
/// Clock source, no I/O delay, clock source in its second form, unhalt, IPIs and yields by
/// hypercall, stable clock: see Documentation/virt/kvm/x86/cpuid.rst.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 7 | 1 << 11 | 1 << 13 | 1 << 24;
/// Bits that AMD's leaf 0x8000_0001 EDX repeats from leaf 1.
const AMD_REPEATED: u32 = 0x0183_f3ff;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const AMD_TOPOLOGY: u32 = 1 << 22;

impl Level {
    fn features(self) -> Vec<Feature> {
        let more: &[&[Feature]] = match self {
            Self::V2 => &[feature::V1, feature::V2],
            Self::V3 => &[feature::V1, feature::V2, feature::V3],
        };
        more.concat()
    }

    /// Family, model and stepping: Intel's Nehalem and Haswell servers, AMD's "Rome".
    fn signature(self, vendor: Vendor) -> u32 {
        match (vendor, self) {
            (Vendor::Intel, Self::V2) => 0x0001_06a5,
            (Vendor::Intel, Self::V3) => 0x0003_06f2,
            (Vendor::Amd, _) => 0x0083_0f10,
        }
    }
}

/// The first thing that the level needs and `supported` lacks.
pub(super) fn missing(supported: &[CpuidLeaf], level: Level) -> Option<&'static str> {
    let feature = level
        .features()
        .into_iter()
        .find(|feature| !feature.is_in(supported));
    if let Some(feature) = feature {
        return Some(feature.name);
    }
    let bits = find(supported, 0x8000_0008).map_or(36, |leaf| leaf.eax & 0xff);
    (bits < PHYSICAL_BITS).then_some("39 bits of physical address")
}

/// The leaves of the level, topology left out.
pub(super) fn leaves(supported: &[CpuidLeaf], level: Level) -> Vec<CpuidLeaf> {
    let vendor = Vendor::of(supported);
    let mut leaves = basic(supported, level, vendor);
    leaves.extend(match vendor {
        Vendor::Intel => intel_caches(),
        Vendor::Amd => amd_caches(),
    });
    if level == Level::V3 {
        leaves.extend(xsave());
    }
    leaves.extend(kvm(supported));
    leaves.extend(extended(supported, level, vendor));
    leaves.extend(brand::leaves());
    leaves
}

fn basic(supported: &[CpuidLeaf], level: Level, vendor: Vendor) -> Vec<CpuidLeaf> {
    let features = level.features();
    let mut identity = leaf(0x0, [0xd, 0, 0, 0]);
    copy_vendor(&mut identity, supported);
    let basic_c = feature::register(&features, Place::BasicC) | TSC_DEADLINE | HYPERVISOR;
    let basic_d = feature::register(&features, Place::BasicD);
    let structured_b = feature::register(&features, Place::StructuredB);
    // Cache lines of 8 times 8 bytes.
    let line = 8 << 8;
    vec![
        identity,
        leaf(0x1, [level.signature(vendor), line, basic_c, basic_d]),
        // The APIC timer always runs.
        leaf(0x6, [1 << 2, 0, 0, 0]),
        indexed(0x7, 0, [0, structured_b, 0, 0]),
    ]
}

fn extended(supported: &[CpuidLeaf], level: Level, vendor: Vendor) -> Vec<CpuidLeaf> {
    let features = level.features();
    let mut extended_c = feature::register(&features, Place::ExtendedC);
    let mut extended_d = feature::register(&features, Place::ExtendedD);
    let mut identity = leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]);
    let mut signature = 0;
    if vendor == Vendor::Amd {
        identity.eax = 0x8000_001e;
        copy_vendor(&mut identity, supported);
        signature = level.signature(vendor);
        extended_c |= AMD_TOPOLOGY;
        extended_d |= feature::register(&features, Place::BasicD) & AMD_REPEATED;
    }
    vec![
        identity,
        leaf(0x8000_0001, [signature, 0, extended_c, extended_d]),
        leaf(0x8000_0007, [0; 4]),
        leaf(0x8000_0008, [LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0]),
    ]
}

/// What a cache is, as leaves 4 and 0x8000_001d say it: type and level, ways, sets; lines of 64
/// bytes, and for whom flushing it counts or what it includes.
fn cache(function: u32, index: u32, kind: u32, ways: u32, sets: u32, extra: u32) -> CpuidLeaf {
    const SELF_INITIALISING: u32 = 1 << 8;
    let geometry = (ways - 1) << 22 | 63;
    indexed(
        function,
        index,
        [SELF_INITIALISING | kind, geometry, sets - 1, extra],
    )
}

const L1_DATA: u32 = 1 << 5 | 1;
const L1_CODE: u32 = 1 << 5 | 2;
const L2: u32 = 2 << 5 | 3;
const L3: u32 = 3 << 5 | 3;

/// 32 KiB each of first level, 256 KiB, 16 MiB.
fn intel_caches() -> Vec<CpuidLeaf> {
    const INCLUSIVE: u32 = 1 << 1;
    vec![
        // TLBs of Haswell, "see leaf 4" for caches, 64-byte prefetch.
        leaf(0x2, [0x7603_6301, 0x00f0_b5ff, 0, 0x00c1_0000]),
        cache(0x4, 0, L1_DATA, 8, 64, 0),
        cache(0x4, 1, L1_CODE, 8, 64, 0),
        cache(0x4, 2, L2, 8, 512, 0),
        cache(0x4, 3, L3, 16, 16384, INCLUSIVE),
        indexed(0x4, 4, [0; 4]),
        // 256 KiB, 8 ways, 64-byte lines.
        leaf(0x8000_0006, [0, 0, 256 << 16 | 6 << 12 | 64, 0]),
    ]
}

/// 32 KiB each of first level, 512 KiB, 16 MiB, in the old leaves and the new ones. The leaf of ids
/// is filled in with the topology.
fn amd_caches() -> Vec<CpuidLeaf> {
    const FLUSHES_LOWER: u32 = 1;
    const INCLUSIVE: u32 = 1 << 1;
    const TLBS: u32 = 0xff40_ff40;
    let first = 32 << 24 | 8 << 16 | 1 << 8 | 64;
    let second = 512 << 16 | 6 << 12 | 1 << 8 | 64;
    // In units of 512 KiB.
    let third = 32 << 18 | 8 << 12 | 1 << 8 | 64;
    vec![
        leaf(0x8000_0005, [TLBS, TLBS, first, first]),
        leaf(0x8000_0006, [0x4800_2200, 0x6800_4200, second, third]),
        cache(0x8000_001d, 0, L1_DATA, 8, 64, 0),
        cache(0x8000_001d, 1, L1_CODE, 8, 64, 0),
        cache(0x8000_001d, 2, L2, 8, 1024, INCLUSIVE),
        cache(0x8000_001d, 3, L3, 16, 16384, FLUSHES_LOWER),
        indexed(0x8000_001d, 4, [0; 4]),
        leaf(0x8000_001e, [0; 4]),
    ]
}

/// x87, SSE and AVX state in the standard layout.
fn xsave() -> Vec<CpuidLeaf> {
    const LEGACY_AND_HEADER: u32 = 576;
    const AVX: u32 = 256;
    let size = LEGACY_AND_HEADER + AVX;
    vec![
        // KVM keeps EBX to what the guest has enabled.
        indexed(0xd, 0, [0b111, size, size, 0]),
        indexed(0xd, 1, [0; 4]),
        indexed(0xd, 2, [AVX, LEGACY_AND_HEADER, 0, 0]),
    ]
}

/// KVM's own: the signature, and the features that every KVM we run on has.
fn kvm(supported: &[CpuidLeaf]) -> Vec<CpuidLeaf> {
    let signature = find(supported, 0x4000_0000).map(|found| CpuidLeaf {
        eax: 0x4000_0001,
        ..found
    });
    let features = find(supported, 0x4000_0001)
        .map(|found| leaf(0x4000_0001, [found.eax & KVM_FEATURES, 0, 0, 0]));
    signature.into_iter().chain(features).collect()
}

fn copy_vendor(to: &mut CpuidLeaf, supported: &[CpuidLeaf]) {
    if let Some(found) = find(supported, 0x0) {
        (to.ebx, to.ecx, to.edx) = (found.ebx, found.ecx, found.edx);
    }
}

fn find(leaves: &[CpuidLeaf], function: u32) -> Option<CpuidLeaf> {
    leaves
        .iter()
        .copied()
        .find(|leaf| leaf.function == function)
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        function,
        index: 0,
        flags: 0,
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn indexed(function: u32, index: u32, registers: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..leaf(function, registers)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{for_guest, hash};
    use super::*;
    use crate::config::{CpuModel, VcpuCount};
    use proptest::prelude::*;

    const INTEL: &[u8; 12] = b"GenuineIntel";
    const AMD: &[u8; 12] = b"AuthenticAMD";

    /// What the KVM of a host says whose CPU has just level 3, with `extra` set in every register
    /// whose value should not matter.
    fn host(vendor: &[u8; 12], extra: u32) -> Vec<CpuidLeaf> {
        let [ebx, edx, ecx] =
            [0, 4, 8].map(|at| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap()));
        let features = Level::V3.features();
        let register = |place| feature::register(&features, place) | extra;
        let (basic_c, basic_d) = (register(Place::BasicC), register(Place::BasicD));
        let (extended_c, extended_d) = (register(Place::ExtendedC), register(Place::ExtendedD));
        let bits = 48 << 8 | (39 + extra % 14);
        vec![
            leaf(0x0, [0xd + extra % 16, ebx, ecx, edx]),
            leaf(0x1, [extra, extra, basic_c, basic_d]),
            leaf(0x2, [extra; 4]),
            indexed(0x4, 0, [extra; 4]),
            leaf(0x6, [extra; 4]),
            indexed(0x7, 0, [extra, register(Place::StructuredB), extra, extra]),
            indexed(0x7, 1, [extra; 4]),
            indexed(0xb, 0, [extra; 4]),
            indexed(0xd, 0, [extra | 7, 832, 832, extra]),
            indexed(0xd, 1, [extra; 4]),
            indexed(0xd, 5, [extra; 4]),
            leaf(0x4000_0000, [0x4000_0001 + extra % 2, 1, 2, 3]),
            leaf(0x4000_0001, [KVM_FEATURES | extra, 0, 0, extra]),
            leaf(0x8000_0000, [0x8000_0008 + extra % 32, ebx, ecx, edx]),
            leaf(0x8000_0001, [extra, extra, extended_c, extended_d]),
            leaf(0x8000_0005, [extra; 4]),
            leaf(0x8000_0006, [extra; 4]),
            leaf(0x8000_0007, [extra; 4]),
            leaf(0x8000_0008, [bits, extra, extra, extra]),
            leaf(0x8000_001d, [extra; 4]),
        ]
    }

    fn shown(host: Vec<CpuidLeaf>, model: CpuModel) -> Vec<CpuidLeaf> {
        for_guest(host, model, VcpuCount::new(4).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn hosts_of_one_vendor_show_the_same(one: u32, other: u32) {
            for model in [CpuModel::X86_64V2, CpuModel::X86_64V3] {
                for vendor in [INTEL, AMD] {
                    let [a, b] = [one, other].map(|extra| shown(host(vendor, extra), model));
                    prop_assert_eq!(&a, &b);
                    prop_assert_eq!(hash(&a), hash(&b));
                }
            }
        }
    }

    #[test]
    fn the_vendor_and_the_level_show() {
        let v3 = shown(host(INTEL, 0), CpuModel::X86_64V3);
        assert_ne!(v3, shown(host(AMD, 0), CpuModel::X86_64V3));
        assert_ne!(v3, shown(host(INTEL, 0), CpuModel::X86_64V2));
    }

    #[test]
    fn a_level_has_its_features_and_no_others() {
        let v2 = shown(host(INTEL, u32::MAX), CpuModel::X86_64V2);
        for feature in [feature::V1, feature::V2].concat() {
            assert!(feature.is_in(&v2), "{}", feature.name);
        }
        for feature in feature::V3 {
            assert!(!feature.is_in(&v2), "{}", feature.name);
        }
        assert!(v2.iter().all(|leaf| leaf.function != 0xd));
        let first = find(&v2, 1).unwrap();
        assert_eq!(first.ecx & 1 << 25, 0, "AES is of no level");
        assert_eq!(first.ecx >> 24, 1 << 7 | 1, "hypervisor and deadline");
        let v3 = shown(host(AMD, 0), CpuModel::X86_64V3);
        for feature in Level::V3.features() {
            assert!(feature.is_in(&v3), "{}", feature.name);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let four = VcpuCount::new(4).unwrap();
        let mut lacking = host(AMD, 0);
        lacking[1].ecx &= !(1 << 12);
        assert_eq!(
            for_guest(lacking.clone(), CpuModel::X86_64V3, four),
            Err("FMA")
        );
        assert!(for_guest(lacking, CpuModel::X86_64V2, four).is_ok());
        let mut small = host(AMD, 0);
        for leaf in &mut small {
            if leaf.function == 0x8000_0008 {
                leaf.eax = 48 << 8 | 36;
            }
        }
        assert_eq!(
            for_guest(small, CpuModel::X86_64V2, four),
            Err("39 bits of physical address")
        );
        assert_eq!(missing(&[], Level::V2), Some("FPU"));
    }

    /// Sizes as Linux computes them: ways, times lines of 64 bytes, times sets.
    #[test]
    fn caches_have_the_sizes_they_are_said_to_have() {
        let bytes = |leaf: &CpuidLeaf| ((leaf.ebx >> 22) + 1) * 64 * (leaf.ecx + 1);
        let sizes = |leaves: Vec<CpuidLeaf>, function| {
            leaves
                .iter()
                .filter(|leaf| leaf.function == function && leaf.eax & 0x1f != 0)
                .map(bytes)
                .collect::<Vec<_>>()
        };
        let kib = 1024;
        assert_eq!(
            sizes(intel_caches(), 0x4),
            [32, 32, 256, 16384].map(|size| size * kib)
        );
        assert_eq!(
            sizes(amd_caches(), 0x8000_001d),
            [32, 32, 512, 16384].map(|size| size * kib)
        );
    }
}
