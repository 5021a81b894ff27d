// SPDX-License-Identifier: Apache-2.0
//! Kernels and machines that cannot be used are refused with the reason and the remedy.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::io::Write;
use std::path::Path;

use common::{Bench, guests};
use kemari_vmm::BootError;
use tempfile::NamedTempFile;

fn refusal(content: &[u8]) -> String {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let mut bench = Bench::with_kernel(file.path(), "");
    let message = bench.machine.boot().unwrap_err().to_string();
    assert!(message.contains(&file.path().display().to_string()));
    message
}

#[test]
fn a_missing_kernel_is_named() {
    needs_kvm!();
    let mut bench = Bench::with_kernel(Path::new("/nonexistent/vmlinuz"), "");
    assert_eq!(
        bench.machine.boot().unwrap_err().to_string(),
        "Cannot read the kernel /nonexistent/vmlinuz: check the path and its permissions"
    );
}

#[test]
fn a_directory_is_no_kernel() {
    needs_kvm!();
    let mut bench = Bench::with_kernel(Path::new("/tmp"), "");
    assert!(matches!(
        bench.machine.boot().unwrap_err(),
        BootError::Read { .. }
    ));
}

#[test]
fn what_a_wrong_file_is_and_what_would_be_right_is_said() {
    needs_kvm!();
    for (content, expected) in [
        (&b""[..], "it is empty"),
        (b"hello, world\n", "it is a text file"),
        (b"#!/bin/sh\n", "it is a script"),
        (b"\x1f\x8b\x08\x00", "it is gzip-compressed data"),
        (
            b"\x7fELF\x01\x01\x01",
            "it is an ELF file that is not 64-bit",
        ),
        (b"\xff\xfe\xfd", "it begins with ff fe fd"),
    ] {
        let message = refusal(content);
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("name a Linux bzImage"), "{message}");
    }
}

#[test]
fn an_elf_file_without_the_note_is_refused() {
    needs_kvm!();
    let mut elf = guests::elf(guests::counter());
    // The note's type.
    elf[0x208] = 1;
    assert!(refusal(&elf).contains("an ELF file without PVH entry note"));
}

#[test]
fn a_kernel_that_needs_more_memory_is_refused_with_the_amount() {
    needs_kvm!();
    let mut elf = guests::elf(guests::counter());
    // The memory size of the first segment: 31 MiB from 1 MiB on.
    elf[0x68..0x70].copy_from_slice(&(31u64 << 20).to_le_bytes());
    assert!(refusal(&elf).contains("needs 32 MiB of guest memory, the guest has 16 MiB"));
}

#[test]
fn damaged_elf_files_never_panic() {
    needs_kvm!();
    let good = guests::elf(guests::counter());
    let mut file = NamedTempFile::new().unwrap();
    let mut bench = Bench::with_kernel(file.path(), "");
    for at in 0..0x240 {
        let mut bad = good.clone();
        bad[at] = bad[at].wrapping_add(0x81);
        file.as_file_mut().set_len(0).unwrap();
        file.reopen().unwrap().write_all(&bad).unwrap();
        let _ = bench.machine.boot();
    }
}

#[test]
fn a_command_line_that_does_not_fit_is_refused() {
    needs_kvm!();
    let kernel = guests::write_elf(guests::speaker());
    let mut bench = Bench::with_kernel(kernel.path(), &"x".repeat(70_000));
    assert!(matches!(
        bench.machine.boot(),
        Err(BootError::CommandLineTooLong { limit: 65_535, .. })
    ));
    let mut bench = Bench::with_kernel(kernel.path(), "a\0b");
    assert!(matches!(
        bench.machine.boot(),
        Err(BootError::CommandLineNul)
    ));
}
