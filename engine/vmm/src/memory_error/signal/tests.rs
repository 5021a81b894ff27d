// SPDX-License-Identifier: Apache-2.0
//! The real handler in processes of their own: a signal is the affair of a whole process.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::*;
use crate::config::MemorySize;
use crate::memory_error::{GuestPhysicalAddress, MemoryError, MemoryErrors};
use crate::ram::GuestRam;

/// Tells the process of a test what to do.
const TASK: &str = "KEMARI_MEMORY_ERROR_TEST";
const DONE: &str = "came to its end";
/// Poisoning memory needs both (madvise(2), MADV_HWPOISON).
const NO_POISON: &str = "SKIPPED: this kernel has no CONFIG_MEMORY_FAILURE, or this is not root";

fn run(task: &str) -> (Output, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "memory_error::signal::tests::in_a_process_of_its_own",
        ])
        .args(["--ignored", "--nocapture"])
        .env(TASK, task)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into();
    println!("{task}: {:?} {said}", output.status);
    (output, said)
}

fn ends_well(task: &str) {
    let (output, said) = run(task);
    if said.contains(NO_POISON) {
        eprintln!("{NO_POISON}");
        return;
    }
    assert!(
        output.status.success() && said.contains(DONE),
        "{task}: {said}"
    );
}

fn dies(task: &str) {
    let (output, said) = run(task);
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{task}: {said}");
    assert!(!said.contains(DONE), "{task}: {said}");
}

#[test]
fn errors_that_nobody_touched_are_told_and_the_thread_goes_on() {
    ends_well("found");
}

#[test]
fn a_thread_that_touched_a_page_stands_still() {
    ends_well("touched");
}

#[test]
fn memory_that_the_kernel_poisoned_is_told() {
    ends_well("poisoned");
}

#[test]
fn there_is_one_watch_for_a_process() {
    ends_well("twice");
}

#[test]
fn any_other_bus_error_ends_the_process() {
    dies("sent by a process");
    dies("an error elsewhere");
    dies("a touched error elsewhere");
    dies("a file that became shorter");
    dies("memory that is a guest's no more");
}

#[test]
#[ignore = "is run by the other tests"]
fn in_a_process_of_its_own() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let errors = MemoryErrors::watch().unwrap();
    let ram = GuestRam::new(MemorySize::from_mib(16).unwrap()).unwrap();
    let place = host_address(&ram, 0x5000);
    let elsewhere = Box::new([0u8; 8192]);
    let elsewhere = elsewhere.as_ptr().expose_provenance();
    match task.as_str() {
        "found" => {
            for (page, bytes) in [(0x5000, 4096), (0x20_0000, 2 << 20)] {
                let shift = if bytes == 4096 { 12 } else { 21 };
                send(libc::BUS_MCEERR_AO, host_address(&ram, page) + 0x123, shift);
                let told = errors.wait().unwrap();
                assert_eq!(told, error(MemoryErrorKind::Found, page, bytes));
            }
            // More than are kept, while nobody listens.
            for page in 0..100 {
                send(libc::BUS_MCEERR_AO, host_address(&ram, page << 12), 12);
            }
            assert_eq!(
                errors.wait().unwrap(),
                error(MemoryErrorKind::Found, 0, 4096)
            );
        }
        "touched" => {
            let went_on = Arc::new(AtomicBool::new(false));
            let sign = Arc::clone(&went_on);
            send(libc::BUS_MCEERR_AO, host_address(&ram, 0x1000), 12);
            std::thread::spawn(move || {
                send(libc::BUS_MCEERR_AR, place, 12);
                sign.store(true, Ordering::SeqCst);
            });
            let mut told = errors.wait().unwrap();
            if told.kind == MemoryErrorKind::Found {
                told = errors.wait().unwrap();
            }
            assert_eq!(told, error(MemoryErrorKind::Touched, 0x5000, 4096));
            // Not a proof that it stands still, but it had every opportunity.
            for _ in 0..100 {
                std::thread::yield_now();
                assert!(!went_on.load(Ordering::SeqCst));
            }
        }
        "poisoned" => {
            ram.write_page(crate::PageIndex(5), &[1; 4096]).unwrap();
            let (sender, refused) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                if let Err(error) = poison(place) {
                    let _ = sender.send(error);
                    return;
                }
                // Where that alone told nobody, this does.
                let _ = ram.read_page(crate::PageIndex(5), &mut [0; 4096]);
                std::thread::park();
            });
            if let Ok(error) = refused.recv_timeout(std::time::Duration::from_secs(1)) {
                println!("{NO_POISON}: {error}");
                return;
            }
            let told = errors.wait().unwrap();
            assert_eq!(told.address, GuestPhysicalAddress(0x5000));
        }
        "twice" => {
            let refused = MemoryErrors::watch().unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        }
        "sent by a process" => nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).unwrap(),
        "an error elsewhere" => send(libc::BUS_MCEERR_AO, elsewhere, 12),
        "a touched error elsewhere" => send(libc::BUS_MCEERR_AR, elsewhere, 12),
        "a file that became shorter" => touch_a_file_without_pages(),
        "memory that is a guest's no more" => {
            drop(ram);
            send(libc::BUS_MCEERR_AO, place, 12);
        }
        other => panic!("no such task: {other}"),
    }
    println!("{DONE}");
}

fn error(kind: MemoryErrorKind, address: u64, bytes: u64) -> MemoryError {
    MemoryError {
        kind,
        address: GuestPhysicalAddress(address),
        bytes,
    }
}

fn host_address(ram: &GuestRam, address: u64) -> usize {
    ram.mapping()
        .get_host_address(GuestAddress(address))
        .unwrap()
        .expose_provenance()
}

/// What the kernel sends, to this thread. It lets a process send to itself what looks like the kernel's.
fn send(code: c_int, address: usize, shift: i16) {
    let info = crate::bus_error(code, address as u64, shift);
    // SAFETY: `info` outlives the call, which reads it only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            libc::getpid(),
            libc::gettid(),
            libc::SIGBUS,
            &raw const info,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn poison(address: usize) -> io::Result<()> {
    let page = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the page is guest RAM, which no Rust reference points into.
    match unsafe { libc::madvise(page, 4096, libc::MADV_HWPOISON) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn touch_a_file_without_pages() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    // SAFETY: a new mapping, that nobody else knows.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            0,
        )
    };
    assert_ne!(mapping, libc::MAP_FAILED);
    file.set_len(0).unwrap();
    // SAFETY: the mapping is there; that its file ends before is what this test is about.
    let byte = unsafe { mapping.cast::<u8>().read_volatile() };
    println!("read {byte}");
}
