// SPDX-License-Identifier: Apache-2.0
//! The files of the host that a description names and every node must have.

use std::path::Path;

use super::{BootSection, VmConfig};

/// A file of the host that the machine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile<'a> {
    /// The path of the key that names it, as [`super::KeyLines`] knows it.
    pub key: String,
    /// The file.
    pub path: &'a Path,
}

impl VmConfig {
    /// Kernel and initrd, where the machine starts from files of the host.
    pub fn boot_files(&self) -> impl Iterator<Item = NamedFile<'_>> {
        let files = match &self.boot {
            BootSection::Kernel(boot) => [
                Some(("boot.kernel", boot.kernel.as_path())),
                boot.initrd.as_deref().map(|path| ("boot.initrd", path)),
            ],
            BootSection::Disk(_) => [None, None],
        };
        files.into_iter().flatten().map(|(key, path)| NamedFile {
            key: key.to_owned(),
            path,
        })
    }

    /// The files and block devices behind the disks.
    pub fn disk_files(&self) -> impl Iterator<Item = NamedFile<'_>> {
        self.disk.iter().enumerate().map(|(index, disk)| NamedFile {
            key: format!("disk[{index}].path"),
            path: disk.path.as_path(),
        })
    }
}
