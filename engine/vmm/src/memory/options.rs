// SPDX-License-Identifier: Apache-2.0
//! What the owner of a machine may choose about its memory. None of it is visible to the guest, so
//! the two hosts of a pair may choose differently.

use std::fmt;

/// How guest memory is backed by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryOptions {
    /// Size of the host's pages.
    pub huge_pages: HugePages,
    /// Whether the host may swap guest memory out.
    pub lock: MemoryLock,
    /// The only NUMA node that memory may come from; `None` leaves it to the kernel.
    pub numa: Option<NumaNode>,
}

/// Size of the host's pages under guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// The kernel uses pages of 2 MiB where it has them at hand (`madvise`).
    #[default]
    Transparent,
    /// Pages of 4 KiB only: an untouched page next to a touched one takes no memory.
    Off,
    /// Pages of 2 MiB out of the pool that the administrator reserved; all of them or no machine.
    Explicit2M,
    /// Pages of 1 GiB out of the pool that the administrator reserved; all of them or no machine.
    Explicit1G,
}

/// Whether guest memory may leave the host's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryLock {
    /// It may be swapped out.
    #[default]
    Unlocked,
    /// A page stays once it was touched; untouched pages take no memory.
    OnFault,
    /// All pages are there before the guest starts, and stay.
    Now,
}

/// Number of a NUMA node of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumaNode(pub u32);

impl fmt::Display for NumaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of the pages of one of the kernel's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolPage {
    /// 2 MiB.
    Of2M,
    /// 1 GiB.
    Of1G,
}

impl HugePages {
    pub(super) fn pool(self) -> Option<PoolPage> {
        match self {
            Self::Transparent | Self::Off => None,
            Self::Explicit2M => Some(PoolPage::Of2M),
            Self::Explicit1G => Some(PoolPage::Of1G),
        }
    }
}

impl PoolPage {
    /// Size in MiB.
    #[must_use]
    pub const fn mib(self) -> u32 {
        match self {
            Self::Of2M => 2,
            Self::Of1G => 1024,
        }
    }

    /// Name of the pool's directory in sysfs.
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Of2M => "hugepages-2048kB",
            Self::Of1G => "hugepages-1048576kB",
        }
    }

    pub(super) fn map_flags(self) -> i32 {
        libc::MAP_HUGETLB
            | match self {
                Self::Of2M => libc::MAP_HUGE_2MB,
                Self::Of1G => libc::MAP_HUGE_1GB,
            }
    }
}

impl fmt::Display for PoolPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Of2M => "2 MiB",
            Self::Of1G => "1 GiB",
        })
    }
}
