// SPDX-License-Identifier: Apache-2.0
//! Several vCPUs on real KVM: start-up, pause, save, restore, end of a run.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, LONG, copy_memory, guests, smp_guests};
use kemari_vmm::{
    GuestEvent, Machine, MachineState, PAGE_SIZE, PageIndex, RestoreError, VcpuCount,
};

const VCPUS: u32 = 4;

fn word(machine: &Machine, address: u64) -> u32 {
    let mut page = [0; PAGE_SIZE];
    let index = PageIndex(address / PAGE_SIZE as u64);
    machine.memory().read_page(index, &mut page).unwrap();
    let at = usize::try_from(address).unwrap() % PAGE_SIZE;
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

fn words(machine: &Machine, start: u64, vcpus: u32) -> Vec<u32> {
    (0..u64::from(vcpus))
        .map(|cpu| word(machine, start + cpu * smp_guests::CELL_BYTES))
        .collect()
}

/// What each CPU has counted so far.
fn counts(machine: &Machine, vcpus: u32) -> Vec<u32> {
    words(machine, smp_guests::CELLS, vcpus)
}

fn check_no_complaints(machine: &Machine, vcpus: u32) {
    let complaints = words(machine, smp_guests::COMPLAINTS, vcpus);
    assert!(complaints.iter().all(|word| *word == 0), "{complaints:?}");
}

/// Waits until every CPU of the running machine has counted on from `before`.
fn wait_for_all(machine: &Machine, before: &[u32]) {
    let start = Instant::now();
    loop {
        let now = counts(machine, before.len().try_into().unwrap());
        if now.iter().zip(before).all(|(now, before)| now > before) {
            return;
        }
        assert!(start.elapsed() < LONG, "{before:?} became {now:?} only");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn move_guest(from: &mut Bench, to: &mut Bench) {
    let state = from.machine.save().expect("it is paused").encode();
    copy_memory(&from.machine, &to.machine);
    let state = MachineState::decode(&state).expect("what was encoded decodes");
    to.machine.restore(&state).expect("the machines are alike");
}

#[test]
fn every_vcpu_is_started_by_the_first_and_survives_many_pauses() {
    needs_kvm!();
    let mut bench = Bench::booted_smp(smp_guests::smp_counter(), VCPUS);
    let mut before = counts(&bench.machine, VCPUS);
    assert_eq!(before, [0; VCPUS as usize]);
    for _ in 0..50 {
        bench.machine.resume();
        wait_for_all(&bench.machine, &before);
        bench.machine.pause().unwrap();
        assert!(bench.machine.is_paused());
        before = counts(&bench.machine, VCPUS);
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(counts(&bench.machine, VCPUS), before);
    }
    check_no_complaints(&bench.machine, VCPUS);
}

#[test]
fn every_vcpu_goes_on_in_another_machine_over_many_moves() {
    needs_kvm!();
    let mut benches = [
        Bench::booted_smp(smp_guests::smp_counter(), VCPUS),
        Bench::empty_smp(VCPUS),
    ];
    let mut before = counts(&benches[0].machine, VCPUS);
    for _ in 0..20 {
        let [one, other] = &mut benches;
        one.machine.resume();
        wait_for_all(&one.machine, &before);
        one.machine.pause().unwrap();
        before = counts(&one.machine, VCPUS);
        move_guest(one, other);
        assert_eq!(counts(&other.machine, VCPUS), before);
        benches.reverse();
    }
    check_no_complaints(&benches[0].machine, VCPUS);
}

/// A vCPU that waits to be started waits on in the other machine, and is started there.
#[test]
fn a_guest_moves_before_it_has_started_its_cpus() {
    needs_kvm!();
    let mut from = Bench::booted_smp(smp_guests::smp_counter(), VCPUS);
    let mut to = Bench::empty_smp(VCPUS);
    move_guest(&mut from, &mut to);
    to.machine.resume();
    wait_for_all(&to.machine, &[0; VCPUS as usize]);
}

/// Each CPU's bytes come whole and in order, whatever machine they come from and however the CPUs'
/// writes mix.
#[test]
fn no_cpus_output_is_lost_repeated_or_reordered_over_moves() {
    needs_kvm!();
    let mut benches = [
        Bench::booted_smp(smp_guests::smp_writer(), VCPUS),
        Bench::empty_smp(VCPUS),
    ];
    let mut written = Vec::new();
    for round in 0..30 {
        let [one, other] = &mut benches;
        let before = one.console.len();
        one.machine.resume();
        one.console.wait_for(before + 200 + round);
        one.machine.pause().unwrap();
        written.extend_from_slice(&one.console.bytes()[before..]);
        move_guest(one, other);
        benches.reverse();
    }
    for cpu in 0..u8::try_from(VCPUS).unwrap() {
        let own: Vec<u8> = written
            .iter()
            .filter(|byte| *byte >> 5 == cpu)
            .map(|byte| byte & 31)
            .collect();
        assert!(own.len() > 30, "CPU {cpu} wrote {} bytes", own.len());
        for (place, count) in own.iter().enumerate() {
            assert_eq!(usize::from(*count), place % 32, "CPU {cpu}, byte {place}");
        }
    }
}

#[test]
fn a_full_console_stops_each_vcpu_and_room_starts_them_again() {
    needs_kvm!();
    let mut bench = Bench::booted_smp(smp_guests::smp_writer(), VCPUS);
    let gate = bench.machine.run_gate();
    let spare = VCPUS as usize;
    for limit in (1000..6000usize).step_by(1000) {
        bench.console.limit(limit);
        bench.machine.resume();
        gate.wake();
        bench.console.wait_for(limit);
        bench.machine.pause().unwrap();
        // Each vCPU may have been let in by the last room there was.
        assert!((limit..limit + spare).contains(&bench.console.len()));
    }
}

#[test]
fn a_machine_switched_off_by_several_cpus_is_off_once() {
    needs_kvm!();
    let kernel = guests::write_elf(smp_guests::smp_switch());
    let mut bench = Bench::with_vcpus(kernel.path(), VCPUS);
    for _ in 0..20 {
        bench.machine.boot().unwrap();
        bench.machine.resume();
        assert_eq!(bench.event(), GuestEvent::PowerOff);
        assert!(bench.machine.is_paused());
        bench.machine.resume();
        assert!(bench.machine.is_paused());
        assert!(bench.events.try_recv().is_err());
    }
}

/// After a reset the other CPUs wait to be started, even those that had not noticed yet that the old
/// guest started them anew: they stood still for want of console room.
#[test]
fn a_reset_stops_the_other_cpus_until_they_are_started_again() {
    needs_kvm!();
    let kernel = guests::write_elf(smp_guests::smp_restarter());
    let mut bench = Bench::with_vcpus(kernel.path(), VCPUS);
    let flag = PageIndex(guests::COUNTER_ADDRESS / PAGE_SIZE as u64);
    bench.console.limit(100);
    bench.machine.boot().unwrap();
    bench.machine.resume();
    bench.console.wait_for_denial();
    let memory = bench.machine.memory();
    memory.write_page(flag, &[1; PAGE_SIZE]).unwrap();
    assert_eq!(bench.event(), GuestEvent::Reset);
    memory.write_page(flag, &[0; PAGE_SIZE]).unwrap();
    let before = bench.console.len();
    bench.console.limit(usize::MAX);
    std::fs::write(kernel.path(), guests::elf(guests::counter())).unwrap();
    bench.machine.boot().unwrap();
    bench.machine.resume();
    bench.console.wait_for(before + 4000);
    bench.machine.pause().unwrap();
    let numbers = &bench.console.bytes()[before..];
    for (expected, number) in (1u32..).zip(numbers.chunks_exact(4)) {
        assert_eq!(u32::from_le_bytes(number.try_into().unwrap()), expected);
    }
}

#[test]
fn a_state_of_another_number_of_vcpus_is_refused() {
    needs_kvm!();
    let state = Bench::empty_smp(VCPUS).machine.save().unwrap();
    let mut other = Bench::empty_smp(VCPUS - 1);
    let error = other.machine.restore(&state).unwrap_err();
    assert!(matches!(error, RestoreError::VcpuCount { found: 4, .. }));
    assert_eq!(
        error.to_string(),
        "State of a machine with 4 vCPUs cannot be loaded into one with 3"
    );
    let said = other.machine.fingerprint();
    let four = Bench::empty_smp(VCPUS).machine.fingerprint();
    assert_eq!(
        said.difference(&four).unwrap(),
        "Number of vCPUs: 3 here, 4 there"
    );
}

#[test]
fn the_most_vcpus_can_be_made_paused_and_dropped() {
    needs_kvm!();
    let mut bench = Bench::booted_smp(smp_guests::smp_counter(), VcpuCount::MAX);
    for _ in 0..3 {
        bench.machine.resume();
        bench.machine.pause().unwrap();
    }
    let state = bench.machine.save().unwrap();
    assert_eq!(state.vcpus.len(), VcpuCount::MAX as usize);
    bench.machine.restore(&state).unwrap();
    bench.machine.resume();
}
