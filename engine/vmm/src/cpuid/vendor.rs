// SPDX-License-Identifier: Apache-2.0
//! Whose CPU it is: what the two families of leaves depend on.

use super::CpuidLeaf;

/// Whose way of describing a CPU a guest follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// AMD, and Hygon, which builds on it.
    Amd,
    /// Intel, and everybody else.
    Intel,
}

impl Vendor {
    pub(crate) fn of(leaves: &[CpuidLeaf]) -> Self {
        match name(leaves).as_str() {
            "AuthenticAMD" | "HygonGenuine" => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// The vendor's name as leaf 0 tells it; empty without that leaf.
pub(crate) fn name(leaves: &[CpuidLeaf]) -> String {
    let Some(leaf) = leaves.iter().find(|leaf| leaf.function == 0) else {
        return String::new();
    };
    let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    String::from_utf8_lossy(bytes.as_flattened()).into_owned()
}
