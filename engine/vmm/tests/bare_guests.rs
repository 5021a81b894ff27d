// SPDX-License-Identifier: Apache-2.0
//! Bare guests on real KVM: boot, console, power-off, reset, crash, pause.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::sync::Arc;

use common::{Bench, guests};
use kemari_vmm::backend::Backends;
use kemari_vmm::{ConsoleOutput, GuestEvent, Machine};

#[test]
fn a_guest_speaks_and_switches_off() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::speaker(), "hello=world");
    bench.machine.resume();
    assert_eq!(bench.event(), GuestEvent::PowerOff);
    assert_eq!(bench.console.bytes(), b"hello=world");
    assert!(bench.machine.is_paused());
}

#[test]
fn a_machine_that_is_off_stays_off_until_booted_again() {
    needs_kvm!();
    let kernel = guests::write_elf(guests::speaker());
    let mut bench = Bench::with_kernel(kernel.path(), "x");
    for round in 1..=3 {
        bench.machine.boot().unwrap();
        bench.machine.resume();
        assert_eq!(bench.event(), GuestEvent::PowerOff);
        bench.machine.resume();
        assert!(bench.machine.is_paused());
        assert_eq!(bench.console.bytes(), vec![b'x'; round]);
    }
}

#[test]
fn the_keyboard_controller_resets_and_the_guest_boots_again() {
    needs_kvm!();
    let kernel = guests::write_elf(guests::resetter());
    let mut bench = Bench::with_kernel(kernel.path(), "");
    for round in 1..=5 {
        bench.machine.boot().unwrap();
        bench.machine.resume();
        assert_eq!(bench.event(), GuestEvent::Reset);
        assert_eq!(bench.console.bytes(), vec![b'r'; round]);
    }
}

#[test]
fn a_triple_fault_is_told() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::faulter(), "");
    bench.machine.resume();
    assert_eq!(bench.event(), GuestEvent::TripleFault);
}

#[test]
fn a_halted_guest_can_be_paused_and_resumed() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::sleeper(), "");
    bench.machine.resume();
    bench.console.wait_for(1);
    for _ in 0..50 {
        bench.machine.pause().unwrap();
        assert!(bench.machine.is_paused());
        bench.machine.resume();
    }
    assert_eq!(bench.console.bytes(), b"h");
}

#[test]
fn input_reaches_the_guest_whole_and_in_order() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::echo(), "");
    let input = bench.machine.console_input();
    let sent: Vec<u8> = (0..2000u32).map(|n| (n % 251) as u8).collect();
    // Half before the guest runs, half while it does; more than the FIFO holds.
    assert_eq!(input.push(&sent[..1000]), 1000);
    bench.machine.resume();
    assert_eq!(input.push(&sent[1000..]), 1000);
    bench.console.wait_for(sent.len());
    let expected: Vec<u8> = sent.iter().map(|byte| byte + 1).collect();
    assert_eq!(bench.console.bytes(), expected);
}

#[test]
fn input_that_does_not_fit_is_given_back() {
    needs_kvm!();
    let bench = Bench::empty();
    let input = bench.machine.console_input();
    assert_eq!(input.push(&[b'a'; 5000]), 4096);
    assert_eq!(input.push(b"a"), 0);
}

#[test]
fn the_power_button_and_the_clock_are_there() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::button(), "");
    bench.machine.resume();
    bench.console.wait_for(2);
    bench.machine.press_power_button();
    assert_eq!(bench.event(), GuestEvent::PowerOff);
    assert_eq!(bench.console.bytes(), [0x80, 0xff, b'p']);
}

/// Fails as a defect in this program would.
struct Panicking;

impl ConsoleOutput for Panicking {
    fn write(&self, _: &[u8]) {
        panic!("no console today");
    }

    fn has_room(&self) -> bool {
        true
    }
}

#[test]
fn a_panic_in_the_vcpu_thread_is_a_crash_and_not_silence() {
    needs_kvm!();
    let kernel = guests::write_elf(guests::speaker());
    let (sender, events) = std::sync::mpsc::channel();
    let config = common::config(kernel.path(), "hello", 16);
    let mut machine = Machine::new(config, Backends::new(Arc::new(Panicking)), sender).unwrap();
    machine.boot().unwrap();
    machine.resume();
    let GuestEvent::Crashed { reason } = events.recv_timeout(common::LONG).unwrap() else {
        panic!("not a crash");
    };
    assert!(reason.contains("no console today"), "{reason}");
    machine.resume();
    assert!(machine.is_paused());
}

#[test]
fn a_machine_may_be_dropped_in_any_state() {
    needs_kvm!();
    drop(Bench::empty());
    let mut running = Bench::booted(guests::counter(), "");
    running.machine.resume();
    drop(running);
    let mut halted = Bench::booted(guests::sleeper(), "");
    halted.machine.resume();
    halted.console.wait_for(1);
    drop(halted);
    let mut full = Bench::booted(guests::counter(), "");
    full.console.allow_exits(1);
    full.machine.resume();
    full.console.wait_for_denial();
    drop(full);
}

#[test]
fn a_full_console_stops_the_guest_and_room_starts_it_again() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::counter(), "");
    let gate = bench.machine.run_gate();
    bench.console.limit(400);
    bench.machine.resume();
    bench.console.wait_for(400);
    // It waits for room, which is not being paused; but it can be paused then.
    bench.machine.pause().unwrap();
    assert_eq!(bench.console.len(), 400);
    bench.machine.resume();
    for limit in (800..=4000).step_by(400) {
        bench.console.limit(limit);
        gate.wake();
        bench.console.wait_for(limit);
    }
    bench.machine.pause().unwrap();
    assert_eq!(bench.console.len(), 4000);
}

/// Cloud Hypervisor #7427: a pause whose signal came just before `KVM_RUN` was lost.
#[test]
fn cloud_hypervisor_7427_no_pause_is_lost() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::counter(), "");
    for round in 0..5000u32 {
        bench.machine.resume();
        // Different delays, so that the kick meets the vCPU in different places.
        for _ in 0..round % 64 * 20 {
            std::hint::spin_loop();
        }
        bench.machine.pause().unwrap();
        assert!(bench.machine.is_paused());
        let before = bench.console.len();
        assert_eq!(bench.console.len(), before);
    }
    check_counting(&bench.console.bytes());
}

/// The guest's numbers, 4 bytes each, are 1, 2, 3, …
fn check_counting(bytes: &[u8]) {
    for (expected, number) in (1u32..).zip(bytes.chunks_exact(4)) {
        assert_eq!(u32::from_le_bytes(number.try_into().unwrap()), expected);
    }
}
