// SPDX-License-Identifier: Apache-2.0
//! The guest's time-stamp counters go on from the saved moment, on all vCPUs alike.
//!
//! A counter is the host's counter plus the vCPU's offset. Guests expect the counters of all CPUs to
//! agree and stop using them when they do not; so what is kept is not each vCPU's saved *value* (they
//! were read one after another) but how the *offsets* differ, which for ordinary guests is not at all
//! (Firecracker #6200). One vCPU's saved value is the reference for the new offset of all. Offsets less
//! than a second apart count as equal, which is KVM's own rule: on a host whose counter is not stable it
//! changes a vCPU's offset whenever a thread touches it, so small differences mean nothing.
//!
//! Writing the counter's MSR is not enough: KVM takes a value within a second of what it expects for
//! an attempt to synchronise vCPUs and keeps the old offset, so the guest could see its counter go
//! back. And KVM keeps its paravirtual clock in the mode where all vCPUs read the same only when it saw
//! equal offsets written to all, one after another (Cloud Hypervisor #8383).

use std::ops::Deref;

use kvm_ioctls::VcpuFd;

use super::processor::VcpuState;
use crate::error::RestoreError;
use crate::host::Host;
use crate::{msrs, sys};

/// Gives all vCPUs the offsets with which their counters go on. Where the host cannot, their MSRs, which
/// were written before, have to do.
pub(crate) fn continue_all(
    vcpus: &[impl Deref<Target = VcpuFd>],
    states: &[VcpuState],
    host: &Host,
) -> Result<(), RestoreError> {
    let (Some(first), Some(reference)) = (vcpus.first(), states.first()) else {
        return Ok(());
    };
    if !host.tsc_offset_works {
        return Ok(());
    }
    let failed = RestoreError::kvm("KVM_VCPU_TSC_OFFSET");
    let now_offset = sys::tsc_offset(first).map_err(&failed)?;
    let now = msrs::read_one(first, msrs::TSC).ok_or(RestoreError::NoTsc)?;
    let base = now_offset.wrapping_add(reference.tsc()?.wrapping_sub(now));
    let saved: Vec<_> = states.iter().map(|state| state.tsc_offset).collect();
    let second = u64::from(reference.tsc_khz) * 1000;
    for (vcpu, offset) in vcpus.iter().zip(related_offsets(base, &saved, second)) {
        sys::set_tsc_offset(vcpu, offset).map_err(&failed)?;
    }
    Ok(())
}

/// Makes the counters of a guest that has not begun agree. KVM gives new vCPUs the same offset only
/// where the host's own counters do.
pub(crate) fn align(states: &mut [VcpuState]) {
    let offset = states.first().and_then(|state| state.tsc_offset);
    for state in states {
        state.tsc_offset = offset;
    }
}

/// New offsets that differ from each other as the saved ones do, where they differ by more than `least`;
/// the first is `base`. An offset that was not saved (its host had none) is that of the first.
fn related_offsets(base: u64, saved: &[Option<u64>], least: u64) -> impl Iterator<Item = u64> {
    let reference = saved.first().copied().flatten();
    saved.iter().map(move |offset| match (offset, reference) {
        (Some(offset), Some(reference)) => {
            let ahead = offset.wrapping_sub(reference);
            let far = ahead.cast_signed().unsigned_abs() > least;
            base.wrapping_add(if far { ahead } else { 0 })
        }
        _ => base,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn firecracker_6200_equal_offsets_stay_equal() {
        let offsets: Vec<u64> = related_offsets(5, &[Some(u64::MAX); 3], 0).collect();
        assert_eq!(offsets, [5; 3]);
        let offsets: Vec<u64> = related_offsets(5, &[None; 3], 0).collect();
        assert_eq!(offsets, [5; 3]);
    }

    #[test]
    fn offsets_of_a_host_with_an_unstable_counter_become_equal() {
        let saved = [1000, 1900, 200, 3000, u64::MAX].map(Some);
        let offsets: Vec<u64> = related_offsets(5, &saved, 1000).collect();
        assert_eq!(offsets, [5, 5, 5, 2005, 5u64.wrapping_sub(1001)]);
    }

    proptest! {
        #[test]
        fn differences_are_kept(base: u64, saved in proptest::collection::vec(any::<u64>(), 1..9)) {
            let told: Vec<_> = saved.iter().copied().map(Some).collect();
            let offsets: Vec<u64> = related_offsets(base, &told, 0).collect();
            prop_assert_eq!(offsets[0], base);
            for (one, other) in offsets.iter().zip(&saved) {
                let difference = one.wrapping_sub(base);
                prop_assert_eq!(difference, other.wrapping_sub(saved[0]));
            }
        }
    }
}
