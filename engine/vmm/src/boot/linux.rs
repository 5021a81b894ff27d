// SPDX-License-Identifier: Apache-2.0
//! The Linux boot protocol: fills the "zero page" and enters at the 64-bit entry point.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::kernel::LinuxKernel;
use super::registers::Entry;
use super::{BootError, COMMAND_LINE, Guest};
use crate::ram::GuestRam;

const ZERO_PAGE: u64 = 0x7000;
/// The 64-bit entry point is this far into the loaded kernel.
const ENTRY_OFFSET: u64 = 0x200;
/// "Undefined" boot loader.
const LOADER_TYPE: u8 = 0xff;

pub(super) fn prepare(
    ram: &GuestRam,
    kernel: &LinuxKernel,
    guest: &Guest,
) -> Result<Entry, BootError> {
    let mut params = boot_params {
        hdr: kernel.header,
        acpi_rsdp_addr: guest.rsdp,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = LOADER_TYPE;
    // The kernel's file has no say in what a boot loader fills in.
    params.hdr.setup_data = 0;
    params.hdr.ramdisk_image = 0;
    params.hdr.ramdisk_size = 0;
    // Everything is below 4 GiB by construction.
    params.hdr.cmd_line_ptr = low32(COMMAND_LINE);
    if let Some(initrd) = &guest.initrd {
        params.hdr.ramdisk_image = low32(initrd.address);
        params.hdr.ramdisk_size = low32(initrd.size);
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(&guest.memory_map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.length,
            r#type: entry.kind as u32,
        };
        params.e820_entries += 1;
    }
    ram.mapping().write_obj(params, GuestAddress(ZERO_PAGE))?;
    Entry::long_mode(ram, kernel.load_address + ENTRY_OFFSET, ZERO_PAGE)
}

fn low32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
