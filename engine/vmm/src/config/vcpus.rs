// SPDX-License-Identifier: Apache-2.0
//! How many vCPUs a machine has, and which one is meant.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Number of vCPUs, from 1 to [`VcpuCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u8);

/// A number of vCPUs outside the supported range.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{count} vCPUs are out of range; choose 1 to {max}", max = VcpuCount::MAX)]
pub struct VcpuCountOutOfRange {
    /// The refused number.
    pub count: u32,
}

impl VcpuCount {
    /// One vCPU.
    pub const ONE: Self = Self(1);
    /// The most vCPUs whose APIC ids fit into 8 bits: 255 is the broadcast, and one more is kept
    /// for the IOAPIC, as guests without x2APIC expect.
    pub const MAX: u32 = 254;

    /// `count` vCPUs.
    ///
    /// # Errors
    /// The number is outside the supported range.
    pub fn new(count: u32) -> Result<Self, VcpuCountOutOfRange> {
        match u8::try_from(count) {
            Ok(number) if (1..=Self::MAX).contains(&count) => Ok(Self(number)),
            _ => Err(VcpuCountOutOfRange { count }),
        }
    }

    /// The bare number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.into()
    }

    /// All vCPUs, the one that boots first.
    pub(crate) fn indexes(self) -> impl Iterator<Item = VcpuIndex> {
        (0..self.0).map(VcpuIndex)
    }

    /// Bits of an APIC id that tell one vCPU from another.
    pub(crate) fn id_bits(self) -> u32 {
        self.get().next_power_of_two().trailing_zeros()
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for VcpuCount {
    type Error = VcpuCountOutOfRange;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        Self::new(count)
    }
}

impl From<VcpuCount> for u32 {
    fn from(count: VcpuCount) -> Self {
        count.get()
    }
}

/// One of a machine's vCPUs. Number 0 boots the guest, which starts the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VcpuIndex(u8);

impl VcpuIndex {
    /// The vCPU that boots.
    pub(crate) const BOOT: Self = Self(0);

    /// The local APIC's id, which KVM makes the same as the number.
    pub(crate) fn apic_id(self) -> u8 {
        self.0
    }

    /// The place in lists of all vCPUs.
    pub(crate) fn place(self) -> usize {
        self.0.into()
    }
}

impl fmt::Display for VcpuIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn out_of_range_counts_are_refused_with_the_range() {
        let said = VcpuCount::new(255).unwrap_err().to_string();
        assert_eq!(said, "255 vCPUs are out of range; choose 1 to 254");
        assert!(VcpuCount::new(0).is_err());
        assert!(VcpuCount::new(256 + 1).is_err());
        assert_eq!(VcpuCount::new(254).unwrap().indexes().count(), 254);
    }

    proptest! {
        #[test]
        fn every_id_fits_into_the_bits(count in 1..=VcpuCount::MAX) {
            let count = VcpuCount::new(count).unwrap();
            let ids = 1u32 << count.id_bits();
            prop_assert!(count.get() <= ids);
            prop_assert!(count.get() > ids / 2);
        }
    }
}
