// SPDX-License-Identifier: Apache-2.0
//! The calls that tell the kernel about a mapping of guest memory: `madvise`, `mlock2`, `mbind`.
//!
//! None of them changes the content of memory or unmaps it. They are applied before anything else
//! knows the mapping.

use std::io;

use super::Region;
use super::options::NumaNode;

/// What `madvise` is told. Nothing here discards content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Not in core dumps: they would be as large as the guest and hold its secrets.
    OutsideDumps,
    /// Not in forked children: each page would be copied at the guest's next write.
    OutsideChildren,
    /// Transparent huge pages wanted.
    HugePages,
    /// Transparent huge pages not wanted.
    SmallPages,
    /// Every page allocated now; failing instead of killing the process when there is none.
    Populate,
}

impl Advice {
    fn number(self) -> i32 {
        match self {
            Self::OutsideDumps => libc::MADV_DONTDUMP,
            Self::OutsideChildren => libc::MADV_DONTFORK,
            Self::HugePages => libc::MADV_HUGEPAGE,
            Self::SmallPages => libc::MADV_NOHUGEPAGE,
            Self::Populate => libc::MADV_POPULATE_WRITE,
        }
    }
}

/// Whether all pages are to be there at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockWhen {
    OnFault,
    Now,
}

pub(super) fn advise(region: &Region, advice: Advice) -> io::Result<()> {
    // SAFETY: `region` is a live mapping of this length, and no `Advice` discards or moves content.
    check(unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice.number()) })
}

/// Keeps the region's pages in the host's RAM.
pub(super) fn lock(region: &Region, when: LockWhen) -> io::Result<()> {
    let flags = match when {
        LockWhen::OnFault => libc::MLOCK_ONFAULT,
        LockWhen::Now => 0,
    };
    // SAFETY: `region` is a live mapping of this length; locking changes no content.
    check(unsafe { libc::mlock2(region.as_ptr().cast_const().cast(), region.size(), flags) })
}

/// Lets the region's pages come from `node` only (`mbind(2)`, `MPOL_BIND`).
pub(super) fn bind(region: &Region, node: NumaNode) -> io::Result<()> {
    let too_large = || io::Error::from_raw_os_error(libc::EINVAL);
    let index = usize::try_from(node.0).map_err(|_| too_large())?;
    let mut mask = [0u64; MAX_NODES / 64];
    let word = mask.get_mut(index / 64).ok_or_else(too_large)?;
    *word |= 1 << (index % 64);
    // The kernel reads one bit less than it is told (BUGS in mbind(2)).
    let bits = MAX_NODES + 1;
    // SAFETY: `region` is a live mapping of this length; the mask has `MAX_NODES` bits and outlives
    // the call. Binding untouched memory moves nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr(),
            region.size(),
            libc::c_ulong::from(libc::MPOL_BIND.unsigned_abs()),
            mask.as_ptr(),
            bits,
            0u64,
        )
    };
    check(i32::try_from(result).unwrap_or(-1))
}

/// More NUMA nodes than any x86-64 kernel has (`CONFIG_NODES_SHIFT` is at most 10).
const MAX_NODES: usize = 1024;

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
