// SPDX-License-Identifier: Apache-2.0
//! What is refused, and how.

use super::*;

#[test]
fn ranges_that_may_not_be_are_refused_whole() {
    let mut guest = Guest::new(TestDisk::new());
    let many: Vec<u8> = (0..17).flat_map(|_| range(0, 1, 0)).collect();
    let good = range(0, 1, 0);
    let cases: [(u32, Vec<u8>, u8); 9] = [
        (DISCARD, range(0, 1, 1).to_vec(), UNSUPP),
        (DISCARD, range(0, 1, 2).to_vec(), UNSUPP),
        (WRITE_ZEROES, range(0, 1, 2).to_vec(), UNSUPP),
        (DISCARD, [good, range(SECTORS, 1, 0)].concat(), IOERR),
        (DISCARD, [good, range(u64::MAX, 1, 0)].concat(), IOERR),
        (WRITE_ZEROES, range(0, u32::MAX, 0).to_vec(), IOERR),
        (WRITE_ZEROES, many, IOERR),
        (WRITE_ZEROES, good[..15].to_vec(), IOERR),
        (WRITE_ZEROES, Vec::new(), IOERR),
    ];
    for (kind, ranges, expected) in cases {
        let status = guest.status_of(&[&header(kind, 0), &ranges], &[1]);
        assert_eq!(status, expected, "{kind} {ranges:?}");
    }
    let empty = [range(0, 0, 0), range(SECTORS, 0, 0)].concat();
    assert_eq!(guest.status_of(&[&header(DISCARD, 0), &empty], &[1]), OK);
    assert_eq!(guest.disk.operations(), []);
}

#[test]
fn what_was_not_negotiated_is_not_supported() {
    let disk = TestDisk::new();
    let driver = Driver::start_with(block(&disk), layout::F_FLUSH);
    let mut guest = Guest { driver, disk };
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(
            guest.status_of(&[&header(kind, 0), &range(0, 1, 0)], &[1]),
            UNSUPP
        );
    }
    for kind in [2, 3, 5, 10, 14, 0x8000_0000] {
        assert_eq!(
            guest.status_of(&[&header(kind, 0), &[0; SECTOR]], &[1]),
            UNSUPP
        );
    }
    assert_eq!(guest.disk.operations(), []);
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let mut guest = Guest::new(TestDisk::read_only());
    assert_eq!(
        guest.driver.features() & (1 << 5 | 1 << 13 | 1 << 14),
        1 << 5
    );
    assert_eq!(guest.write(0, &[1; SECTOR]), IOERR);
    assert_eq!(
        guest.status_of(&[&header(DISCARD, 0), &range(0, 1, 0)], &[1]),
        UNSUPP
    );
    assert_eq!(guest.disk.operations(), []);
    assert_eq!(guest.read(0, SECTOR), [0; SECTOR]);
    let label = guest.driver.function().fingerprint();
    assert!(label.contains(" read-only"), "{label}");
}

#[test]
fn nothing_beyond_the_end_is_touched() {
    let mut guest = Guest::new(TestDisk::new());
    for sector in [SECTORS - 1, SECTORS, u64::MAX / SECTOR_BYTES, u64::MAX] {
        assert_eq!(guest.write(sector, &[1; 2 * SECTOR]), IOERR, "{sector}");
        let (data, written, status) = guest.ask(&[&header(IN, sector)], &[2 * SECTOR, 1]);
        assert_eq!((written, status), (0, IOERR), "{sector}");
        assert_eq!(data, [0; 2 * SECTOR]);
    }
    assert_eq!(guest.disk.operations(), []);
    assert_eq!(guest.write(SECTORS - 2, &[1; 2 * SECTOR]), OK);
}

#[test]
fn requests_of_the_wrong_shape_fail() {
    let mut guest = Guest::new(TestDisk::new());
    assert_eq!(
        guest.status_of(&[&header(IN, 0)[..15]], &[SECTOR, 1]),
        IOERR
    );
    assert_eq!(guest.status_of(&[], &[SECTOR, 1]), IOERR);
    assert_eq!(guest.status_of(&[&header(IN, 0)], &[1]), IOERR);
    assert_eq!(guest.status_of(&[&header(OUT, 0)], &[1]), IOERR);
    assert_eq!(guest.status_of(&[&header(OUT, 0), &[1; 511]], &[1]), IOERR);
    assert_eq!(guest.status_of(&[&header(IN, 0)], &[513, 1]), IOERR);
    // Readable after writable.
    let parts = [
        (guest.driver.put(&header(OUT, 0)), 0),
        (guest.driver.put(&[0xff]), 2),
        (guest.driver.put(&[1; SECTOR]), 0),
    ];
    guest.driver.submit_raw(QUEUE, &parts);
    guest.driver.ring(QUEUE);
    assert_eq!(guest.driver.used(QUEUE).1, 1);
    assert_eq!(guest.driver.read(&parts[1].0), [IOERR]);
    assert_eq!(guest.disk.operations(), []);
}

#[test]
fn without_a_place_for_a_status_the_chain_comes_back_empty() {
    let mut guest = Guest::new(TestDisk::new());
    let unreachable = Buffer {
        address: 1 << 40,
        length: 1,
    };
    for writable in [None, Some(unreachable)] {
        let first = (guest.driver.put(&header(FLUSH, 0)), 0);
        let chain = [Some(first), writable.map(|buffer| (buffer, 2))];
        let chain: Vec<_> = chain.into_iter().flatten().collect();
        let head = guest.driver.submit_raw(QUEUE, &chain);
        guest.driver.ring(QUEUE);
        assert_eq!(guest.driver.used(QUEUE), (head, 0));
    }
    assert_eq!(guest.disk.operations(), []);
}

#[test]
fn huge_and_unreachable_data_fails() {
    let mut guest = Guest::new(TestDisk::new());
    let places = [
        (0x20_0000, 4 << 20),
        (0x20_0000, 60 << 20),
        (0x20_0000, u32::MAX as usize - 512),
        (u64::MAX - 4095, 4096),
        (1 << 40, 512),
        ((64 << 20) - 256, 512),
    ];
    for (address, length) in places {
        for (kind, flags) in [(IN, 2), (OUT, 0)] {
            let status = guest.driver.put(&[0xff]);
            let chain = [
                (guest.driver.put(&header(kind, 0)), 0),
                (Buffer { address, length }, flags),
                (status, 2),
            ];
            guest.driver.submit_raw(QUEUE, &chain);
            guest.driver.ring(QUEUE);
            guest.driver.used(QUEUE);
            let told = guest.driver.read(&status);
            assert_eq!(told, [IOERR], "{kind} {length:#x} at {address:#x}");
        }
    }
    assert_eq!(guest.disk.operations(), []);
}

#[test]
fn more_than_fits_waits_its_turn() {
    let mut guest = Guest::new(TestDisk::sized(8 << 20));
    guest.disk.set_pace(Pace::Held);
    let data = guest.driver.put(&vec![4; 4 << 20 >> 1]);
    let requests: Vec<u16> = (0..20)
        .map(|_| {
            let chain = [
                (guest.driver.put(&header(OUT, 0)), 0),
                (data, 0),
                (guest.driver.put(&[0xff]), 2),
            ];
            guest.driver.submit_raw(QUEUE, &chain)
        })
        .collect();
    guest.driver.ring(QUEUE);
    guest.wait_for_waiting(16);
    guest.disk.set_pace(Pace::AtOnce);
    (0..16).for_each(|_| guest.disk.complete(0));
    let mut used: Vec<u16> = requests
        .iter()
        .map(|_| guest.driver.used(QUEUE).0)
        .collect();
    used.sort_unstable();
    assert_eq!(used, requests);
    assert!(guest.disk.most_waiting() <= 16);
}
