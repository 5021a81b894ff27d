// SPDX-License-Identifier: Apache-2.0
//! Chains that no driver makes: none of them may panic, hang or stop the device.

use proptest::prelude::*;

use super::disk::TestDisk;
use super::*;

/// Where nothing of the rings is.
const FREE_FROM: u64 = 1 << 20;
const MEMORY_END: u64 = 64 << 20;

#[derive(Debug, Clone)]
enum Piece {
    /// Bytes that look like a header or a range.
    Header {
        kind: u32,
        sector: u64,
        length: usize,
        flags: u16,
    },
    /// Any stretch, there or not.
    Stretch {
        address: u64,
        length: u32,
        flags: u16,
    },
}

fn piece() -> impl Strategy<Value = Piece> {
    // Next, write, indirect.
    let flags = || prop_oneof![4 => 0..4u16, 1 => 0..8u16];
    let kind = prop::sample::select(vec![IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99]);
    let sector = prop_oneof![0..300u64, any::<u64>()];
    let length = prop_oneof![3 => Just(16usize), 1 => 0..40usize];
    let address = prop_oneof![
        4 => FREE_FROM..MEMORY_END,
        1 => MEMORY_END - 4096..MEMORY_END + 4096,
        1 => any::<u64>().prop_map(|address| address.max(FREE_FROM)),
    ];
    let bytes = prop_oneof![Just(1u32), Just(512), Just(1024), 0..5000u32, any::<u32>()];
    prop_oneof![
        (kind, sector, length, flags()).prop_map(|(kind, sector, length, flags)| Piece::Header {
            kind,
            sector,
            length,
            flags
        }),
        (address, bytes, flags()).prop_map(|(address, length, flags)| Piece::Stretch {
            address,
            length,
            flags
        }),
    ]
}

fn submit(driver: &mut Driver, pieces: &[Piece]) -> u16 {
    let chain: Vec<_> = pieces
        .iter()
        .map(|piece| match *piece {
            Piece::Header {
                kind,
                sector,
                length,
                flags,
            } => {
                let mut bytes = header(kind, sector).to_vec();
                bytes.resize(length, 0);
                (driver.put(&bytes), flags)
            }
            Piece::Stretch {
                address,
                length,
                flags,
            } => {
                let length = usize::try_from(length).unwrap();
                (Buffer { address, length }, flags)
            }
        })
        .collect();
    let head = driver.submit_raw(QUEUE, &chain);
    driver.ring(QUEUE);
    head
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_chain_comes_back(
        chains in prop::collection::vec(prop::collection::vec(piece(), 1..6), 1..40),
    ) {
        let disk = TestDisk::new();
        let mut driver = Driver::start(block(&disk));
        for pieces in &chains {
            let head = submit(&mut driver, pieces);
            prop_assert_eq!(driver.used(QUEUE).0, head);
        }
        driver.function().pause();
        prop_assert_eq!(driver.try_used(QUEUE), None);
        prop_assert_eq!(driver.status(), 15);
    }
}

#[test]
fn a_loop_and_a_chain_without_end_come_back() {
    let mut guest = Guest::new(TestDisk::new());
    let first = (guest.driver.put(&header(IN, 0)), 0);
    let byte = guest.driver.put(&[0xff]);
    // 256 descriptors, the last one linked to the first.
    let mut chain = vec![first];
    chain.extend([(byte, 2); 254]);
    chain.push((byte, 3));
    let head = guest.driver.submit_raw(QUEUE, &chain);
    guest.driver.ring(QUEUE);
    assert_eq!(guest.driver.used(QUEUE), (head, 0));
    // An indirect table with more entries than a chain may have.
    let mut table = Vec::new();
    for next in 1..=1000u16 {
        table.extend(byte.address.to_le_bytes());
        table.extend(1u32.to_le_bytes());
        table.extend(if next == 1000 { 2u16 } else { 3 }.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    let table = guest.driver.put(&table);
    let head = guest.driver.submit_raw(QUEUE, &[(table, 4)]);
    guest.driver.ring(QUEUE);
    assert_eq!(guest.driver.used(QUEUE), (head, 0));
    assert_eq!(guest.driver.read(&byte), [0xff]);
}
