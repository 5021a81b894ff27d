// SPDX-License-Identifier: Apache-2.0
//! The CPU's name, the same on every host.

use super::CpuidLeaf;

/// The leaves that hold the name.
pub(super) const LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
/// 48 bytes.
const BRAND: &[u8; 48] =
    b"Kemari virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The leaves with the name.
pub(super) fn leaves() -> impl Iterator<Item = CpuidLeaf> {
    LEAVES
        .zip(BRAND.chunks_exact(16))
        .map(|(function, text)| brand_leaf(function, text))
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
