// SPDX-License-Identifier: Apache-2.0
//! Where a vCPU's accesses to memory that is no RAM go.

use std::fmt::Debug;

/// Serves accesses to guest-physical addresses without RAM.
///
/// Called on the vCPU threads, from several at once, with no lock of the machine held but the
/// vCPU's own. It must not wait for anything that a pausing owner holds: pausing waits for the vCPU.
/// An access across pages or wider than 8 bytes comes in parts. `address` and `data` are the guest's
/// choice. A call may still come while the machine is being paused, because a started access is
/// finished first; when `Machine::pause` has returned there are none.
pub(crate) trait MmioHandler: Send + Sync + Debug {
    /// Fills all of `data`.
    fn read(&self, address: u64, data: &mut [u8]);

    /// Takes `data`.
    fn write(&self, address: u64, data: &[u8]);
}
