// SPDX-License-Identifier: Apache-2.0
//! Loading a guest and pointing the first vCPU at it.
//!
//! Two ways in: the 64-bit entry of a Linux `bzImage` (Documentation/arch/x86/boot.rst), and the PVH
//! entry of an ELF file (the Xen "x86/HVM direct boot" ABI). Both guests get ACPI tables, a memory map,
//! a command line and perhaps an initrd. Low memory:
//!
//! | address | content |
//! | --- | --- |
//! | 0x500 | GDT, then an empty IDT |
//! | 0x6000 | PVH start info, module list, memory map |
//! | 0x7000 | Linux "zero page" |
//! | 0x9000 | page tables: identity map of the first 4 GiB |
//! | 0x20000 | command line |
//! | 0xe0000 | ACPI tables |
//! | 0x100000 | kernel |
//! | end of low RAM | initrd |

mod acpi;
mod file;
mod kernel;
mod linux;
mod pvh;
mod registers;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::errno;

use crate::config::{BootFile, BootSource, MachineConfig};
use crate::error::RestoreError;
use crate::memory::MapMemoryError;
use crate::pci;
use crate::ram::{GuestRam, ram_ranges};
use file::OpenFile;
use kernel::Kernel;
pub(crate) use registers::Entry;

const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, without its terminating NUL, that any guest takes.
const COMMAND_LINE_LIMIT: usize = 0xffff;
/// End of the memory below 640 KiB that guests may use.
const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where firmware, and here the ACPI tables, begin.
const FIRMWARE_START: u64 = acpi::TABLES;
/// Where kernels are loaded; everything below is for boot data.
const HIGH_MEMORY: u64 = 0x10_0000;

/// The guest could not be loaded.
#[derive(Debug, Error)]
pub enum BootError {
    /// The machine is not paused.
    #[error("The machine is running; pause it before booting it")]
    NotPaused,
    /// The machine could not be put into its state after power-on.
    #[error("Cannot reset the machine")]
    Reset(#[source] RestoreError),
    /// A file cannot be read.
    #[error("Cannot read the {what} {file}: check the path and its permissions")]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file's path or name.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no kernel that can be booted.
    #[error(
        "{file} cannot be booted, it is {found}: name a Linux bzImage (usually /boot/vmlinuz-VERSION) \
         or an ELF file with a PVH entry note (a vmlinux built with CONFIG_PVH=y)"
    )]
    NotAKernel {
        /// The file's path or name.
        file: String,
        /// What the file looks like.
        found: String,
    },
    /// The kernel or initrd needs more memory than the guest has.
    #[error(
        "The {what} {file} needs {needed_mib} MiB of guest memory, the guest has {memory_mib} MiB: \
         give it more"
    )]
    MemoryTooSmall {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file's path or name.
        file: String,
        /// Least memory that would do, in MiB.
        needed_mib: u64,
        /// Memory of the guest below the hole at 3 GiB, in MiB.
        memory_mib: u64,
    },
    /// The command line does not fit.
    #[error("The kernel command line has {length} bytes, this kernel takes {limit}: shorten it")]
    CommandLineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest that fits.
        limit: usize,
    },
    /// The command line has a NUL byte.
    #[error("The kernel command line contains a NUL byte: remove it")]
    CommandLineNul,
    /// Guest memory refused a write; this is a defect of the loader.
    #[error("Cannot write boot data to guest memory")]
    GuestMemory(#[from] GuestMemoryError),
    /// Memory to try the files in could not be mapped.
    #[error(transparent)]
    Memory(MapMemoryError),
    /// KVM refused the first registers.
    #[error("KVM refused {call}")]
    Kvm {
        /// The ioctl's name.
        call: &'static str,
        /// Its error.
        #[source]
        source: errno::Error,
    },
}

/// Tries a machine's boot files without making a machine: everything [`crate::Machine::boot`] may
/// refuse but KVM's own objections. Needs no KVM, and no files where the source has its content in
/// memory ([`BootFile::Bytes`]): a fuzzer's way in.
///
/// # Errors
/// As [`crate::Machine::boot`].
pub fn check_boot(config: &MachineConfig) -> Result<(), BootError> {
    let ram = GuestRam::new(config.memory).map_err(BootError::Memory)?;
    load(&ram, config).map(drop)
}

/// Loads what `config` names and returns where and how the vCPU starts.
pub(crate) fn load(ram: &GuestRam, config: &MachineConfig) -> Result<Entry, BootError> {
    let source = &config.boot;
    let low_end = ram_ranges(config.memory)
        .first()
        .map_or(0, |(start, length)| start + length);
    let kernel = kernel::load(ram, &source.kernel, low_end)?;
    let initrd = match &source.initrd {
        Some(source) => Some(load_initrd(ram, source, low_end, &kernel)?),
        None => None,
    };
    write_command_line(ram, source, kernel.command_line_limit())?;
    let guest = Guest {
        memory_map: memory_map(config),
        initrd,
        command_line_length: source.cmdline.len(),
        rsdp: acpi::write(ram, config.vcpus)?,
    };
    match kernel {
        Kernel::Linux(kernel) => linux::prepare(ram, &kernel, &guest),
        Kernel::Pvh(kernel) => pvh::prepare(ram, &kernel, &guest),
    }
}

/// What both boot protocols tell the guest.
struct Guest {
    memory_map: Vec<MapEntry>,
    initrd: Option<Initrd>,
    command_line_length: usize,
    rsdp: u64,
}

struct Initrd {
    address: u64,
    size: u64,
}

/// A part of the guest-physical address space, as e820 and PVH describe it.
struct MapEntry {
    start: u64,
    length: u64,
    kind: MapKind,
}

#[derive(Clone, Copy)]
enum MapKind {
    Ram = 1,
    Reserved = 2,
}

fn memory_map(config: &MachineConfig) -> Vec<MapEntry> {
    let entry = |start, end: u64, kind| MapEntry {
        start,
        length: end - start,
        kind,
    };
    let mut map = vec![
        entry(0, LOW_MEMORY_END, MapKind::Ram),
        entry(FIRMWARE_START, HIGH_MEMORY, MapKind::Reserved),
    ];
    for (start, length) in ram_ranges(config.memory) {
        map.push(entry(start.max(HIGH_MEMORY), start + length, MapKind::Ram));
    }
    let ecam = u64::from(pci::ECAM_START);
    map.push(entry(
        ecam,
        ecam + u64::from(pci::ECAM_BYTES),
        MapKind::Reserved,
    ));
    map.sort_by_key(|entry| entry.start);
    map
}

fn write_command_line(ram: &GuestRam, source: &BootSource, limit: usize) -> Result<(), BootError> {
    let text = source.cmdline.as_bytes();
    let limit = limit.min(COMMAND_LINE_LIMIT);
    if text.len() > limit {
        return Err(BootError::CommandLineTooLong {
            length: text.len(),
            limit,
        });
    }
    if text.contains(&0) {
        return Err(BootError::CommandLineNul);
    }
    let terminated = [text, &[0]].concat();
    ram.mapping()
        .write_slice(&terminated, GuestAddress(COMMAND_LINE))?;
    Ok(())
}

/// Puts the initrd at the end of low RAM, above everything the kernel needs.
fn load_initrd(
    ram: &GuestRam,
    source: &BootFile,
    low_end: u64,
    kernel: &Kernel,
) -> Result<Initrd, BootError> {
    let mut file = OpenFile::open("initrd", source)?;
    let size = file.length()?;
    let top = low_end.min(kernel.initrd_end_limit());
    let address = top
        .checked_sub(size)
        .map(|start| start & !0xfff)
        .filter(|start| *start >= kernel.end())
        .ok_or_else(|| BootError::MemoryTooSmall {
            what: "initrd",
            file: source.to_string(),
            needed_mib: (kernel.end().saturating_add(size).saturating_add(0xfff)).div_ceil(1 << 20),
            memory_mib: low_end >> 20,
        })?;
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    ram.mapping()
        .read_exact_volatile_from(GuestAddress(address), file.content(), bytes)
        .map_err(|error| file.failed(std::io::Error::other(error)))?;
    Ok(Initrd { address, size })
}
