// SPDX-License-Identifier: Apache-2.0
//! Drivers that are wrong or hostile.

use proptest::prelude::*;

use super::wire::Wire;
use super::{RECEIVE, TRANSMIT, in_chains, net, packet, received, send};
use crate::virtio::driver::{Buffer, Driver};

const NEEDS_RESET: u8 = 0x40;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const MEMORY_BYTES: u64 = 64 << 20;

/// Shows that the interface works, after a reset.
fn works(driver: Driver, wire: &Wire) {
    wire.clear();
    let mut driver = driver.restart();
    let before = wire.sent(0).len();
    send(&mut driver, TRANSMIT, &packet(1, 60));
    assert_eq!(wire.sent(before + 1).last(), Some(&packet(1, 60)));
    let buffer = driver.submit(RECEIVE, &[], &[1526]);
    driver.ring(RECEIVE);
    wire.arrive(0, &packet(2, 60));
    let delivered = received(&mut driver, RECEIVE, &[buffer]);
    assert_eq!(delivered, in_chains(packet(2, 60), 1));
}

/// A chain stops the device, nothing leaves, and a reset mends it.
fn stops(queue: usize, chain: impl Fn(&mut Driver) -> Vec<(Buffer, u16)>) {
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let chain = chain(&mut driver);
    driver.submit_raw(queue, &chain);
    driver.ring(queue);
    wire.arrive(0, &packet(1, 60));
    driver.wait_for_status(NEEDS_RESET);
    assert!(wire.sent(0).is_empty());
    works(driver, &wire);
}

#[test]
fn a_chain_in_the_wrong_order_stops_the_device() {
    stops(TRANSMIT, |driver| {
        let buffer = driver.put(&packet(1, 60));
        vec![(buffer, WRITE), (buffer, 0)]
    });
}

#[test]
fn a_chain_outside_memory_stops_the_device() {
    let outside = Buffer {
        address: MEMORY_BYTES - 10,
        length: 60,
    };
    stops(TRANSMIT, |_| vec![(outside, 0)]);
    stops(RECEIVE, |_| vec![(outside, WRITE)]);
    let end = Buffer {
        address: u64::MAX,
        length: 60,
    };
    stops(TRANSMIT, |_| vec![(end, 0)]);
}

#[test]
fn a_chain_that_leads_nowhere_stops_the_device() {
    // The last part names a next one: this chain's first, so that it goes round and round.
    stops(TRANSMIT, |driver| {
        let buffer = driver.put(&packet(1, 60));
        vec![(buffer, 0); 255]
            .into_iter()
            .chain([(buffer, NEXT)])
            .collect()
    });
    stops(TRANSMIT, |driver| {
        let table = driver.put(&[0xff; 20]);
        vec![(table, INDIRECT)]
    });
}

#[test]
fn a_receive_buffer_smaller_than_a_header_stops_the_device() {
    stops(RECEIVE, |driver| vec![(driver.put(&[0; 11]), WRITE)]);
    stops(RECEIVE, |driver| vec![(driver.put(&[0; 100]), 0)]);
}

#[test]
fn a_table_of_parts_without_end_stops_the_device() {
    stops(TRANSMIT, |driver| {
        // 2,000 parts of no bytes, each of which names the next.
        let table: Vec<u8> = (1u16..=2000)
            .flat_map(|next| {
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
                    .into_iter()
                    .chain(next.to_le_bytes())
            })
            .collect();
        vec![(driver.put(&table), INDIRECT)]
    });
}

#[test]
fn an_impossible_ring_stops_the_device() {
    for queue in [RECEIVE, TRANSMIT, 2] {
        let wire = Wire::new(1);
        let mut driver = Driver::start(net(&wire));
        driver.corrupt_available(queue);
        driver.ring(queue);
        wire.arrive(0, &packet(1, 60));
        driver.wait_for_status(NEEDS_RESET);
        works(driver, &wire);
    }
}

#[test]
fn a_packet_in_an_indirect_table_is_sent() {
    // Not offered, but a driver that does it all the same is understood.
    let wire = Wire::new(1);
    let mut driver = Driver::start(net(&wire));
    let content = driver.put(&packet(1, 60));
    let mut table = content.address.to_le_bytes().to_vec();
    table.extend(60u32.to_le_bytes());
    table.extend([0; 4]);
    let table = driver.put(&table);
    let head = driver.submit_raw(TRANSMIT, &[(table, INDIRECT)]);
    driver.ring(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT), (head, 0));
    assert_eq!(wire.sent(1), [packet(1, 60)]);
}

fn part() -> impl Strategy<Value = (Buffer, u16)> {
    let address = prop_oneof![
        4 => 0..MEMORY_BYTES,
        // Where the rings are.
        2 => 0x1_0000u64..0x2_0000,
        1 => MEMORY_BYTES - 2000..MEMORY_BYTES + 2000,
        1 => Just(u64::MAX - 5),
    ];
    let length = prop_oneof![
        4 => 0usize..2000,
        1 => Just(65_570usize),
        1 => Just(u32::MAX as usize),
    ];
    let flags = prop_oneof![6 => Just(0u16), 6 => Just(WRITE), 1 => Just(NEXT), 1 => Just(INDIRECT), 1 => any::<u16>()];
    (address, length, flags)
        .prop_map(|(address, length, flags)| (Buffer { address, length }, flags))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_the_chains_the_device_survives(
        chains in prop::collection::vec(
            (0usize..3, prop::collection::vec(part(), 1..6), 13usize..5000),
            1..40,
        ),
        seed: u32,
    ) {
        let wire = Wire::new(1);
        let mut driver = Driver::start(net(&wire));
        for (queue, chain, bytes) in chains {
            driver.submit_raw(queue, &chain);
            driver.ring(queue);
            wire.arrive(0, &packet(seed, bytes));
        }
        driver.function().pause();
        let state = driver.function().save();
        let driver = driver.move_to(net(&wire), &state);
        works(driver, &wire);
    }
}
