// SPDX-License-Identifier: Apache-2.0
//! What a machine is made of, checked when built, not when used.

mod cpu_model;
mod vcpus;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::dirty::tracking::DirtyTracking;
use crate::memory::MemoryOptions;
pub use cpu_model::{CpuModel, UnknownCpuModel};
pub(crate) use vcpus::VcpuIndex;
pub use vcpus::{VcpuCount, VcpuCountOutOfRange};

/// Size of guest memory in MiB, between [`MemorySize::MIN_MIB`] and [`MemorySize::MAX_MIB`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemorySize(u32);

/// A memory size outside the supported range.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error(
    "Memory size {mib} MiB is out of range; choose {min} to {max} MiB",
    min = MemorySize::MIN_MIB,
    max = MemorySize::MAX_MIB
)]
pub struct MemorySizeOutOfRange {
    /// The refused size in MiB.
    pub mib: u32,
}

impl MemorySize {
    /// Smallest supported size in MiB.
    pub const MIN_MIB: u32 = 16;
    /// Largest supported size in MiB: 512 GiB. Not every CPU can address that much; a machine is
    /// refused where it cannot.
    pub const MAX_MIB: u32 = 524_288;

    /// A size of `mib` MiB.
    ///
    /// # Errors
    /// The size is outside the supported range.
    pub const fn from_mib(mib: u32) -> Result<Self, MemorySizeOutOfRange> {
        if mib < Self::MIN_MIB || mib > Self::MAX_MIB {
            return Err(MemorySizeOutOfRange { mib });
        }
        Ok(Self(mib))
    }

    /// The size in MiB.
    #[must_use]
    pub const fn mib(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

impl TryFrom<u32> for MemorySize {
    type Error = MemorySizeOutOfRange;

    fn try_from(mib: u32) -> Result<Self, Self::Error> {
        Self::from_mib(mib)
    }
}

impl From<MemorySize> for u32 {
    fn from(size: MemorySize) -> Self {
        size.0
    }
}

/// A kernel or initrd: a file of the host, or content that was read from somewhere else already.
#[derive(Clone, PartialEq, Eq)]
pub enum BootFile {
    /// A file of the host, read at each boot.
    Path(PathBuf),
    /// Content in memory, the same at each boot. Clones share it.
    Bytes {
        /// Where the content is from, for messages.
        name: String,
        /// The content.
        bytes: Arc<[u8]>,
    },
}

impl BootFile {
    /// Content in memory; `name` tells in messages where it is from.
    pub fn from_bytes(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self::Bytes {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

impl From<PathBuf> for BootFile {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&str> for BootFile {
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Bytes { name, .. } => f.write_str(name),
        }
    }
}

impl fmt::Debug for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            // The content may be a gigabyte.
            Self::Bytes { name, bytes } => write!(f, "Bytes({name:?}, {} bytes)", bytes.len()),
        }
    }
}

/// Where the guest's first instructions come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSource {
    /// A Linux `bzImage`, or an ELF file with a PVH entry note.
    pub kernel: BootFile,
    /// Initial RAM disk, given to the guest unchanged.
    pub initrd: Option<BootFile>,
    /// Kernel command line.
    pub cmdline: String,
}

/// Whether a device that is all or nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It is.
    #[default]
    Present,
    /// It is not.
    Absent,
}

/// Whether the guest may report memory that it does not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FreePageReporting {
    /// It may, all the time; the host gets it back.
    #[default]
    On,
    /// Only what it is asked for.
    Off,
}

/// Everything that defines a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// Guest memory.
    pub memory: MemorySize,
    /// How the host backs it.
    pub memory_options: MemoryOptions,
    /// How its dirty pages are tracked.
    pub dirty_tracking: DirtyTracking,
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// What they look like to the guest.
    pub cpu: CpuModel,
    /// Whether there is an entropy device.
    pub rng: Presence,
    /// The balloon, if there is one.
    pub balloon: Option<FreePageReporting>,
    /// Where the guest starts.
    pub boot: BootSource,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_memory_is_refused_with_the_range() {
        let error = MemorySize::from_mib(8).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Memory size 8 MiB is out of range; choose 16 to 524288 MiB"
        );
        assert!(MemorySize::from_mib(524_289).is_err());
        assert_eq!(MemorySize::from_mib(16).unwrap().bytes(), 16 << 20);
    }

    #[test]
    fn content_in_memory_is_called_by_its_name_and_never_printed() {
        let file = BootFile::from_bytes("/vmlinuz of partition 1 of disk.img", vec![7; 1000]);
        assert_eq!(file.to_string(), "/vmlinuz of partition 1 of disk.img");
        assert_eq!(
            format!("{file:?}"),
            "Bytes(\"/vmlinuz of partition 1 of disk.img\", 1000 bytes)"
        );
    }
}
