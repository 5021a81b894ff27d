// SPDX-License-Identifier: Apache-2.0
//! The PVH boot protocol: fills `hvm_start_info` version 1 and enters in flat 32-bit mode.

use vm_memory::{Bytes, GuestAddress};

use super::kernel::PvhKernel;
use super::registers::Entry;
use super::{BootError, COMMAND_LINE, Guest};
use crate::ram::GuestRam;

const START_INFO: u64 = 0x6000;
const MODULE_LIST: u64 = 0x6040;
const MEMORY_MAP: u64 = 0x6080;
const MAGIC: u32 = 0x336e_c578;
/// Version 1 added the memory map.
const VERSION: u32 = 1;

pub(super) fn prepare(
    ram: &GuestRam,
    kernel: &PvhKernel,
    guest: &Guest,
) -> Result<Entry, BootError> {
    let modules: Vec<u8> = guest
        .initrd
        .iter()
        .flat_map(|initrd| [initrd.address, initrd.size, 0, 0])
        .flat_map(u64::to_le_bytes)
        .collect();
    let map: Vec<u8> = guest
        .memory_map
        .iter()
        .flat_map(|entry| [entry.start, entry.length, entry.kind as u64])
        .flat_map(u64::to_le_bytes)
        .collect();
    let mapping = ram.mapping();
    mapping.write_slice(&modules, GuestAddress(MODULE_LIST))?;
    mapping.write_slice(&map, GuestAddress(MEMORY_MAP))?;
    mapping.write_slice(&start_info(guest), GuestAddress(START_INFO))?;
    Entry::flat_32_bit(ram, kernel.entry, START_INFO)
}

/// `struct hvm_start_info`, in its order.
fn start_info(guest: &Guest) -> Vec<u8> {
    let modules = u32::from(guest.initrd.is_some());
    let command_line = match guest.command_line_length {
        0 => 0,
        _ => COMMAND_LINE,
    };
    let entries = u32::try_from(guest.memory_map.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, modules] {
        bytes.extend(word.to_le_bytes());
    }
    let module_list = u64::from(modules) * MODULE_LIST;
    for address in [module_list, command_line, guest.rsdp, MEMORY_MAP] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend(entries.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes
}
