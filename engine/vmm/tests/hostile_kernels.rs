// SPDX-License-Identifier: Apache-2.0
//! A kernel that comes from a guest's disk is as hostile as the guest: whatever its headers say, it
//! is loaded or refused, without a panic. (Writes outside guest memory are impossible by its type.)
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::path::Path;

use common::guests;
use kemari_vmm::{BootError, BootFile, BootSource, MachineConfig, check_boot};
use proptest::prelude::*;

const SETUP_SECTORS: usize = 0x1f1;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const COMMAND_LINE_SIZE: usize = 0x238;
const INITRD_END: usize = 0x22c;

/// The smallest `bzImage` that is loaded: boot protocol 2.15 with a 64-bit entry point.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x3000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTORS, &[4]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    // Loaded high; 64-bit entry point.
    put(0x211, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(INITRD_END, &0x7fff_ffffu32.to_le_bytes());
    put(COMMAND_LINE_SIZE, &2047u32.to_le_bytes());
    put(PREFERRED_ADDRESS, &(1u64 << 20).to_le_bytes());
    put(INIT_SIZE, &(1u32 << 20).to_le_bytes());
    image
}

fn config(kernel: Vec<u8>) -> MachineConfig {
    MachineConfig {
        boot: BootSource {
            kernel: BootFile::from_bytes("the kernel", kernel),
            initrd: Some(BootFile::from_bytes("the initrd", vec![7; 5000])),
            cmdline: "quiet".to_owned(),
        },
        ..common::config(Path::new("/nonexistent"), "", 16)
    }
}

fn refusal(kernel: Vec<u8>) -> BootError {
    check_boot(&config(kernel)).unwrap_err()
}

#[test]
fn content_in_memory_is_loaded_like_a_file() {
    check_boot(&config(bzimage())).unwrap();
    check_boot(&config(guests::elf(guests::counter()))).unwrap();
    let text = refusal(b"hello".to_vec()).to_string();
    assert!(text.starts_with("the kernel cannot be booted, it is a text file"));
}

#[test]
fn absurd_fields_of_a_bzimage_are_refused_by_name() {
    let with = |at: usize, bytes: &[u8]| {
        let mut image = bzimage();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(image)
    };
    for (at, bytes) in [
        (PREFERRED_ADDRESS, &u64::MAX.to_le_bytes()[..]),
        (PREFERRED_ADDRESS, &(1u64 << 40).to_le_bytes()),
        (INIT_SIZE, &u32::MAX.to_le_bytes()),
        (INITRD_END, &0u32.to_le_bytes()),
    ] {
        let error = with(at, bytes);
        assert!(matches!(error, BootError::MemoryTooSmall { .. }), "{error}");
    }
    let error = with(COMMAND_LINE_SIZE, &3u32.to_le_bytes());
    assert!(matches!(
        error,
        BootError::CommandLineTooLong { limit: 3, .. }
    ));
    // More set-up sectors than the file has.
    let error = with(SETUP_SECTORS, &[255]);
    assert!(error.to_string().contains("a damaged bzImage"), "{error}");
}

#[test]
fn the_initrd_lies_above_the_kernel_even_if_the_header_understates_it() {
    let mut image = bzimage();
    image[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&1u32.to_le_bytes());
    image.resize((15 << 20) - 4000, 0);
    let error = refusal(image);
    assert!(
        matches!(error, BootError::MemoryTooSmall { what: "initrd", .. }),
        "{error}"
    );
}

#[test]
fn an_elf_file_made_to_keep_the_loader_busy_is_refused() {
    let mut elf = guests::elf(guests::counter());
    elf[0x38..0x3a].copy_from_slice(&u16::MAX.to_le_bytes());
    let text = refusal(elf).to_string();
    assert!(text.contains("65535 program headers"), "{text}");
    let mut elf = guests::elf(guests::counter());
    // The file size of the second header, the note.
    elf[0x98..0xa0].copy_from_slice(&u64::MAX.to_le_bytes());
    let text = refusal(elf).to_string();
    assert!(text.contains("an absurd note"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_headers_never_panic(
        elf in any::<bool>(),
        changes in prop::collection::vec((0usize..0x300, any::<u8>()), 1..24),
        length in 0usize..0x4000,
    ) {
        let mut image = if elf { guests::elf(guests::counter()) } else { bzimage() };
        for (at, byte) in changes {
            image[at] = byte;
        }
        image.truncate(length.max(8));
        let _ = check_boot(&config(image));
    }

    #[test]
    fn mutated_header_words_never_panic(
        elf in any::<bool>(),
        changes in prop::collection::vec(
            (0usize..0x2f8, prop::sample::select(vec![0, 1, 0x7f, 0xffff, u64::MAX >> 1, u64::MAX])),
            1..6,
        ),
    ) {
        let mut image = if elf { guests::elf(guests::counter()) } else { bzimage() };
        for (at, word) in changes {
            image[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let _ = check_boot(&config(image));
    }
}
