// SPDX-License-Identifier: Apache-2.0
//! Configuration, the control queue, and what a move keeps of both.

use super::super::features;
use super::wire::{Mood, Wire, all_offloads};
use super::{RECEIVE, TRANSMIT, command, in_chains, net, own_mac, packet, received, send};
use crate::backend::{NetworkAttachment, Offloads};
use crate::virtio::Device;
use crate::virtio::driver::Driver;
use crate::virtio::transport::ConfigChange;

const CONTROL: usize = 2;
const DONE: u8 = 0;
const REFUSED: u8 = 1;
const LINK_UP: u8 = 1;
const ANNOUNCE: u8 = 2;
const NEEDS_RESET: u8 = 0x40;

fn config(driver: &Driver) -> [u8; 12] {
    let mut config = [0; 12];
    driver.config(0, &mut config);
    config
}

/// The same guest with another machine at the same wire.
fn move_on(driver: Driver, wire: &Wire) -> Driver {
    driver.function().pause();
    let state = driver.function().save();
    driver.move_to(net(wire), &state)
}

#[test]
fn the_configuration_names_address_link_pairs_and_mtu() {
    let wire = Wire::new(3);
    let driver = Driver::start(net(&wire));
    let expected = [0x52, 0x54, 0, 0x12, 0x34, 0x56, LINK_UP, 0, 3, 0, 0x78, 5];
    assert_eq!(config(&driver), expected);
    let mut beyond = [7; 4];
    driver.config(10, &mut beyond);
    assert_eq!(beyond, [0x78, 5, 0, 0]);
    let features = features::MTU | features::MULTIQUEUE | features::STATUS;
    assert_eq!(driver.features() & features, features);
}

#[test]
fn an_mtu_that_no_device_may_name_is_not_named() {
    let net = super::super::Net::new(NetworkAttachment {
        mac: own_mac(),
        mtu: Some(67),
        backend: Box::new(Wire::new(1).plug()),
    });
    assert_eq!(net.features() & features::MTU, 0);
    let mut mtu = [7; 2];
    net.read_config(10, &mut mtu);
    assert_eq!(mtu, [0; 2]);
}

#[test]
fn receive_modes_and_tables_are_accepted() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let mut run = |class, number, data: &[u8]| command(&mut driver, CONTROL, class, number, data);
    assert_eq!(run(0, 0, &[1]), DONE);
    assert_eq!(run(0, 1, &[0]), DONE);
    assert_eq!(run(0, 2, &[0]), REFUSED);
    assert_eq!(run(0, 0, &[]), REFUSED);
    let one = [&[1, 0, 0, 0][..], &[2; 6]].concat();
    let none = [0; 4];
    assert_eq!(run(1, 0, &[&one[..], &none].concat()), DONE);
    assert_eq!(run(1, 0, &[&none[..], &one].concat()), DONE);
    assert_eq!(run(1, 0, &one), REFUSED);
    assert_eq!(run(1, 0, &[&one[..], &none, &[0]].concat()), REFUSED);
    assert_eq!(run(1, 0, &[0xff; 4096]), REFUSED);
    // Longer than any command: refused, not obeyed in part.
    assert_eq!(run(0, 0, &[1; 80_000]), REFUSED);
}

#[test]
fn an_address_that_the_guest_sets_stays_until_a_reset() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let address = [2, 0, 0, 0, 0, 9];
    assert_eq!(command(&mut driver, CONTROL, 1, 1, &address), DONE);
    for wrong in [&[3, 0, 0, 0, 0, 9][..], &[0; 6], &address[..5]] {
        assert_eq!(command(&mut driver, CONTROL, 1, 1, wrong), REFUSED);
    }
    let driver = move_on(driver, &wire);
    assert_eq!(config(&driver)[..6], address);
    let driver = driver.restart();
    assert_eq!(config(&driver)[..6], own_mac().octets());
}

#[test]
fn commands_need_their_features() {
    let wire = Wire::new(2);
    let mut driver = Driver::start_with(net(&wire), features::CONTROL_QUEUE);
    for (class, number, data) in [
        (0, 0, &[1][..]),
        (1, 0, &[0; 8]),
        (1, 1, &[2; 6]),
        (3, 0, &[]),
        (4, 0, &[2, 0]),
        (5, 0, &[0; 8]),
    ] {
        let answer = command(&mut driver, CONTROL, class, number, data);
        assert_eq!(answer, REFUSED, "{class} {number}");
    }
}

#[test]
fn pairs_beyond_those_in_use_share_queues_and_are_not_sent_from() {
    let wire = Wire::new(2);
    let mut driver = Driver::start(net(&wire));
    let control = 4;
    let (first, second) = (
        driver.submit(0, &[], &[1526]),
        driver.submit(0, &[], &[1526]),
    );
    let other = driver.submit(2, &[], &[1526]);
    driver.ring(0);
    wire.arrive(1, &packet(1, 60));
    let delivered = received(&mut driver, 0, &[first]);
    assert_eq!(delivered, in_chains(packet(1, 60), 1));
    let waiting = driver.submit(3, &[&packet(2, 60)], &[]);
    driver.ring(3);
    for wrong in [0u16, 3, 0x8000] {
        let answer = command(&mut driver, control, 4, 0, &wrong.to_le_bytes());
        assert_eq!(answer, REFUSED);
    }
    assert_eq!(driver.try_used(3), None);
    assert_eq!(command(&mut driver, control, 4, 0, &[2, 0]), DONE);
    assert_eq!(driver.used(3), (waiting.head, 0));
    let mut driver = move_on(driver, &wire);
    wire.arrive(1, &packet(3, 60));
    let delivered = received(&mut driver, 2, &[other]);
    assert_eq!(delivered, in_chains(packet(3, 60), 1));
    wire.arrive(0, &packet(4, 60));
    let delivered = received(&mut driver, 0, &[second]);
    assert_eq!(delivered, in_chains(packet(4, 60), 1));
    let mut driver = driver.restart();
    driver.submit(3, &[&packet(5, 60)], &[]);
    driver.ring(3);
    send(&mut driver, TRANSMIT, &packet(6, 60));
    assert_eq!(wire.sent(2), [packet(2, 60), packet(6, 60)]);
}

#[test]
fn a_packet_that_waits_in_a_pair_moves_with_it() {
    let wire = Wire::new(2);
    let mut driver = Driver::start(net(&wire));
    assert_eq!(command(&mut driver, 4, 4, 0, &[2, 0]), DONE);
    let mut buffers = vec![driver.submit(2, &[], &[100])];
    driver.ring(2);
    wire.arrive(1, &packet(1, 150));
    while wire.taken() == 0 {
        std::thread::yield_now();
    }
    let mut driver = move_on(driver, &wire);
    buffers.push(driver.submit(2, &[], &[100]));
    driver.ring(2);
    let delivered = received(&mut driver, 2, &buffers);
    assert_eq!(delivered, in_chains(packet(1, 150), 2));
}

#[test]
fn offloads_are_settled_again_wherever_the_guest_goes() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    // A driver resets a device first.
    let mut expected = vec![Offloads::NONE, all_offloads()];
    assert_eq!(wire.settled(), expected);
    let checksum = 1u64 << 1;
    let answer = command(&mut driver, CONTROL, 5, 0, &checksum.to_le_bytes());
    assert_eq!(answer, DONE);
    expected.push(Offloads::CHECKSUM);
    assert_eq!(wire.settled(), expected);
    // Not an offload at all; too short; the back end does not want to.
    for wrong in [&(1u64 << 15).to_le_bytes()[..], &[0; 7]] {
        assert_eq!(command(&mut driver, CONTROL, 5, 0, wrong), REFUSED);
    }
    wire.set_mood(Mood::Refusing);
    assert_eq!(command(&mut driver, CONTROL, 5, 0, &[0; 8]), REFUSED);
    wire.set_mood(Mood::Willing);
    let driver = move_on(driver, &wire);
    expected.push(Offloads::CHECKSUM);
    assert_eq!(wire.settled(), expected);
    let _driver = driver.restart();
    expected.extend([Offloads::NONE, all_offloads()]);
    assert_eq!(wire.settled(), expected);
}

#[test]
fn a_back_end_that_refuses_the_offloads_stops_the_device() {
    let wire = Wire::new(1);
    wire.set_mood(Mood::Refusing);
    let driver = Driver::start(net(&wire));
    driver.wait_for_status(NEEDS_RESET);
    driver.function().pause();
    let state = driver.function().save();
    let error = net(&wire).restore(&state.device, 0).unwrap_err();
    assert!(
        error.to_string().contains("the back end refuses"),
        "{error}"
    );
    wire.set_mood(Mood::Willing);
    let mut driver = driver.move_to(net(&wire), &state).restart();
    send(&mut driver, TRANSMIT, &packet(1, 60));
}

#[test]
fn the_guest_is_asked_to_announce_itself_until_it_did() {
    let wire = Wire::new(1);
    let driver = Driver::start(net(&wire));
    let before = driver.interrupts();
    driver.function().with_device(|device| device.announce());
    assert_eq!(config(&driver)[6], LINK_UP | ANNOUNCE);
    assert_eq!(driver.interrupts(), before, "no vector was set for it");
    driver.set(0x10, &0u16.to_le_bytes());
    driver.function().with_device(|device| device.announce());
    assert_eq!(driver.interrupts(), before + 1);
    let mut driver = move_on(driver, &wire);
    assert_eq!(config(&driver)[6], LINK_UP | ANNOUNCE);
    assert_eq!(command(&mut driver, CONTROL, 3, 0, &[1]), REFUSED);
    assert_eq!(command(&mut driver, CONTROL, 3, 0, &[]), DONE);
    assert_eq!(config(&driver)[6], LINK_UP);
}

#[test]
fn a_guest_that_cannot_announce_itself_is_not_asked() {
    let wire = Wire::new(1);
    let driver = Driver::start_with(net(&wire), !features::GUEST_ANNOUNCE);
    driver.function().with_device(|device| {
        let change = device.announce();
        assert_eq!(change, ConfigChange::Nothing);
        change
    });
    assert_eq!(config(&driver)[6], LINK_UP);
}

#[test]
fn every_command_gets_an_answer_whatever_its_length() {
    let wire = Wire::new(2);
    let mut driver = Driver::start(net(&wire));
    for class in (0..8).chain([0xff]) {
        for number in 0..7 {
            for length in 0..10 {
                let answer = command(&mut driver, 4, class, number, &vec![1; length]);
                assert!(answer <= 1, "{class} {number} {length}: {answer}");
            }
        }
    }
    for short in [&[][..], &[0]] {
        let request = driver.submit(4, &[short], &[0, 8]);
        driver.ring(4);
        assert_eq!(driver.used(4), (request.head, 1));
        assert_eq!(driver.read(&request.writable[1])[0], REFUSED);
    }
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

#[test]
fn a_command_without_a_place_for_its_answer_stops_the_device() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    driver.submit(CONTROL, &[&[0, 0, 1]], &[0]);
    driver.ring(CONTROL);
    driver.wait_for_status(NEEDS_RESET);
    let mut driver = driver.restart();
    assert_eq!(command(&mut driver, CONTROL, 0, 0, &[1]), DONE);
}

#[test]
fn a_reset_forgets_the_packet_that_waited() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    driver.submit(RECEIVE, &[], &[100]);
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(1, 150));
    while wire.taken() == 0 {
        std::thread::yield_now();
    }
    let mut driver = driver.restart();
    let buffer = driver.submit(RECEIVE, &[], &[1526]);
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(2, 60));
    let delivered = received(&mut driver, RECEIVE, &[buffer]);
    assert_eq!(delivered, in_chains(packet(2, 60), 1));
}

#[test]
fn interfaces_that_cannot_take_over_from_each_other_have_other_traits() {
    let traits = |pairs, offloads| net(&Wire::with_offloads(pairs, offloads)).traits();
    let all = traits(2, all_offloads());
    assert!(
        all.starts_with("mac=52:54:00:12:34:56 pairs=2 mtu=1400 features=0x"),
        "{all}"
    );
    assert_eq!(all, traits(2, all_offloads()));
    assert_ne!(all, traits(3, all_offloads()));
    assert_ne!(all, traits(2, Offloads::CHECKSUM));
}
