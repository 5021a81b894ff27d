// SPDX-License-Identifier: Apache-2.0
//! The KVM calls that kvm-ioctls does not wrap, or wraps as unsafe. All pointers end here.
//!
//! Numbers and structures are those of `linux/kvm.h`; the calls are described in the KVM API
//! document, sections 4.35 (memory region), 4.117 (clearing the dirty log), 8.29 (dirty ring), 4.203
//! (SREGS2) and `devices/vcpu.rst` (TSC control).

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Xsave, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_sregs2, kvm_userspace_memory_region,
    kvm_xsave2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::errno;
use vmm_sys_util::fam::FamStructWrapper;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// `KVM_CAP_ENFORCE_PV_CPUID`, missing from kvm-bindings.
pub(crate) const CAP_ENFORCE_PV_CPUID: u32 = 190;

/// Length in bytes of the legacy part of the XSAVE structure, which KVM never makes smaller.
const XSAVE_LEGACY_BYTES: usize = 4096;

/// `KVM_GET_SREGS2`.
pub(crate) fn sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, errno::Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the kernel writes one `kvm_sregs2`, and `sregs` is one.
    let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) };
    check(result).map(|()| sregs)
}

/// `KVM_SET_SREGS2`.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), errno::Error> {
    // SAFETY: the kernel reads one `kvm_sregs2`, and `sregs` is one.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// The vCPU's TSC offset, or an error where KVM has none.
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, errno::Error> {
    let mut offset = 0u64;
    let attribute = tsc_offset_attribute(std::ptr::from_mut(&mut offset) as u64);
    // SAFETY: for this attribute the kernel writes one u64 at `addr`, which is `offset`; it
    // outlives the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) }).map(|()| offset)
}

/// Sets the vCPU's TSC offset.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), errno::Error> {
    let attribute = tsc_offset_attribute(std::ptr::from_ref(&offset) as u64);
    // SAFETY: for this attribute the kernel reads one u64 at `addr`, which is `offset`; it
    // outlives the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) })
}

fn tsc_offset_attribute(address: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: address,
    }
}

/// Sets, or changes the flags of, a memory slot that `region` describes.
///
/// # Safety
/// `region.userspace_addr` must be the start of a mapping of at least `region.memory_size` bytes
/// which stays mapped until the VM is gone.
pub(crate) unsafe fn set_memory_region(
    vm: &VmFd,
    region: kvm_userspace_memory_region,
) -> Result<(), errno::Error> {
    // SAFETY: the caller promises that the memory exists as long as the VM.
    unsafe { vm.set_user_memory_region(region) }
}

/// `KVM_CLEAR_DIRTY_LOG`: clears the bits that are set in `bitmap`, whose bit 0 is `first_page` of
/// the slot, and protects their pages again. `pages` are a multiple of 64 or reach the slot's end.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u64,
    bitmap: &[u64],
) -> Result<(), errno::Error> {
    let invalid = || errno::Error::new(libc::EINVAL);
    let num_pages = u32::try_from(pages).map_err(|_| invalid())?;
    if (bitmap.len() as u64) < pages.div_ceil(64) {
        return Err(invalid());
    }
    let request = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads `num_pages` bits, rounded up to words of 64, which `bitmap` has, and
    // writes nothing there.
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) })
}

/// `KVM_RESET_DIRTY_RINGS`: how many entries were reset.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> Result<usize, errno::Error> {
    // SAFETY: the call has no argument.
    let count = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
    check(count).map(|()| usize::try_from(count).unwrap_or(0))
}

/// Another handle to the vCPU's file, to map its dirty ring.
pub(crate) fn vcpu_file(vcpu: &VcpuFd) -> std::io::Result<File> {
    // SAFETY: the descriptor is open as long as `vcpu`, which is borrowed for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    borrowed.try_clone_to_owned().map(File::from)
}

/// The XSAVE area, `size` bytes long (from `KVM_CAP_XSAVE2`, read when the VM was made).
pub(crate) fn xsave(vcpu: &VcpuFd, size: usize) -> Result<Vec<u8>, errno::Error> {
    let mut area = empty_xsave(size)?;
    // SAFETY: `area` has room for `size` bytes, which is what KVM said it will write at most.
    unsafe { vcpu.get_xsave2(&mut area)? };
    let legacy = area.as_fam_struct_ref().xsave.region;
    let words = legacy.iter().chain(area.as_slice());
    Ok(words.flat_map(|word| word.to_le_bytes()).collect())
}

/// Sets the XSAVE area; `content` must be as long as [`xsave`] gives on this machine.
pub(crate) fn set_xsave(vcpu: &VcpuFd, content: &[u8]) -> Result<(), errno::Error> {
    let mut area = empty_xsave(content.len())?;
    let mut words = content.chunks_exact(4).map(|chunk| match chunk {
        [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    });
    // SAFETY: only the content of the area is written, never its length.
    let header: &mut kvm_xsave2 = unsafe { area.as_mut_fam_struct() };
    for (target, word) in header.xsave.region.iter_mut().zip(&mut words) {
        *target = word;
    }
    for (target, word) in area.as_mut_slice().iter_mut().zip(&mut words) {
        *target = word;
    }
    // SAFETY: KVM reads `KVM_CAP_XSAVE2` bytes; the caller gives an area of that length.
    unsafe { vcpu.set_xsave2(&area) }
}

fn empty_xsave(size: usize) -> Result<Xsave, errno::Error> {
    let extra_words = size.saturating_sub(XSAVE_LEGACY_BYTES) / 4;
    FamStructWrapper::new(extra_words).map_err(|_| errno::Error::new(libc::E2BIG))
}

/// The `suberror` of the last exit, which must have been `KVM_EXIT_INTERNAL_ERROR`.
pub(crate) fn internal_error_code(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: every bit pattern is a valid u32, so reading this union field is sound after any
    // exit; it means something after an internal error.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// Takes the pages of a piece of guest memory from the kernel now, if it has `MADV_POPULATE_WRITE`
/// (Linux 5.14). What is there keeps its content.
pub(crate) fn populate<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> std::io::Result<()> {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice is mapped. The kernel does what a write fault does at each page, without
    // writing: no content changes, also not under somebody who writes at the same time.
    let result = unsafe {
        libc::madvise(
            guard.as_ptr().cast::<libc::c_void>(),
            slice.len(),
            libc::MADV_POPULATE_WRITE,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the pages of a piece of guest memory back to the kernel; they read as zeroes afterwards.
pub(crate) fn discard<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> std::io::Result<()> {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice is mapped, and private anonymous memory may be dropped at any time: whoever
    // reads it concurrently reads either the old bytes or zeroes. All access to guest memory is
    // volatile, so the compiler assumes nothing about its content.
    let result = unsafe {
        libc::madvise(
            guard.as_ptr().cast::<libc::c_void>(),
            slice.len(),
            libc::MADV_DONTNEED,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn check(result: i32) -> Result<(), errno::Error> {
    if result < 0 {
        return errno::errno_result();
    }
    Ok(())
}

/// Address of the mapping of a guest memory region, for KVM.
pub(crate) fn host_address(
    region: &vm_memory::GuestRegionMmap<crate::memory::WrittenPages>,
) -> u64 {
    region.as_ptr() as u64
}
