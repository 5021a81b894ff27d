// SPDX-License-Identifier: Apache-2.0
//! Cuts that wait for nobody: what is in flight stays there, and is made again elsewhere.

use super::*;
use crate::virtio::state::FunctionState;

fn in_flight(state: &FunctionState) -> Vec<u16> {
    let DeviceState::Block(state) = &state.device else {
        panic!("another device");
    };
    state.in_flight.clone()
}

fn set_in_flight(state: &mut FunctionState, heads: &[u16]) {
    let DeviceState::Block(state) = &mut state.device else {
        panic!("another device");
    };
    heads.clone_into(&mut state.in_flight);
}

/// A guest with one request of each kind at a host that does none of them, and their heads.
fn busy() -> (Guest, Vec<u16>) {
    let mut guest = Guest::new(TestDisk::with_content(vec![3; 64 << 10]));
    guest.disk.set_pace(Pace::Held);
    let ranges = [range(4, 1, 0), range(6, 2, 0)].concat();
    let heads = [
        guest.submit(&[&header(OUT, 0), &[1; SECTOR]], &[1]).head,
        guest.submit(&[&header(IN, 2)], &[SECTOR, 1]).head,
        guest
            .submit(&[&header(WRITE_ZEROES, 0), &ranges], &[1])
            .head,
        guest
            .submit(&[&header(DISCARD, 0), &range(9, 1, 0)], &[1])
            .head,
        guest.submit(&[&header(FLUSH, 0)], &[1]).head,
    ];
    guest.wait_for_waiting(heads.len());
    (guest, heads.to_vec())
}

#[test]
fn what_is_in_flight_at_a_cut_is_made_again_elsewhere_before_anything_new() {
    let (mut guest, heads) = busy();
    guest.driver.function().freeze();
    assert_eq!(guest.disk.waiting(), heads.len());
    assert_eq!(guest.driver.try_used(QUEUE), None);
    let late = guest.submit(&[&header(OUT, 0), &[2; SECTOR]], &[1]);
    let state = guest.driver.function().save();
    assert_eq!(in_flight(&state), heads);
    let asked = guest.disk.operations();
    let replica = TestDisk::with_content(vec![3; 64 << 10]);
    let mut driver = guest.driver.move_to(block(&replica), &state);
    let mut answered: Vec<_> = (0..=heads.len()).map(|_| driver.used(QUEUE).0).collect();
    answered.sort_unstable();
    assert_eq!(answered, [&heads[..], &[late.head]].concat());
    driver.function().pause();
    assert_eq!(driver.try_used(QUEUE), None);
    // The first steps in the order they were asked first, and each to its end.
    assert_eq!(replica.operations()[..asked.len()], asked);
    let firsts: Vec<u8> = replica.content().iter().step_by(SECTOR).copied().collect();
    assert_eq!(firsts[..10], [2, 3, 3, 3, 0, 3, 0, 0, 3, 0]);
}

#[test]
fn what_completes_while_the_device_stands_still_is_told_after_it() {
    let (mut guest, heads) = busy();
    guest.driver.function().freeze();
    let before = guest.driver.moment();
    let state = guest.driver.function().save();
    for _ in 0..3 {
        guest.disk.complete(0);
    }
    assert_eq!(guest.driver.function().save(), state);
    assert_eq!(guest.driver.moment(), before);
    guest.driver.function().resume();
    let mut answered = vec![guest.driver.used(QUEUE).0, guest.driver.used(QUEUE).0];
    guest.disk.set_pace(Pace::AtOnce);
    while guest.disk.waiting() > 0 {
        guest.disk.complete(0);
    }
    answered.extend((2..heads.len()).map(|_| guest.driver.used(QUEUE).0));
    answered.sort_unstable();
    assert_eq!(answered, heads);
}

#[test]
fn a_pause_ends_what_a_freeze_left() {
    let (mut guest, heads) = busy();
    guest.driver.function().freeze();
    guest.driver.function().pause();
    assert_eq!(guest.disk.waiting(), 0);
    for _ in &heads {
        assert!(guest.driver.try_used(QUEUE).is_some());
    }
    assert!(in_flight(&guest.driver.function().save()).is_empty());
    // A second freeze has nothing to say, and undoes nothing.
    guest.driver.function().freeze();
    assert!(in_flight(&guest.driver.function().save()).is_empty());
}

#[test]
fn what_was_not_made_again_yet_is_in_the_next_state() {
    let (guest, heads) = busy();
    guest.driver.function().freeze();
    let state = guest.driver.function().save();
    let replica = TestDisk::sized(64 << 10);
    let driver = guest.driver.load(block(&replica), &state);
    assert_eq!(driver.function().save(), state);
    assert_eq!(replica.operations(), []);
    // A pause before it works does it.
    driver.function().pause();
    assert!(in_flight(&driver.function().save()).is_empty());
    assert_eq!(replica.operations().len(), heads.len() + 1);
}

#[test]
fn a_state_that_is_given_up_leaves_the_disk_alone() {
    let (guest, _) = busy();
    guest.driver.function().freeze();
    let state = guest.driver.function().save();
    let mut other = state.clone();
    set_in_flight(&mut other, &[]);
    let replica = TestDisk::sized(64 << 10);
    let driver = guest.driver.load(block(&replica), &state);
    driver.function().restore(&other).unwrap();
    driver.function().pause();
    assert_eq!(replica.operations(), []);
}

/// The device that goes on from a state with these heads stops, says so, and works after a reset.
fn assert_stops(heads: &[u16], spoil: impl FnOnce(&mut Driver)) {
    let (mut guest, _) = busy();
    guest.driver.function().freeze();
    let mut state = guest.driver.function().save();
    set_in_flight(&mut state, heads);
    spoil(&mut guest.driver);
    let replica = TestDisk::sized(64 << 10);
    let driver = guest.driver.move_to(block(&replica), &state);
    driver.wait_for_status(0x40);
    let driver = driver.restart();
    let mut guest = Guest {
        driver,
        disk: replica,
    };
    assert_eq!(guest.write(1, &[7; SECTOR]), OK);
    assert_eq!(guest.read(1, SECTOR), [7; SECTOR]);
}

#[test]
fn heads_that_no_device_can_have_stop_it() {
    assert_stops(&[0, 256], |_| {});
    assert_stops(&[u16::MAX], |_| {});
    assert_stops(&[0, 2, 0], |_| {});
    assert_stops(&(0..257).map(|head| head % 256).collect::<Vec<_>>(), |_| {});
}

#[test]
fn a_chain_that_broke_meanwhile_stops_the_device() {
    assert_stops(&[0], |driver| driver.tie_knot(QUEUE, 0));
    // No head of a chain, but the end of one without a header: it is refused, and that is all.
    let (guest, _) = busy();
    guest.driver.function().freeze();
    let mut state = guest.driver.function().save();
    set_in_flight(&mut state, &[2]);
    let replica = TestDisk::sized(64 << 10);
    let mut driver = guest.driver.move_to(block(&replica), &state);
    assert_eq!(driver.used(QUEUE).0, 2);
    assert_eq!(driver.status(), 15);
    assert_eq!(replica.operations(), []);
}

#[test]
fn more_than_there_is_room_for_is_made_again_in_turns() {
    let mut guest = Guest::new(TestDisk::sized(16 << 20));
    guest.disk.set_pace(Pace::Held);
    let heads: Vec<u16> = (0..10)
        .map(|_| guest.submit(&[&header(OUT, 0), &[5; SECTOR]], &[1]).head)
        .collect();
    guest.wait_for_waiting(heads.len());
    guest.driver.function().freeze();
    let state = guest.driver.function().save();
    // What no driver does: the requests grow, and eight of them fill what may be in flight.
    for head in &heads {
        guest.driver.stretch(QUEUE, head + 1, 254 * (16 << 10));
    }
    let replica = TestDisk::sized(16 << 20);
    replica.set_pace(Pace::Held);
    let mut driver = guest.driver.move_to(block(&replica), &state);
    replica.wait_for_waiting(8);
    driver.function().freeze();
    assert_eq!(replica.waiting(), 8);
    assert_eq!(in_flight(&driver.function().save()), heads);
    driver.function().pause();
    let mut answered: Vec<_> = heads.iter().map(|_| driver.used(QUEUE).0).collect();
    answered.sort_unstable();
    assert_eq!(answered, heads);
}
