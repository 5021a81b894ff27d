// SPDX-License-Identifier: Apache-2.0
//! What a boot loader would boot.

use crate::volumes::{FileAt, VolumeIndex};

/// Kernel, initrds and command line, not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What the guest calls it: a title or a version.
    pub(crate) title: String,
    /// What names it, for messages: `entry debian.conf`, `GRUB's menu`.
    pub(crate) named_by: String,
    /// Where that is.
    pub(crate) config: VolumeIndex,
    pub(crate) kernel: FileAt,
    pub(crate) initrds: Vec<FileAt>,
    pub(crate) cmdline: String,
}
