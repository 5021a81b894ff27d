// SPDX-License-Identifier: Apache-2.0
//! The ioctls of block devices, TAP devices and network interfaces. All pointers end here.
//!
//! Structures and numbers are those of `linux/fs.h`, `linux/if_tun.h`, `linux/sockios.h` and
//! `linux/if_bridge.h`.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

mod number {
    use libc::c_ulong;

    // linux/fs.h
    pub(super) const BLKDISCARD: c_ulong = 0x1277;
    pub(super) const BLKSSZGET: c_ulong = 0x1268;
    pub(super) const BLKGETSIZE64: c_ulong = 0x8008_1272;
}

/// Size of a block device in bytes.
pub(super) fn block_device_bytes(device: &impl AsRawFd) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes one u64 (`linux/fs.h` says size_t, and means u64), and `bytes` is one.
    let result = unsafe { ioctl_with_mut_ref(device, number::BLKGETSIZE64, &mut bytes) };
    check(result).map(|_| bytes)
}

/// Logical block size of a block device in bytes.
pub(super) fn logical_block_bytes(device: &impl AsRawFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and `bytes` is one.
    check(unsafe { ioctl_with_mut_ref(device, number::BLKSSZGET, &mut bytes) })?;
    u32::try_from(bytes).map_err(io::Error::other)
}

/// Tells a block device that a range is of no use any more.
pub(super) fn block_discard(device: &impl AsRawFd, offset: u64, length: u64) -> io::Result<()> {
    let range: [u64; 2] = [offset, length];
    // SAFETY: the kernel reads two u64, and `range` is that.
    check(unsafe { ioctl_with_ref(device, number::BLKDISCARD, &range) }).map(|_| ())
}

/// What an ioctl returned, if it was no error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
