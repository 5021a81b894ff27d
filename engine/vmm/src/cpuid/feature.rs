// SPDX-License-Identifier: Apache-2.0
//! Features by name and place, and the levels they make up.
//!
//! Source of the levels: System V psABI, x86-64 supplement, "Micro-Architecture Levels"; of the places:
//! Intel SDM volume 2, CPUID, and AMD APM volume 3, appendix E.

use super::CpuidLeaf;

/// One of the leaves that hold feature bits, and the register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Leaf 1, ECX.
    BasicC,
    /// Leaf 1, EDX.
    BasicD,
    /// Leaf 7, index 0, EBX.
    StructuredB,
    /// Leaf 0x8000_0001, ECX.
    ExtendedC,
    /// Leaf 0x8000_0001, EDX.
    ExtendedD,
}

impl Place {
    fn register(self, leaf: &CpuidLeaf) -> Option<u32> {
        let (function, value) = match self {
            Self::BasicC => (0x1, leaf.ecx),
            Self::BasicD => (0x1, leaf.edx),
            Self::StructuredB => (0x7, leaf.ebx),
            Self::ExtendedC => (0x8000_0001, leaf.ecx),
            Self::ExtendedD => (0x8000_0001, leaf.edx),
        };
        ((leaf.function, leaf.index) == (function, 0)).then_some(value)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) bit: u32,
}

impl Feature {
    pub(super) fn is_in(self, leaves: &[CpuidLeaf]) -> bool {
        leaves
            .iter()
            .find_map(|leaf| self.place.register(leaf))
            .is_some_and(|value| value & 1 << self.bit != 0)
    }
}

/// A register with just these features.
pub(super) fn register(features: &[Feature], place: Place) -> u32 {
    features
        .iter()
        .filter(|feature| feature.place == place)
        .fold(0, |value, feature| value | 1 << feature.bit)
}

const fn of(place: Place, bit: u32, name: &'static str) -> Feature {
    Feature { name, place, bit }
}

/// What every 64-bit CPU has, and a 64-bit Linux expects; machine checks are hidden, and the 8086 mode's
/// extension, which QEMU's emulation lacks, is of no use to it.
pub(super) const V1: &[Feature] = &[
    of(Place::BasicD, 0, "FPU"),
    of(Place::BasicD, 2, "DE"),
    of(Place::BasicD, 3, "PSE"),
    of(Place::BasicD, 4, "TSC"),
    of(Place::BasicD, 5, "MSR"),
    of(Place::BasicD, 6, "PAE"),
    of(Place::BasicD, 8, "CMPXCHG8B"),
    of(Place::BasicD, 9, "APIC"),
    of(Place::BasicD, 11, "SYSENTER"),
    of(Place::BasicD, 12, "MTRR"),
    of(Place::BasicD, 13, "PGE"),
    of(Place::BasicD, 15, "CMOV"),
    of(Place::BasicD, 16, "PAT"),
    of(Place::BasicD, 17, "PSE-36"),
    of(Place::BasicD, 19, "CLFLUSH"),
    of(Place::BasicD, 23, "MMX"),
    of(Place::BasicD, 24, "FXSR"),
    of(Place::BasicD, 25, "SSE"),
    of(Place::BasicD, 26, "SSE2"),
    of(Place::ExtendedD, 11, "SYSCALL"),
    of(Place::ExtendedD, 20, "NX"),
    of(Place::ExtendedD, 29, "64-bit mode"),
    // Not the CPU's but KVM's; it has it everywhere.
    of(Place::BasicC, 21, "x2APIC"),
];

/// What level 2 adds.
pub(super) const V2: &[Feature] = &[
    of(Place::BasicC, 0, "SSE3"),
    of(Place::BasicC, 9, "SSSE3"),
    of(Place::BasicC, 13, "CMPXCHG16B"),
    of(Place::BasicC, 19, "SSE4.1"),
    of(Place::BasicC, 20, "SSE4.2"),
    of(Place::BasicC, 23, "POPCNT"),
    of(Place::ExtendedC, 0, "LAHF and SAHF in 64-bit mode"),
];

/// What level 3 adds.
pub(super) const V3: &[Feature] = &[
    of(Place::BasicC, 12, "FMA"),
    of(Place::BasicC, 22, "MOVBE"),
    of(Place::BasicC, 26, "XSAVE"),
    of(Place::BasicC, 28, "AVX"),
    of(Place::BasicC, 29, "F16C"),
    of(Place::StructuredB, 3, "BMI1"),
    of(Place::StructuredB, 5, "AVX2"),
    of(Place::StructuredB, 8, "BMI2"),
    of(Place::ExtendedC, 5, "LZCNT"),
];
