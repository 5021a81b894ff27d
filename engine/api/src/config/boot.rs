// SPDX-License-Identifier: Apache-2.0
//! `[boot]`: what the machine starts, a kernel given by path or one found on a disk.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use thiserror::Error;

use super::DeviceId;

/// What the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BootKeys")]
pub enum BootSection {
    /// Files of the host.
    Kernel(KernelBoot),
    /// What is found on a disk of the guest.
    Disk(DiskBoot),
}

/// A guest started from files of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelBoot {
    /// A Linux bzImage, or an ELF file with a PVH entry note.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A guest started from one of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBoot {
    /// The disk: kernel, initrd and command line are found on it.
    pub disk: DeviceId,
    /// Appended to the command line that is found.
    pub cmdline: String,
}

/// The keys as they stand in the file.
///
/// What the machine starts: either `kernel`, or `disk`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    rename = "BootSection",
    description = "What the machine starts: either `kernel` or `disk`.",
    extend("oneOf" = [{ "required": ["kernel"] }, { "required": ["disk"] }])
)]
pub(super) struct BootKeys {
    /// A file of the host: a Linux bzImage (usually /boot/vmlinuz-VERSION), or an ELF file with a
    /// PVH entry note. It must be on both nodes, the same.
    kernel: Option<PathBuf>,
    /// The initial RAM disk, a file of the host; only with `kernel`. It must be on both nodes, the
    /// same.
    initrd: Option<PathBuf>,
    /// The `id` of a `[[disk]]` to start from: kernel, initrd and command line are found on it, in
    /// /boot or by boot loader entries.
    disk: Option<DeviceId>,
    /// With `kernel`, the whole command line of the kernel; with `disk`, appended to what is found.
    /// Default: empty.
    #[serde(default)]
    cmdline: String,
}

/// Keys that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum BootKeysError {
    #[error(
        "nothing to start: give kernel = \"/PATH\" for a kernel of the host, or disk = \"ID\" for \
         the one on a [[disk]]"
    )]
    Neither,
    #[error(
        "kernel and disk are both given: keep kernel = {kernel:?} to start the host's file, or \
         disk = \"{disk}\" to start what is on the disk"
    )]
    Both { kernel: PathBuf, disk: DeviceId },
    #[error(
        "initrd = {initrd:?} goes with kernel, not with disk = \"{disk}\", where the initrd is \
         found on the disk: remove it"
    )]
    Initrd { initrd: PathBuf, disk: DeviceId },
}

impl TryFrom<BootKeys> for BootSection {
    type Error = BootKeysError;

    fn try_from(keys: BootKeys) -> Result<Self, BootKeysError> {
        let BootKeys {
            kernel,
            initrd,
            disk,
            cmdline,
        } = keys;
        match (kernel, disk, initrd) {
            (Some(kernel), None, initrd) => Ok(Self::Kernel(KernelBoot {
                kernel,
                initrd,
                cmdline,
            })),
            (None, Some(disk), None) => Ok(Self::Disk(DiskBoot { disk, cmdline })),
            (None, Some(disk), Some(initrd)) => Err(BootKeysError::Initrd { initrd, disk }),
            (Some(kernel), Some(disk), _) => Err(BootKeysError::Both { kernel, disk }),
            (None, None, _) => Err(BootKeysError::Neither),
        }
    }
}

impl fmt::Display for BootSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(boot) => write!(f, "kernel {}", boot.kernel.display()),
            Self::Disk(boot) => write!(f, "boot from disk {}", boot.disk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BootSection, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn a_kernel_or_a_disk_is_started_and_nothing_else() {
        let kernel = read("kernel = \"/k\"\ninitrd = \"/i\"\ncmdline = \"quiet\"").unwrap();
        assert_eq!(kernel.to_string(), "kernel /k");
        let disk = read("disk = \"system\"\ncmdline = \"quiet\"").unwrap();
        assert!(matches!(disk, BootSection::Disk(boot) if boot.cmdline == "quiet"));
        for (text, remedy) in [
            ("", "give kernel"),
            ("initrd = \"/i\"", "give kernel"),
            ("kernel = \"/k\"\ndisk = \"a\"", "keep kernel = \"/k\""),
            ("disk = \"a\"\ninitrd = \"/i\"", "remove it"),
            ("disk = \"a b\"", "device id"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(remedy), "{text}: {told}");
        }
    }
}
