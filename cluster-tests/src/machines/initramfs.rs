// SPDX-License-Identifier: Apache-2.0
//! The first root file system of an emulated machine: busybox, the modules it cannot do without, and `init.sh`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::kernel::Kernel;

const INIT: &str = include_str!("init.sh");

/// Loaded at every boot. `crc32c_generic` is what ext4 asks for by its algorithm's name.
const COMMON: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "crc32c_generic",
    "ext4",
    "overlay",
    "tun",
    "bridge",
];

/// Writes the archive for a kernel to a file.
///
/// # Errors
/// When a module or busybox cannot be read, or the file cannot be written.
pub(crate) fn write(kernel: &Kernel, busybox: &Path, to: &Path) -> Result<()> {
    let mut archive = Archive::default()
        .file("init", 0o755, INIT.as_bytes())
        .directory("bin")
        .file("bin/busybox", 0o755, &read(busybox)?)
        .directory("modules");
    for directory in [
        "proc", "sys", "dev", "new", "disk", "disk/a", "disk/b", "disk/c", "disk/d",
    ] {
        archive = archive.directory(directory);
    }
    let mut packed: Vec<PathBuf> = Vec::new();
    for (list, names) in [
        ("order", COMMON),
        ("amd", &["kvm_amd"]),
        ("intel", &["kvm_intel"]),
    ] {
        let mut text = String::new();
        for module in kernel.load_order(names)? {
            let name = module
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            text.push_str(&name);
            text.push('\n');
            if !packed.contains(&module) {
                archive =
                    archive.file(&format!("modules/{name}"), 0o644, unsigned(&read(&module)?));
                packed.push(module);
            }
        }
        archive = archive.file(&format!("modules/{list}"), 0o644, text.as_bytes());
    }
    fs::write(to, archive.finish()).with_context(|| format!("Cannot write {}", to.display()))
}

/// A module without its signature. Verifying some thirty of them takes a second under emulation, and Debian's kernel
/// accepts them without. The trailer is `struct module_signature` and a magic (Linux, `kernel/module/signing.c`).
fn unsigned(module: &[u8]) -> &[u8] {
    let without = || {
        let rest = module.strip_suffix(b"~Module signature appended~\n")?;
        let (rest, length) = rest.split_last_chunk::<4>()?;
        // The eight bytes before the length describe the signature, which stands before them.
        let behind = usize::try_from(u32::from_be_bytes(*length)).ok()? + 8;
        rest.get(..rest.len().checked_sub(behind)?)
    };
    without().unwrap_or(module)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::unsigned;

    #[test]
    fn a_signature_is_taken_off() {
        let signed = [
            b"code".as_slice(),
            b"SIG",
            &[0; 8],
            &[0, 0, 0, 3],
            b"~Module signature appended~\n",
        ]
        .concat();
        assert_eq!(unsigned(&signed), b"code");
        assert_eq!(unsigned(b"code"), b"code");
    }
}
