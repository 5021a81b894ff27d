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

/// Nothing is there: reads are all ones and writes are lost, as on a PC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoMmio;

impl MmioHandler for NoMmio {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_reads_all_ones() {
        let mut data = [0; 8];
        NoMmio.write(0xe000_0000, &[1, 2]);
        NoMmio.read(0xe000_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}
