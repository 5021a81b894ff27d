// SPDX-License-Identifier: Apache-2.0
//! The bound of everything that an image could make large.

/// Bytes of a kernel. Distribution kernels have 8 to 20 MiB.
pub(crate) const KERNEL_BYTES_MAX: u64 = 256 << 20;
/// Bytes of all initrds together.
pub(crate) const INITRD_BYTES_MAX: u64 = 1 << 30;
/// Initrds of one entry.
pub(crate) const INITRDS_MAX: usize = 32;
/// Bytes of a configuration file.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Bytes of one boot entry's file; many are kept at a time.
pub(crate) const ENTRY_BYTES_MAX: u64 = 64 << 10;
/// Boot entries that are looked at.
pub(crate) const ENTRIES_MAX: usize = 1024;
/// Bytes of a command line. The boot protocol carries less; the loader checks that.
pub(crate) const COMMAND_LINE_BYTES_MAX: usize = 64 << 10;

/// Partitions that are looked at.
pub(crate) const PARTITIONS_MAX: usize = 128;
/// Names of one directory that are looked at.
pub(crate) const DIRECTORY_NAMES_MAX: usize = 16_384;
/// Bytes of one directory.
pub(crate) const DIRECTORY_BYTES_MAX: u64 = 8 << 20;
/// Symbolic links followed for one path, as Linux does.
pub(crate) const SYMLINKS_MAX: usize = 40;
/// Bytes of a path and of a symbolic link's target, as Linux does.
pub(crate) const PATH_BYTES_MAX: usize = 4096;
/// Configuration files that include one another.
pub(crate) const INCLUDE_DEPTH_MAX: usize = 8;

/// Bytes read from an image in all: the largest kernel and initrd, and plenty for what leads there.
pub(crate) const READ_BYTES_MAX: u64 = 3 << 30;
