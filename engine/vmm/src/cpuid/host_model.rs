// SPDX-License-Identifier: Apache-2.0
//! The CPU of this host as KVM can give it, without what a guest must not or need not see.
//!
//! Hidden are the features whose state is not carried over (or not yet): performance counters, nested
//! virtualisation, control-flow enforcement, AMX, processor trace, SGX, machine checks, and KVM's
//! asynchronous page faults, steal time and PV EOI. The invariant-TSC bit is hidden so that guests keep
//! time by kvmclock, which carries the frequency of the host they run on. Bits that KVM leaves to the
//! VMM are set.

use super::{CpuidLeaf, brand};

/// XCR0 and XSS components that are hidden: CET user and supervisor, AMX configuration and data.
const HIDDEN_XSAVE_COMPONENTS: u32 = 1 << 11 | 1 << 12 | 1 << 17 | 1 << 18;

/// What the guest gets of the leaves that KVM supports here, topology left out.
pub(super) fn leaves(leaves: Vec<CpuidLeaf>) -> Vec<CpuidLeaf> {
    let mut leaves: Vec<CpuidLeaf> = leaves
        .into_iter()
        .filter(|leaf| keeps(*leaf))
        .map(adjust)
        .collect();
    leaves.extend(brand::leaves());
    resize_xsave(&mut leaves);
    leaves
}

/// Leaves that are dropped: replaced below, or of hidden features.
fn keeps(leaf: CpuidLeaf) -> bool {
    let hidden_component = leaf.function == 0xd
        && leaf.index >= 2
        && leaf.index < 32
        && HIDDEN_XSAVE_COMPONENTS & (1 << leaf.index) != 0;
    let topology = matches!(leaf.function, 0xb | 0x1f | 0x8000_0026);
    let replaced = topology || brand::LEAVES.contains(&leaf.function);
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
            // DTES64, MONITOR, DS-CPL, VMX, SMX, PDCM.
            hide(&mut leaf.ecx, &[2, 3, 4, 5, 6, 15]);
            // "Runs under a hypervisor" and the APIC's TSC deadline, both left to us.
            leaf.ecx |= 1 << 31 | 1 << 24;
            // Machine checks, debug store.
            hide(&mut leaf.edx, &[7, 14, 21]);
        }
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
        // Counters, SGX, trace, AMX, architectural LBR; AMD: SVM, IBS, SEV, counters.
        (
            0xa | 0x12 | 0x14 | 0x1c | 0x1d | 0x1e | 0x23 | 0x8000_000a | 0x8000_001b | 0x8000_001f
            | 0x8000_0022,
            _,
        ) => leaf.set(0, 0, 0, 0),
        // Asynchronous page faults, steal time, PV EOI, TLB flush (needs steal time), polling
        // control, migration control.
        (0x4000_0001, _) => hide(&mut leaf.eax, &[4, 5, 6, 9, 10, 12, 14, 17]),
        // SVM, IBS, performance counters.
        (0x8000_0001, _) => hide(&mut leaf.ecx, &[2, 10, 23, 24, 28]),
        (0x8000_0007, _) => hide(&mut leaf.edx, &[8]),
        _ => {}
    }
    leaf
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

#[cfg(test)]
mod tests {
    use super::super::tests::leaf;
    use super::*;

    #[test]
    fn hidden_features_stay_hidden_and_ours_are_set() {
        let leaves = leaves(vec![
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
