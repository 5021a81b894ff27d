// SPDX-License-Identifier: Apache-2.0
//! The vCPUs' registers at the guest's first instruction, and the tables they point to.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::msrs::{self, Msr};
use crate::ram::GuestRam;

const GDT: u64 = 0x500;
const IDT: u64 = 0x540;
const PAGE_TABLES: u64 = 0x9000;
const STACK: u64 = 0x8ff0;
/// Selectors that the Linux boot protocol names.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
const GDT_ENTRIES: usize = 5;

const CR0_PROTECTION: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;

const FAST_STRINGS: Msr = Msr {
    index: msrs::MISC_ENABLE,
    value: 1,
};
/// MTRRs enabled, write-back by default.
const WRITE_BACK: Msr = Msr {
    index: msrs::MTRR_DEFAULT_TYPE,
    value: 0x806,
};
/// Offsets of the LINT0 and LINT1 entries in the local APIC, and their delivery modes.
const LAPIC_LINT: [(usize, u32); 2] = [(0x350, 7 << 8), (0x360, 4 << 8)];

/// Where and how a guest starts.
pub(crate) struct Entry {
    mode: Mode,
    regs: kvm_regs,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// 64-bit, identity-mapped.
    Long,
    /// 32-bit, no paging.
    Flat,
}

impl Entry {
    /// The Linux 64-bit entry: RSI points to the zero page.
    pub(super) fn long_mode(ram: &GuestRam, entry: u64, params: u64) -> Result<Self, BootError> {
        write_page_tables(ram)?;
        write_descriptors(ram, Mode::Long)?;
        Ok(Self {
            mode: Mode::Long,
            regs: kvm_regs {
                rip: entry,
                rsi: params,
                rsp: STACK,
                rbp: STACK,
                rflags: RFLAGS_RESERVED,
                ..kvm_regs::default()
            },
        })
    }

    /// The PVH entry: EBX points to the start info.
    pub(super) fn flat_32_bit(ram: &GuestRam, entry: u64, info: u64) -> Result<Self, BootError> {
        write_descriptors(ram, Mode::Flat)?;
        Ok(Self {
            mode: Mode::Flat,
            regs: kvm_regs {
                rip: entry,
                rbx: info,
                rsp: STACK,
                rflags: RFLAGS_RESERVED,
                ..kvm_regs::default()
            },
        })
    }

    /// What firmware sets on every CPU, also on those that the guest starts later: an INIT does not
    /// change it.
    pub(crate) fn set_common_registers(vcpu: &VcpuFd) -> Result<(), BootError> {
        msrs::write(vcpu, &[FAST_STRINGS, WRITE_BACK]).map_err(BootError::Reset)
    }

    /// What the CPU starts with that boots the guest.
    pub(crate) fn set_registers(&self, vcpu: &VcpuFd) -> Result<(), BootError> {
        let failed = |call| move |source| BootError::Kvm { call, source };
        vcpu.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        set_system_registers(&mut sregs, self.mode);
        vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        let mut lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        for (at, value) in LAPIC_LINT {
            for (register, byte) in lapic.regs.iter_mut().skip(at).zip(value.to_le_bytes()) {
                *register = byte.cast_signed();
            }
        }
        vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
    }
}

fn set_system_registers(sregs: &mut kvm_sregs, mode: Mode) {
    let data = segment(DATA_SELECTOR, &Kind::Data);
    sregs.cs = segment(CODE_SELECTOR, &Kind::Code(mode));
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.tr = segment(TASK_SELECTOR, &Kind::Task);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = u16::try_from(GDT_ENTRIES * 8 - 1).unwrap_or(u16::MAX);
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    sregs.cr0 = CR0_PROTECTION | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if mode == Mode::Long {
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
        sregs.cr0 |= CR0_PAGING;
        sregs.efer = EFER_LONG_MODE;
    }
}

enum Kind {
    Code(Mode),
    Data,
    Task,
}

/// A flat segment as the CPU caches it. 4 GiB in units of pages; the task state has its 104 bytes.
fn segment(selector: u16, kind: &Kind) -> kvm_segment {
    let (type_, long, task) = match kind {
        Kind::Code(mode) => (0xb, u8::from(*mode == Mode::Long), false),
        Kind::Data => (0x3, 0, false),
        Kind::Task => (0xb, 0, true),
    };
    kvm_segment {
        base: 0,
        limit: if task { 0x67 } else { u32::MAX },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!task && long == 0),
        s: u8::from(!task),
        l: long,
        g: u8::from(!task),
        ..kvm_segment::default()
    }
}

/// The same segments as descriptors in memory, for guests that reload selectors.
fn write_descriptors(ram: &GuestRam, mode: Mode) -> Result<(), BootError> {
    let code: u64 = match mode {
        Mode::Long => 0x00af_9b00_0000_ffff,
        Mode::Flat => 0x00cf_9b00_0000_ffff,
    };
    let data: u64 = 0x00cf_9300_0000_ffff;
    let task: u64 = 0x0000_8b00_0000_0067;
    let table: [u64; GDT_ENTRIES] = [0, 0, code, data, task];
    let bytes: Vec<u8> = table.into_iter().flat_map(u64::to_le_bytes).collect();
    ram.mapping().write_slice(&bytes, GuestAddress(GDT))?;
    ram.mapping().write_slice(&[0; 8], GuestAddress(IDT))?;
    Ok(())
}

/// Maps the first 4 GiB to themselves: one top table, one of 1 GiB entries, four of 2 MiB pages.
fn write_page_tables(ram: &GuestRam) -> Result<(), BootError> {
    const TABLE: u64 = 0x1000;
    const GIGABYTES: u64 = 4;
    let directory_pointers = PAGE_TABLES + TABLE;
    let directories = directory_pointers + TABLE;
    let mut tables = vec![0u64; 512 * 2];
    if let Some(top) = tables.get_mut(0) {
        *top = directory_pointers | PAGE_PRESENT_WRITABLE;
    }
    for (entry, gigabyte) in tables.iter_mut().skip(512).zip(0..GIGABYTES) {
        *entry = (directories + gigabyte * TABLE) | PAGE_PRESENT_WRITABLE;
    }
    tables.extend((0..512 * GIGABYTES).map(|page| page << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE));
    let bytes: Vec<u8> = tables.into_iter().flat_map(u64::to_le_bytes).collect();
    ram.mapping()
        .write_slice(&bytes, GuestAddress(PAGE_TABLES))?;
    Ok(())
}
