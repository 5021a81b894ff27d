// SPDX-License-Identifier: Apache-2.0
//! Packets in both directions.

use super::super::{QUEUE_SIZE, features};
use super::wire::Wire;
use super::{RECEIVE, TRANSMIT, command, in_chains, net, packet, received, send};
use crate::backend::PACKET_BYTES_MAX;
use crate::virtio::driver::Driver;

#[test]
fn a_packet_in_parts_leaves_whole() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let content = packet(1, 1514);
    let (header, frame) = content.split_at(12);
    let (start, end) = frame.split_at(700);
    let sent = driver.submit(TRANSMIT, &[header, start, &[], end], &[]);
    driver.ring(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT), (sent.head, 0));
    assert_eq!(wire.sent(1), [content]);
    assert!(driver.interrupts() >= 1);
}

#[test]
fn a_packet_arrives_with_its_header_filled_in() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let buffer = driver.submit(RECEIVE, &[], &[12, 500, 1600]);
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(7, 1514));
    assert_eq!(
        received(&mut driver, RECEIVE, &[buffer]),
        in_chains(packet(7, 1514), 1)
    );
}

#[test]
fn a_long_packet_takes_as_many_chains_as_it_needs() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let buffers: Vec<_> = (0..50)
        .map(|_| driver.submit(RECEIVE, &[], &[100, 1426]))
        .collect();
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(1, PACKET_BYTES_MAX));
    wire.arrive(0, &packet(2, 64));
    let needed = PACKET_BYTES_MAX.div_ceil(1526);
    assert_eq!(
        received(&mut driver, RECEIVE, &buffers[..needed]),
        in_chains(packet(1, PACKET_BYTES_MAX), needed.try_into().unwrap())
    );
    assert_eq!(
        received(&mut driver, RECEIVE, &buffers[needed..=needed]),
        in_chains(packet(2, 64), 1)
    );
}

#[test]
fn chains_of_one_packet_become_visible_together() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    for number in 0..40 {
        for _ in 0..6 {
            driver.submit(RECEIVE, &[], &[500]);
        }
        driver.ring(RECEIVE);
        wire.arrive(0, &packet(number, 3000));
        // The first is waited for; then all must be there at once.
        driver.used(RECEIVE);
        for _ in 1..6 {
            assert!(driver.try_used(RECEIVE).is_some());
        }
    }
}

#[test]
fn without_mergeable_buffers_a_packet_too_long_is_dropped_and_the_buffer_kept() {
    let wire = Wire::new(1);
    let mut driver = Driver::start_with(net(&wire), !features::MERGEABLE_BUFFERS);
    let first = driver.submit(RECEIVE, &[], &[12, 100]);
    let second = driver.submit(RECEIVE, &[], &[12, 100]);
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(1, 113));
    wire.arrive(0, &packet(2, 112));
    wire.arrive(0, &packet(3, 60));
    let delivered = received(&mut driver, RECEIVE, &[first]);
    assert_eq!(delivered, in_chains(packet(2, 112), 1));
    let delivered = received(&mut driver, RECEIVE, &[second]);
    assert_eq!(delivered, in_chains(packet(3, 60), 1));
}

#[test]
fn packets_stay_outside_until_the_guest_has_buffers() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    wire.arrive(0, &packet(1, 60));
    wire.arrive(0, &packet(2, 60));
    // An answer shows that the device had every chance to take them.
    assert_eq!(command(&mut driver, 2, 0, 0, &[1]), 0);
    assert_eq!(wire.taken(), 0);
    for number in [1, 2] {
        let buffer = driver.submit(RECEIVE, &[], &[1526]);
        driver.ring(RECEIVE);
        assert_eq!(
            received(&mut driver, RECEIVE, &[buffer]),
            in_chains(packet(number, 60), 1)
        );
    }
}

#[test]
fn a_packet_that_needs_more_buffers_waits_for_them() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let mut buffers = vec![driver.submit(RECEIVE, &[], &[1000])];
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(1, 2500));
    assert_eq!(command(&mut driver, 2, 0, 0, &[1]), 0);
    for _ in 0..2 {
        assert_eq!(driver.try_used(RECEIVE), None);
        buffers.push(driver.submit(RECEIVE, &[], &[1000]));
        driver.ring(RECEIVE);
    }
    assert_eq!(
        received(&mut driver, RECEIVE, &buffers),
        in_chains(packet(1, 2500), 3)
    );
}

#[test]
fn a_packet_that_the_whole_ring_cannot_hold_is_dropped() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let buffers: Vec<_> = (0..QUEUE_SIZE)
        .map(|_| driver.submit(RECEIVE, &[], &[12]))
        .collect();
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(1, 12 * usize::from(QUEUE_SIZE) + 1));
    wire.arrive(0, &packet(2, 30));
    assert_eq!(
        received(&mut driver, RECEIVE, &buffers[..3]),
        in_chains(packet(2, 30), 3)
    );
}

#[test]
fn what_is_no_packet_is_dropped_either_way() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    send(&mut driver, TRANSMIT, &packet(1, PACKET_BYTES_MAX + 1));
    send(&mut driver, TRANSMIT, &[0; 12]);
    send(&mut driver, TRANSMIT, &[1, 2, 3]);
    send(&mut driver, TRANSMIT, &[]);
    send(&mut driver, TRANSMIT, &packet(2, PACKET_BYTES_MAX));
    send(&mut driver, TRANSMIT, &packet(3, 13));
    assert_eq!(wire.sent(2), [packet(2, PACKET_BYTES_MAX), packet(3, 13)]);
    let buffer = driver.submit(RECEIVE, &[], &[1526]);
    driver.ring(RECEIVE);
    wire.arrive(0, &[]);
    wire.arrive(0, &[0; 12]);
    wire.arrive(0, &packet(4, 64));
    assert_eq!(
        received(&mut driver, RECEIVE, &[buffer]),
        in_chains(packet(4, 64), 1)
    );
}

#[test]
fn without_room_packets_stay_in_the_ring() {
    let wire = Wire::with_room(1, 1);
    let mut driver = Driver::start(net(&wire));
    let heads: Vec<u16> = (0..3)
        .map(|number| driver.submit(TRANSMIT, &[&packet(number, 60)], &[]).head)
        .collect();
    driver.ring(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT).0, heads[0]);
    assert_eq!(command(&mut driver, 2, 0, 0, &[1]), 0);
    assert_eq!(driver.try_used(TRANSMIT), None);
    wire.make_room(1);
    assert_eq!(driver.used(TRANSMIT).0, heads[1]);
    wire.make_room(9);
    assert_eq!(driver.used(TRANSMIT).0, heads[2]);
    assert_eq!(wire.sent(3), [packet(0, 60), packet(1, 60), packet(2, 60)]);
}

#[test]
fn a_burst_is_served_in_several_turns() {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let total: u32 = 250;
    let buffers: Vec<_> = (0..total)
        .map(|_| driver.submit(RECEIVE, &[], &[256]))
        .collect();
    for number in 0..total {
        driver.submit(TRANSMIT, &[&packet(number, 100)], &[]);
        wire.arrive(0, &packet(number, 200));
    }
    driver.ring(RECEIVE);
    driver.ring(TRANSMIT);
    let sent: Vec<_> = (0..total).map(|number| packet(number, 100)).collect();
    assert_eq!(wire.sent(250), sent);
    for (number, buffer) in (0..total).zip(buffers) {
        assert_eq!(
            received(&mut driver, RECEIVE, &[buffer]),
            in_chains(packet(number, 200), 1)
        );
    }
}

#[test]
fn flags_are_for_drivers_that_know_offloads() {
    let with_flags = |mut packet: Vec<u8>| {
        packet[0] = 2;
        packet
    };
    for (features, flags) in [(u64::MAX, 2), (0, 0)] {
        let wire = Wire::new(1);
        let mut driver = Driver::start_with(net(&wire), features);
        let buffer = driver.submit(RECEIVE, &[], &[1526]);
        driver.ring(RECEIVE);
        wire.arrive(0, &with_flags(packet(1, 60)));
        assert_eq!(received(&mut driver, RECEIVE, &[buffer])[0], flags);
    }
}
