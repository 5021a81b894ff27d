// SPDX-License-Identifier: Apache-2.0
//! Bare guests with several CPUs: the first starts the others by INIT and start-up IPI, and they stay in
//! real mode. A CPU's number is its APIC id as CPUID tells it.

/// Where each CPU counts, [`CELL_BYTES`] apart.
pub const CELLS: u64 = 0x3_0000;
/// Where a CPU that miscounted says so, as far apart.
pub const COMPLAINTS: u64 = 0x3_8000;
/// Distance of two CPUs' cells.
pub const CELL_BYTES: u64 = 64;

guest! {
    /// Each CPU counts in EDI and in its cell in memory, which must agree; where they do not, it
    /// complains and stops. No exits.
    smp_counter,
    // The other CPUs' code goes to 0x2000.
    "   movl $(8f - kemari_guest_smp_counter + 0x100000), %esi",
    "   movl $0x2000, %edi",
    "   movl $(9f - 8f), %ecx",
    "   rep movsb",
    // Local APIC on, INIT to all others, start-up at page 2.
    "   movl $0xfee00000, %ebx",
    "   movl $0x1ff, 0xf0(%ebx)",
    "   movl $0xc4500, 0x300(%ebx)",
    "   movl $0xc4602, 0x300(%ebx)",
    "   xorl %edi, %edi",
    "1: incl %edi",
    "   incl 0x30000",
    "   cmpl 0x30000, %edi",
    "   je 1b",
    "   movb $1, 0x38000",
    "2: cli",
    "   hlt",
    "   jmp 2b",
    ".code16",
    "8: movl $1, %eax",
    "   cpuid",
    "   shrl $24, %ebx",
    "   shlw $6, %bx",
    "   movw $0x3000, %ax",
    "   movw %ax, %ds",
    "   xorl %edi, %edi",
    "3: incl %edi",
    "   incl (%bx)",
    "   cmpl (%bx), %edi",
    "   je 3b",
    "   movb $1, 0x8000(%bx)",
    "4: cli",
    "   hlt",
    "   jmp 4b",
    "9:",
}

guest! {
    /// Each CPU writes bytes: its number in the upper three bits, a count in the lower five.
    smp_writer,
    "   movl $(8f - kemari_guest_smp_writer + 0x100000), %esi",
    "   movl $0x2000, %edi",
    "   movl $(9f - 8f), %ecx",
    "   rep movsb",
    "   movl $0xfee00000, %ebx",
    "   movl $0x1ff, 0xf0(%ebx)",
    "   movl $0xc4500, 0x300(%ebx)",
    "   movl $0xc4602, 0x300(%ebx)",
    "   xorl %eax, %eax",
    "   movl $0x3f8, %edx",
    "1: outb %al, %dx",
    "   incb %al",
    "   andb $31, %al",
    "   jmp 1b",
    ".code16",
    "8: movl $1, %eax",
    "   cpuid",
    "   shrl $19, %ebx",
    "   xorw %cx, %cx",
    "   movw $0x3f8, %dx",
    "3: movb %cl, %al",
    "   orb %bl, %al",
    "   outb %al, %dx",
    "   incw %cx",
    "   andw $31, %cx",
    "   jmp 3b",
    "9:",
}

guest! {
    /// Every CPU but the first switches the machine off; the first spins.
    smp_switch,
    "   movl $(8f - kemari_guest_smp_switch + 0x100000), %esi",
    "   movl $0x2000, %edi",
    "   movl $(9f - 8f), %ecx",
    "   rep movsb",
    "   movl $0xfee00000, %ebx",
    "   movl $0x1ff, 0xf0(%ebx)",
    "   movl $0xc4500, 0x300(%ebx)",
    "   movl $0xc4602, 0x300(%ebx)",
    "1: jmp 1b",
    ".code16",
    "8: movw $0x604, %dx",
    "   movw $0x3400, %ax",
    "   outw %ax, %dx",
    "3: jmp 3b",
    "9:",
}

guest! {
    /// Starts the other CPUs, which write "w" for ever; when the word at 2 MiB is no longer zero, starts
    /// them anew and asks for a reset at once.
    smp_restarter,
    "   movl $(8f - kemari_guest_smp_restarter + 0x100000), %esi",
    "   movl $0x2000, %edi",
    "   movl $(9f - 8f), %ecx",
    "   rep movsb",
    "   movl $0xfee00000, %ebx",
    "   movl $0x1ff, 0xf0(%ebx)",
    "   movl $0xc4500, 0x300(%ebx)",
    "   movl $0xc4602, 0x300(%ebx)",
    "1: cmpl $0, 0x200000",
    "   je 1b",
    "   movl $0xc4500, 0x300(%ebx)",
    "   movl $0xc4602, 0x300(%ebx)",
    "   movb $0xfe, %al",
    "   outb %al, $0x64",
    "2: jmp 2b",
    ".code16",
    "8: movw $0x3f8, %dx",
    "   movb $0x77, %al",
    "3: outb %al, %dx",
    "   jmp 3b",
    "9:",
}
