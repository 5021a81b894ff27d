// SPDX-License-Identifier: Apache-2.0
//! The Linux guest of the tests: Debian's cloud kernel and an initramfs of busybox and the ledger program.
//!
//! On its console come perhaps some words of the kernel, then `LEDGER START`, then one line `<n> <time stamp counter>`
//! every [`command_line`]'s interval, for ever; [`crate::ledger`] reads them. The guest needs 1 vCPU, 96 MiB of memory,
//! a 16550 at 0x3f8 with interrupt 4, KVM's interrupt controllers and PIT, and no disk, network, ACPI or PCI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{self, Key};
use crate::kernel::{self, Flavour};
use crate::machines::cpio::Archive;

const LEDGER: &str = include_str!("../guests/linux-ledger.c");
const INIT: &str = include_str!("../guests/linux-init.sh");

/// Files that a VMM boots.
#[derive(Debug, Clone)]
pub struct LinuxGuest {
    /// A `bzImage`.
    pub kernel: PathBuf,
    /// A cpio archive, not compressed.
    pub initramfs: PathBuf,
}

/// The guest's files, made now when the cache lacks them.
///
/// # Errors
/// When `apt` cannot fetch the kernel or busybox, or `gcc` cannot link a static program.
pub fn ensure() -> Result<LinuxGuest> {
    let kernel = kernel::fetch(Flavour::Cloud)?;
    let busybox = kernel::busybox()?;
    let key = Key::new()
        .with(LEDGER.as_bytes())
        .with(INIT.as_bytes())
        .with(busybox.as_os_str().as_encoded_bytes());
    let directory = cache::obtain("linux-guest", &key, |into| build(&busybox, into))?;
    Ok(LinuxGuest {
        kernel: kernel.vmlinuz,
        initramfs: directory.join("initramfs"),
    })
}

impl LinuxGuest {
    /// The kernel as an ELF file with a PVH entry note, which needs no decompression by the guest.
    ///
    /// # Errors
    /// When `lz4` is missing.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        kernel::fetch(Flavour::Cloud)?.vmlinux()
    }
}

/// The kernel command line for a VMM with 1 vCPU, a serial port, and neither ACPI tables nor a PCI bus.
///
/// `interval_ms` is the pause between two lines of the ledger; 0 is none.
pub fn command_line(interval_ms: u32) -> String {
    format!(
        // Without ACPI and MP tables there is no I/O APIC to check the timer through; `reboot=k` resets through the
        // keyboard controller, the only way without ACPI.
        "console=ttyS0,115200 quiet loglevel=1 panic=-1 reboot=k acpi=off pci=off no_timer_check nokaslr \
         mitigations=off random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd \
         ledger.interval_ms={interval_ms}"
    )
}

fn build(busybox: &Path, into: &Path) -> Result<()> {
    let ledger = compile(into)?;
    let archive = Archive::default()
        .directory("bin")
        .directory("proc")
        .file("bin/busybox", 0o755, &read(busybox)?)
        .file("ledger", 0o755, &read(&ledger)?)
        .file("init", 0o755, INIT.as_bytes())
        .finish();
    fs::write(into.join("initramfs"), archive).context("Cannot write the initramfs")
}

fn compile(into: &Path) -> Result<PathBuf> {
    let (source, program) = (into.join("ledger.c"), into.join("ledger"));
    fs::write(&source, LEDGER).context("Cannot write the ledger's source")?;
    let output = Command::new("gcc")
        .args(["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-o"])
        .args([&program, &source])
        .output()
        .context("Cannot run gcc (Debian: gcc, libc6-dev)")?;
    ensure!(
        output.status.success(),
        "gcc ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(program)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}
