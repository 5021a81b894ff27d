// SPDX-License-Identifier: Apache-2.0
//! `[memory]`: where the guest's RAM lies on the host and how changes to it are found.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NumaNode;

/// Where the guest's RAM lies on the host and how changes to it are found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySection {
    /// Pages of the host behind the guest's RAM: `transparent` (the default), huge ones where the
    /// kernel finds some; `off`, 4 KiB only; `2M` or `1G`, taken from the pages the administrator
    /// set aside (`vm.nr_hugepages`), all of them at the start. `vm.memory_mib` must be a multiple
    /// of the page size.
    pub huge_pages: HugePages,
    /// Keep all of the guest's RAM in the host's memory, never swapped, taken at the start; default
    /// false. The engine needs the limit for it (`LimitMEMLOCK`, unlimited in the unit).
    pub lock: bool,
    /// Take all of the guest's RAM from the host while a replica waits, in a thread of its own, so
    /// that the first copy to it finds it there; default false: what the guest never uses takes
    /// nothing. Unlike `lock` it does not delay the start, and the memory may be swapped.
    pub prefault: bool,
    /// The NUMA node of the host to take the memory from, 0 to 1023; not set: wherever the kernel
    /// finds it. It binds strictly: a node that is full is an error, not a slower guest.
    pub numa_node: Option<NumaNode>,
    /// How changed pages are found: `auto` (the default) takes the best this kernel has; `ring`,
    /// KVM's dirty ring; `manual-bitmap`, a bitmap cleared page by page; `bitmap`, a bitmap cleared
    /// as a whole. The two replicas may differ.
    pub dirty_tracking: DirtyTracking,
}

/// Pages of the host behind the guest's RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum HugePages {
    /// Huge where the kernel finds some.
    #[default]
    #[serde(rename = "transparent")]
    Transparent,
    /// 4 KiB only.
    #[serde(rename = "off")]
    Off,
    /// 2 MiB pages set aside by the administrator.
    #[serde(rename = "2M")]
    Size2M,
    /// 1 GiB pages set aside by the administrator.
    #[serde(rename = "1G")]
    Size1G,
}

impl HugePages {
    /// The size in MiB of pages that must have been set aside.
    #[must_use]
    pub const fn reserved_mib(self) -> Option<u32> {
        match self {
            Self::Transparent | Self::Off => None,
            Self::Size2M => Some(2),
            Self::Size1G => Some(1024),
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transparent => "transparent",
            Self::Off => "off",
            Self::Size2M => "2M",
            Self::Size1G => "1G",
        })
    }
}

/// How changed pages are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum DirtyTracking {
    /// The best this kernel has.
    #[default]
    Auto,
    /// KVM's dirty ring (Linux 5.11).
    Ring,
    /// A bitmap cleared page by page (Linux 5.1).
    ManualBitmap,
    /// A bitmap cleared as a whole.
    Bitmap,
}

impl fmt::Display for DirtyTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Ring => "ring",
            Self::ManualBitmap => "manual-bitmap",
            Self::Bitmap => "bitmap",
        })
    }
}
