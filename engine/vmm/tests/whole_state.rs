// SPDX-License-Identifier: Apache-2.0
//! Saving a machine and going on in another one, on real KVM.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::sync::OnceLock;

use common::{Bench, copy_memory, guests};
use kemari_vmm::{
    DecodeStateError, MachineState, PageIndex, RestoreError, STATE_VERSION, SaveError,
};
use proptest::prelude::*;

/// Moves a paused guest: state by its encoding, memory page by page.
fn move_guest(from: &mut Bench, to: &mut Bench) {
    let state = from.machine.save().expect("it is paused").encode();
    copy_memory(&from.machine, &to.machine);
    let state = MachineState::decode(&state).expect("what was encoded decodes");
    to.machine.restore(&state).expect("the machines are alike");
}

/// The guest's numbers, 4 bytes each, are 1, 2, 3, … whatever machine wrote which byte.
fn check_counting(bytes: &[u8]) {
    for (expected, number) in (1u32..).zip(bytes.chunks_exact(4)) {
        assert_eq!(u32::from_le_bytes(number.try_into().unwrap()), expected);
    }
}

/// Cloud Hypervisor #3658: with the last port access not finished, the other machine would write a
/// byte again, or (on a KVM that finishes it early) nothing would be noticed: so every byte is checked.
#[test]
fn cloud_hypervisor_3658_a_guest_goes_on_exactly_where_it_was_over_many_moves() {
    needs_kvm!();
    let mut benches = [Bench::booted(guests::counter(), ""), Bench::empty()];
    let mut written = Vec::new();
    for round in 0..60usize {
        let [one, other] = &mut benches;
        let before = one.console.len();
        one.machine.resume();
        // Stops at every place within a number.
        one.console.wait_for(before + 40 + round);
        one.machine.pause().unwrap();
        written.extend_from_slice(&one.console.bytes()[before..]);
        move_guest(one, other);
        benches.reverse();
    }
    assert!(written.len() > 60 * 40);
    check_counting(&written);
}

/// Cloud Hypervisor #3658 and #3677: a state taken after an exit was served but before KVM finished it
/// runs the instruction again elsewhere. Moves after every single exit, reads and writes alike: a
/// repeated read would lose a byte of input, a repeated write would double one.
#[test]
fn cloud_hypervisor_3677_no_access_is_lost_or_repeated_when_moved_after_any_exit() {
    needs_kvm!();
    let mut benches = [Bench::booted(guests::echo(), ""), Bench::empty()];
    let sent: Vec<u8> = (0..100u8).collect();
    assert_eq!(benches[0].machine.console_input().push(&sent), sent.len());
    let mut echoed = Vec::new();
    for _ in 0..3 * sent.len() {
        let [one, other] = &mut benches;
        let before = one.console.len();
        one.console.allow_exits(1);
        one.machine.resume();
        one.console.wait_for_denial();
        one.machine.pause().unwrap();
        echoed.extend_from_slice(&one.console.bytes()[before..]);
        move_guest(one, other);
        benches.reverse();
    }
    let expected: Vec<u8> = sent.iter().map(|byte| byte + 1).collect();
    assert_eq!(echoed, expected);
}

#[test]
fn a_state_can_be_taken_from_a_guest_that_runs_on() {
    needs_kvm!();
    let mut active = Bench::booted(guests::counter(), "");
    let mut passive = Bench::empty();
    for _ in 0..30 {
        let before = active.console.len();
        active.machine.resume();
        active.console.wait_for(before + 100);
        active.machine.pause().unwrap();
        move_guest(&mut active, &mut passive);
    }
    let at_last_save = active.console.len();
    active.machine.resume();
    passive.machine.resume();
    active.console.wait_for(at_last_save + 400);
    passive.console.wait_for(400);
    check_counting(&active.console.bytes());
    let mut story = active.console.bytes()[..at_last_save].to_vec();
    story.extend(passive.console.bytes());
    check_counting(&story);
}

#[test]
fn input_that_the_guest_has_not_read_moves_with_it() {
    needs_kvm!();
    let mut from = Bench::booted(guests::echo(), "");
    from.machine.resume();
    from.machine.pause().unwrap();
    let sent: Vec<u8> = (0..200u8).collect();
    assert_eq!(from.machine.console_input().push(&sent), sent.len());
    let mut to = Bench::empty();
    move_guest(&mut from, &mut to);
    to.machine.resume();
    to.console.wait_for(sent.len());
    let expected: Vec<u8> = sent.iter().map(|byte| byte + 1).collect();
    assert_eq!(to.console.bytes(), expected);
}

#[test]
fn a_halted_guest_moves() {
    needs_kvm!();
    let mut from = Bench::booted(guests::sleeper(), "");
    from.machine.resume();
    from.console.wait_for(1);
    from.machine.pause().unwrap();
    let mut to = Bench::empty();
    move_guest(&mut from, &mut to);
    to.machine.resume();
    to.machine.pause().unwrap();
    assert!(to.console.bytes().is_empty());
}

/// Where the host cannot offset it (kvm_pvm), the counter is the host's and only grows as well.
#[test]
fn the_time_stamp_counter_never_goes_back_over_moves() {
    needs_kvm!();
    let mut benches = [Bench::booted(guests::clock(), ""), Bench::empty()];
    let mut written = Vec::new();
    for _ in 0..20 {
        let [one, other] = &mut benches;
        let before = one.console.len();
        one.machine.resume();
        one.console.wait_for(before + 80);
        one.machine.pause().unwrap();
        written.extend_from_slice(&one.console.bytes()[before..]);
        move_guest(one, other);
        benches.reverse();
    }
    let stamps: Vec<u64> = written
        .chunks_exact(8)
        .map(|stamp| u64::from_le_bytes(stamp.try_into().unwrap()))
        .collect();
    assert!(stamps.is_sorted());
}

#[test]
fn a_running_machine_is_neither_saved_nor_restored_nor_booted() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::counter(), "");
    let state = bench.machine.save().unwrap();
    bench.machine.resume();
    assert!(matches!(bench.machine.save(), Err(SaveError::NotPaused)));
    assert!(matches!(
        bench.machine.restore(&state),
        Err(RestoreError::NotPaused)
    ));
    assert!(bench.machine.boot().is_err());
    bench.machine.pause().unwrap();
    bench.machine.pause().unwrap();
    assert!(bench.machine.save().is_ok());
}

#[test]
fn a_state_of_another_memory_size_is_refused() {
    needs_kvm!();
    let mut bench = Bench::empty();
    let mut state = bench.machine.save().unwrap();
    state.memory = kemari_vmm::MemorySize::from_mib(32).unwrap();
    let error = bench.machine.restore(&state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "State of a machine with 32 MiB of memory cannot be loaded into one with 16 MiB"
    );
}

#[test]
fn equal_machines_have_no_difference() {
    needs_kvm!();
    let one = Bench::empty().machine.fingerprint();
    let other = Bench::empty().machine.fingerprint();
    assert_eq!(one, other);
    assert_eq!(one.difference(&other), None);
}

/// A restored machine can be saved again and says the same, but for the clocks.
#[test]
fn saving_what_was_restored_gives_the_same_length() {
    needs_kvm!();
    let mut from = Bench::booted(guests::counter(), "");
    from.machine.resume();
    from.console.wait_for(100);
    from.machine.pause().unwrap();
    let mut to = Bench::empty();
    move_guest(&mut from, &mut to);
    let again = to.machine.save().unwrap();
    let first = from.machine.save().unwrap();
    assert_eq!(again.vcpus.len(), first.vcpus.len());
    assert_eq!(again.devices, first.devices);
}

#[test]
fn a_reset_forgets_the_old_guest() {
    needs_kvm!();
    let kernel = guests::write_elf(guests::counter());
    let mut bench = Bench::with_kernel(kernel.path(), "");
    bench.machine.boot().unwrap();
    bench.machine.resume();
    bench.console.wait_for(1000);
    bench.machine.pause().unwrap();
    let before = bench.console.len();
    // The guest's counter in memory is not part of the kernel image and stays, as on a PC.
    let counter_page = PageIndex(guests::COUNTER_ADDRESS / 4096);
    bench
        .machine
        .memory()
        .write_page(counter_page, &[0; 4096])
        .unwrap();
    bench.machine.boot().unwrap();
    bench.machine.resume();
    bench.console.wait_for(before + 1000);
    bench.machine.pause().unwrap();
    check_counting(&bench.console.bytes()[before..]);
}

/// An encoded state of a guest that ran, made once.
fn encoded() -> &'static [u8] {
    static STATE: OnceLock<Vec<u8>> = OnceLock::new();
    STATE.get_or_init(|| {
        let mut bench = Bench::booted(guests::counter(), "");
        bench.machine.resume();
        bench.console.wait_for(100);
        bench.machine.pause().unwrap();
        bench.machine.save().unwrap().encode()
    })
}

#[test]
fn a_state_cut_anywhere_is_refused() {
    needs_kvm!();
    let state = encoded();
    assert!(MachineState::decode(state).is_ok());
    for length in 0..state.len() {
        assert!(MachineState::decode(&state[..length]).is_err());
    }
    let longer = [state, &[0]].concat();
    assert!(matches!(
        MachineState::decode(&longer),
        Err(DecodeStateError::Damaged { .. })
    ));
}

#[test]
fn a_state_of_another_version_is_refused() {
    needs_kvm!();
    let mut state = encoded().to_vec();
    state[8] += 1;
    assert_eq!(
        MachineState::decode(&state).unwrap_err(),
        DecodeStateError::Version {
            found: STATE_VERSION + 1
        }
    );
}

proptest! {
    #[test]
    fn a_damaged_state_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        if kemari_vmm::kvm_is_usable() {
            let mut state = encoded().to_vec();
            for (index, value) in changes {
                let at = index.index(state.len());
                state[at] = value;
            }
            let _ = MachineState::decode(&state);
        }
    }
}
