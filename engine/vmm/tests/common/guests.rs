// SPDX-License-Identifier: Apache-2.0
//! Bare guests: 32-bit code, assembled into this test program's read-only data, wrapped in an ELF file
//! with a PVH note. They run at 1 MiB with EBX pointing to the PVH start info and use no stack and no
//! interrupts.

use std::io::Write;

use tempfile::NamedTempFile;

/// Where the code is loaded and entered.
pub const LOAD_ADDRESS: u32 = 0x10_0000;
/// Where guests keep a counter in memory.
pub const COUNTER_ADDRESS: u64 = 0x20_0000;
/// Where the dirtier reads how many pages, and how far apart in bytes; two u32.
pub const DIRTIER_ORDER: u64 = 0x1f_f000;
/// The first page that the dirtier writes.
pub const DIRTIER_START: u64 = 0x40_0000;

/// A page for the dirtier that says: this many pages, this many bytes apart.
pub fn dirtier_order(pages: u32, stride: u32) -> [u8; 4096] {
    let mut order = [0; 4096];
    order[..8].copy_from_slice([pages, stride].map(u32::to_le_bytes).as_flattened());
    order
}

/// Declares a guest: a function that gives the code's bytes.
macro_rules! guest {
    ($(#[$doc:meta])* $name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.kemari_guest",
            concat!(".globl kemari_guest_", stringify!($name)),
            concat!(".globl kemari_guest_end_", stringify!($name)),
            concat!("kemari_guest_", stringify!($name), ":"),
            ".code32",
            $($line,)+
            ".code64",
            concat!("kemari_guest_end_", stringify!($name), ":"),
            ".popsection",
            options(att_syntax)
        );

        $(#[$doc])*
        pub fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: the two symbols are defined above, the end after the start, in one section.
            unsafe {
                std::arch::asm!(
                    concat!("leaq kemari_guest_", stringify!($name), "(%rip), {start}"),
                    concat!("leaq kemari_guest_end_", stringify!($name), "(%rip), {end}"),
                    start = out(reg) start,
                    end = out(reg) end,
                    options(att_syntax, pure, nomem, nostack)
                );
                std::slice::from_raw_parts(start, end.offset_from(start).cast_unsigned())
            }
        }
    };
}

guest! {
    /// Counts in EDI and in memory at 2 MiB, which must agree, and writes each number as 4 bytes.
    /// Writes "!" and switches off when they disagree.
    counter,
    "   movl $0x3f8, %edx",
    "   xorl %edi, %edi",
    "1: incl %edi",
    "   incl 0x200000",
    "   movl 0x200000, %eax",
    "   cmpl %eax, %edi",
    "   jne 2f",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   jmp 1b",
    "2: movb $0x21, %al",
    "   outb %al, %dx",
    "   movw $0x604, %dx",
    "   movw $0x3400, %ax",
    "   outw %ax, %dx",
    "3: jmp 3b",
}

guest! {
    /// Writes its command line and switches off.
    speaker,
    "   movl 24(%ebx), %esi",
    "   movl $0x3f8, %edx",
    "1: movb (%esi), %al",
    "   testb %al, %al",
    "   jz 2f",
    "   outb %al, %dx",
    "   incl %esi",
    "   jmp 1b",
    "2: movw $0x604, %dx",
    "   movw $0x3400, %ax",
    "   outw %ax, %dx",
    "   movl $0x3f8, %edx",
    "   movb $0x58, %al",
    "   outb %al, %dx",
    "3: jmp 3b",
}

guest! {
    /// Writes "r" and asks the keyboard controller for a reset.
    resetter,
    "   movl $0x3f8, %edx",
    "   movb $0x72, %al",
    "   outb %al, %dx",
    "   movb $0xfe, %al",
    "   outb %al, $0x64",
    "1: jmp 1b",
}

guest! {
    /// Breaks with a useless interrupt table: a triple fault.
    faulter,
    "   lidt 0x6800",
    "   ud2",
}

guest! {
    /// Writes "h" and halts for ever with interrupts off.
    sleeper,
    "   movl $0x3f8, %edx",
    "   movb $0x68, %al",
    "   outb %al, %dx",
    "1: cli",
    "   hlt",
    "   jmp 1b",
}

guest! {
    /// Sends every received byte back, plus one.
    echo,
    "1: movl $0x3fd, %edx",
    "   inb %dx, %al",
    "   testb $1, %al",
    "   jz 1b",
    "   movl $0x3f8, %edx",
    "   inb %dx, %al",
    "   incb %al",
    "   outb %al, %dx",
    "   jmp 1b",
}

guest! {
    /// Writes "1" to one page in every 64 KiB from 2 MiB to 4 MiB, then "w", then rewrites them for
    /// every byte it receives.
    painter,
    "1: movl $0x200000, %edi",
    "2: incl (%edi)",
    "   addl $0x10000, %edi",
    "   cmpl $0x400000, %edi",
    "   jb 2b",
    "   movl $0x3f8, %edx",
    "   movb $0x77, %al",
    "   outb %al, %dx",
    "3: movl $0x3fd, %edx",
    "   inb %dx, %al",
    "   testb $1, %al",
    "   jz 3b",
    "   movl $0x3f8, %edx",
    "   inb %dx, %al",
    "   jmp 1b",
}

guest! {
    /// For every byte it receives: writes to as many pages as the number at `DIRTIER_ORDER` says, from
    /// 4 MiB on, as far apart as the number behind it says, then writes "d".
    dirtier,
    "1: movl $0x3fd, %edx",
    "   inb %dx, %al",
    "   testb $1, %al",
    "   jz 1b",
    "   movl $0x3f8, %edx",
    "   inb %dx, %al",
    "   movl 0x1ff000, %ecx",
    "   movl 0x1ff004, %ebx",
    "   movl $0x400000, %edi",
    "   testl %ecx, %ecx",
    "   jz 3f",
    "2: incl (%edi)",
    "   addl %ebx, %edi",
    "   decl %ecx",
    "   jnz 2b",
    "3: movb $0x64, %al",
    "   outb %al, %dx",
    "   jmp 1b",
}

guest! {
    /// Reads the CMOS index 0x0d and a missing port and writes both values, then waits for the power
    /// button: enables it, polls the status, acknowledges it, writes "p" and switches off.
    button,
    "   movb $0x0d, %al",
    "   outb %al, $0x70",
    "   inb $0x71, %al",
    "   movl $0x3f8, %edx",
    "   outb %al, %dx",
    "   inb $0x90, %al",
    "   outb %al, %dx",
    "   movw $0x602, %dx",
    "   movw $0x100, %ax",
    "   outw %ax, %dx",
    "   movw $0x600, %dx",
    "1: inw %dx, %ax",
    "   testw $0x100, %ax",
    "   jz 1b",
    "   outw %ax, %dx",
    "   inw %dx, %ax",
    "   testw $0x100, %ax",
    "   jnz 2f",
    "   movl $0x3f8, %edx",
    "   movb $0x70, %al",
    "   outb %al, %dx",
    "2: movw $0x604, %dx",
    "   movw $0x3400, %ax",
    "   outw %ax, %dx",
    "3: jmp 3b",
}

guest! {
    /// Writes the 8 bytes of its time-stamp counter again and again.
    clock,
    "   movl $0x3f8, %ebx",
    "1: rdtsc",
    "   movl %edx, %ecx",
    "   movl %ebx, %edx",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   movl %ecx, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   shrl $8, %eax",
    "   outb %al, %dx",
    "   jmp 1b",
}

/// An ELF file with the code in one segment and a PVH note, 64 KiB of zeroes after the code.
pub fn write_elf(code: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("temporary files can be made");
    file.write_all(&elf(code)).expect("and written");
    file
}

pub fn elf(code: &[u8]) -> Vec<u8> {
    const NOTE_AT: u32 = 0x200;
    const CODE_AT: u32 = 0x1000;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend(
        [u64::from(LOAD_ADDRESS), 64, 0]
            .map(u64::to_le_bytes)
            .concat(),
    );
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut header = |kind: u32, at: u64, address: u64, file_size: u64, memory_size: u64| {
        elf.extend([kind, 5].map(u32::to_le_bytes).concat());
        elf.extend(
            [at, address, address, file_size, memory_size, 4]
                .map(u64::to_le_bytes)
                .concat(),
        );
    };
    let size = code.len() as u64;
    header(
        1,
        CODE_AT.into(),
        LOAD_ADDRESS.into(),
        size,
        size + 0x1_0000,
    );
    header(4, NOTE_AT.into(), 0, 20, 20);
    elf.resize(NOTE_AT.try_into().unwrap(), 0);
    elf.extend([4u32, 4, 18].map(u32::to_le_bytes).concat());
    elf.extend(b"Xen\0");
    elf.extend(LOAD_ADDRESS.to_le_bytes());
    elf.resize(CODE_AT.try_into().unwrap(), 0);
    elf.extend(code);
    elf
}
