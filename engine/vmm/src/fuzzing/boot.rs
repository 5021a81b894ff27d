// SPDX-License-Identifier: Apache-2.0
//! The loader, given a kernel file that may be anything: any bytes, or a small bzImage or ELF file
//! that would boot, with some of its bytes changed.

use super::input::Input;
use crate::boot::check_boot;
use crate::config::{
    BootFile, BootSource, CpuModel, MachineConfig, MemorySize, Presence, VcpuCount,
};
use crate::dirty::tracking::DirtyTracking;
use crate::memory::MemoryOptions;

const KERNEL: u32 = 0x10_0000;

/// Loads what the bytes say.
pub(super) fn load(data: &[u8]) {
    let mut input = Input::new(data);
    let form = input.u8();
    let cmdline = "x".repeat(usize::from(input.u16()));
    let initrd = (form & 8 != 0).then(|| {
        let bytes = vec![7; usize::from(input.u16())];
        BootFile::from_bytes("initrd", bytes)
    });
    let kernel = match form & 3 {
        0 => input.rest().to_vec(),
        1 | 2 => damaged(bzimage(), &mut input),
        _ => damaged(elf(), &mut input),
    };
    let mut config = machine(kernel);
    config.vcpus = VcpuCount::new(1 + u32::from(input.below(4))).expect("four are in range");
    config.boot.initrd = initrd;
    config.boot.cmdline = cmdline;
    // Loaded or refused; an error can be told, with all its causes.
    if let Err(error) = check_boot(&config) {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            assert!(!error.to_string().is_empty());
            cause = error.source();
        }
    }
}

/// The least machine, with this kernel.
pub(super) fn machine(kernel: Vec<u8>) -> MachineConfig {
    MachineConfig {
        memory: MemorySize::from_mib(MemorySize::MIN_MIB).expect("the least is in range"),
        vcpus: VcpuCount::new(1).expect("one is in range"),
        cpu: CpuModel::Host,
        memory_options: MemoryOptions::default(),
        dirty_tracking: DirtyTracking::Auto,
        rng: Presence::Absent,
        balloon: None,
        boot: BootSource {
            kernel: BootFile::from_bytes("kernel", kernel),
            initrd: None,
            cmdline: String::new(),
        },
    }
}

fn damaged(mut file: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    input.damage(&mut file);
    file
}

/// Content at a place of a file.
fn put(file: &mut [u8], at: usize, content: &[u8]) {
    for (byte, value) in file.iter_mut().skip(at).zip(content) {
        *byte = *value;
    }
}

/// A bzImage of protocol 2.15 with one setup sector and 1 KiB of kernel
/// (Documentation/arch/x86/boot.rst).
pub(super) fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2048];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut file, 0x200, &[0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020fu16.to_le_bytes());
    // Loaded high, at 1 MiB; 64-bit entry point.
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x214, &KERNEL.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut file, 0x234, &[1, 21, 1, 0]);
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &u64::from(KERNEL).to_le_bytes());
    put(&mut file, 0x260, &0x1000u32.to_le_bytes());
    file
}

/// An ELF file with one segment and a PVH note.
pub(super) fn elf() -> Vec<u8> {
    const LOAD_AT: usize = 0x40;
    const NOTE_AT: usize = 0x78;
    const NOTE: usize = 0xb0;
    const CONTENT: u64 = 0x100;
    let mut file = vec![0; 0x200];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 0x10, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut file, 0x18, &u64::from(KERNEL).to_le_bytes());
    put(&mut file, 0x20, &0x40u64.to_le_bytes());
    put(&mut file, 0x34, &[64, 0, 56, 0, 2, 0]);
    let header = |kind: u32, offset: u64, address: u64, bytes: u64, memory: u64| {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(7u32.to_le_bytes());
        for word in [offset, address, address, bytes, memory, 4] {
            header.extend(word.to_le_bytes());
        }
        header
    };
    let load = header(1, CONTENT, u64::from(KERNEL), 0x100, 0x2000);
    put(&mut file, LOAD_AT, &load);
    let note = header(4, 0xb0, 0, 20, 20);
    put(&mut file, NOTE_AT, &note);
    // Name "Xen", a word as description, type XEN_ELFNOTE_PHYS32_ENTRY.
    put(&mut file, NOTE, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut file, NOTE + 12, b"Xen\0");
    put(&mut file, NOTE + 16, &KERNEL.to_le_bytes());
    file
}
