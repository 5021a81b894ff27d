// SPDX-License-Identifier: Apache-2.0
//! What the block device promises, seen from a driver.

mod bounds;
mod carried;
mod cuts;
mod disk;
mod hostile;
mod model;

use std::io;

use super::*;
use crate::backend::{DiskOptions, RawDisk, SECTOR_BYTES, Unmap};
use crate::virtio::driver::{Buffer, Driver, Submitted};
use disk::{Operation, Pace, SECTORS, TestDisk};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const SECTOR: usize = 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, count: u32, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&count.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

fn block(disk: &TestDisk) -> Box<dyn Device> {
    Box::new(Block::new(DiskAttachment {
        serial: "test-disk".parse().unwrap(),
        backend: Box::new(disk.open()),
    }))
}

/// Makes a request available and rings. All that the device may write is zero but for the last byte,
/// which is no status.
fn submit(driver: &mut Driver, readable: &[&[u8]], writable: &[usize]) -> Submitted {
    let readable: Vec<_> = readable.iter().map(|bytes| driver.put(bytes)).collect();
    let mut writable: Vec<_> = writable
        .iter()
        .map(|length| driver.put(&vec![0; *length]))
        .collect();
    if let Some(last) = writable.iter_mut().rfind(|buffer| buffer.length > 0) {
        let content = [&vec![0; last.length - 1][..], &[0xff]].concat();
        *last = driver.put(&content);
    }
    let readable = readable.into_iter().map(|buffer| (buffer, 0));
    let chain = readable.chain(writable.iter().map(|buffer| (*buffer, 2)));
    let chain: Vec<_> = chain.collect();
    let head = driver.submit_raw(QUEUE, &chain);
    driver.ring(QUEUE);
    Submitted { head, writable }
}

/// A guest with one disk.
struct Guest {
    driver: Driver,
    disk: TestDisk,
}

impl Guest {
    fn new(disk: TestDisk) -> Self {
        let driver = Driver::start(block(&disk));
        Self { driver, disk }
    }

    fn submit(&mut self, readable: &[&[u8]], writable: &[usize]) -> Submitted {
        submit(&mut self.driver, readable, writable)
    }

    /// Submits a request and waits: what was written, how much that was, and the status.
    fn ask(&mut self, readable: &[&[u8]], writable: &[usize]) -> (Vec<u8>, u32, u8) {
        let submitted = self.submit(readable, writable);
        let (head, written) = self.driver.used(QUEUE);
        assert_eq!(head, submitted.head);
        let mut bytes: Vec<u8> = submitted
            .writable
            .iter()
            .flat_map(|buffer| self.driver.read(buffer))
            .collect();
        let status = bytes.pop().unwrap();
        (bytes, written, status)
    }

    fn status_of(&mut self, readable: &[&[u8]], writable: &[usize]) -> u8 {
        self.ask(readable, writable).2
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.status_of(&[&header(OUT, sector), data], &[1])
    }

    fn read(&mut self, sector: u64, bytes: usize) -> Vec<u8> {
        let (data, written, status) = self.ask(&[&header(IN, sector)], &[bytes, 1]);
        assert_eq!((written, status), (u32::try_from(bytes).unwrap() + 1, OK));
        data
    }

    /// Waits until the back end holds so many requests.
    fn wait_for_waiting(&self, count: usize) {
        self.disk.wait_for_waiting(count);
    }

    fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.driver.config(offset, &mut data);
        data
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut guest = Guest::new(TestDisk::new());
    let data: Vec<u8> = (0..3 * SECTOR)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    assert_eq!(guest.write(5, &data), OK);
    assert_eq!(guest.read(5, 3 * SECTOR), data);
    assert_eq!(guest.read(6, SECTOR), data[SECTOR..2 * SECTOR]);
    assert_eq!(guest.status_of(&[&header(FLUSH, 0)], &[1]), OK);
    assert_eq!(guest.disk.content()[5 * SECTOR..8 * SECTOR], data);
    assert!(guest.driver.interrupts() >= 1);
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut guest = Guest::new(TestDisk::new());
    let mut whole = header(OUT, 7).to_vec();
    whole.extend([9; SECTOR]);
    let (a, rest) = whole.split_at(1);
    let (b, rest) = rest.split_at(10);
    let (c, d) = rest.split_at(300);
    let submitted = guest.ask(&[a, &[], b, c, d], &[1]);
    assert_eq!((submitted.1, submitted.2), (1, OK));
    // All readable bytes in one descriptor, all writable ones in another.
    let (data, written, status) = guest.ask(&[&header(IN, 7)], &[SECTOR + 1]);
    assert_eq!((data, written, status), (vec![9; SECTOR], 513, OK));
    let (data, _, status) = guest.ask(&[&header(IN, 7)], &[1, 500, 11, 1, 0]);
    assert_eq!((data, status), (vec![9; SECTOR], OK));
}

#[test]
fn an_indirect_table_is_a_chain_too() {
    let mut guest = Guest::new(TestDisk::new());
    let header = guest.driver.put(&header(IN, 0));
    let data = guest.driver.put(&[1; SECTOR]);
    let status = guest.driver.put(&[0xff]);
    let mut table = Vec::new();
    for (next, (buffer, flags)) in [(header, 1u16), (data, 3), (status, 2)].iter().enumerate() {
        table.extend(buffer.address.to_le_bytes());
        table.extend(u32::try_from(buffer.length).unwrap().to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(u16::try_from(next + 1).unwrap().to_le_bytes());
    }
    let table = guest.driver.put(&table);
    let head = guest.driver.submit_raw(QUEUE, &[(table, 4)]);
    guest.driver.ring(QUEUE);
    assert_eq!(guest.driver.used(QUEUE), (head, 513));
    assert_eq!(guest.driver.read(&data), [0; SECTOR]);
    assert_eq!(guest.driver.read(&status), [OK]);
}

#[test]
fn the_configuration_describes_the_disk() {
    let guest = Guest::new(TestDisk::new());
    assert_eq!(u64::from_le_bytes(guest.config(0)), SECTORS);
    let [size_max, seg_max] = [8, 12].map(|at| u32::from_le_bytes(guest.config(at)));
    assert_eq!((size_max, seg_max), (16 << 10, 254));
    assert_eq!(u32::from_le_bytes(guest.config(20)), 512);
    let limits = [36, 40, 44, 48, 52].map(|at| u32::from_le_bytes(guest.config(at)));
    assert_eq!(limits, [1 << 17, 16, 1, 1 << 17, 16]);
    assert_eq!(guest.config(56), [1, 0, 0, 0]);
    let offered = [1, 2, 6, 9, 13, 14, 28, 29, 32].map(|bit| 1u64 << bit);
    assert_eq!(guest.driver.features(), offered.iter().sum::<u64>());
    assert_eq!(
        guest.driver.function().fingerprint(),
        "virtio-blk/2@1 serial=\"test-disk\" capacity=131072 block=512 discard write-zeroes"
    );
}

#[test]
fn the_serial_is_told() {
    let mut guest = Guest::new(TestDisk::new());
    let (id, written, status) = guest.ask(&[&header(GET_ID, 0)], &[20, 1]);
    assert_eq!(
        (&id[..], written, status),
        (&b"test-disk\0\0\0\0\0\0\0\0\0\0\0"[..], 21, OK)
    );
    let (id, written, status) = guest.ask(&[&header(GET_ID, 0)], &[4, 1]);
    assert_eq!((&id[..], written, status), (&b"test"[..], 5, OK));
    let (_, written, status) = guest.ask(&[&header(GET_ID, 0)], &[30, 1]);
    assert_eq!((written, status), (20, OK));
    assert_eq!(guest.status_of(&[&header(GET_ID, 0)], &[1]), OK);
}

#[test]
fn ranges_are_discarded_and_zeroed_one_after_the_other() {
    let mut guest = Guest::new(TestDisk::new());
    guest.write(0, &[7; 8 * SECTOR]);
    let ranges = [range(1, 1, 0), range(3, 0, 0), range(4, 2, 1)].concat();
    let status = guest.status_of(&[&header(WRITE_ZEROES, 0), &ranges], &[1]);
    assert_eq!(status, OK);
    let expected = [(512, 512, Unmap::Forbidden), (2048, 1024, Unmap::Allowed)];
    let expected = expected.map(|(offset, length, unmap)| Operation::WriteZeroes {
        offset,
        length,
        unmap,
    });
    assert_eq!(guest.disk.operations()[1..], expected);
    let read = guest.read(0, 8 * SECTOR);
    let firsts: Vec<u8> = read.iter().step_by(SECTOR).copied().collect();
    assert_eq!(firsts, [7, 0, 7, 7, 0, 0, 7, 7]);
    let status = guest.status_of(&[&header(DISCARD, 0), &range(2, 1, 0)], &[1]);
    assert_eq!(status, OK);
    let last = guest.disk.operations().pop().unwrap();
    let expected = Operation::Discard {
        offset: 1024,
        length: 512,
    };
    assert_eq!(last, expected);
}

#[test]
fn what_the_host_fails_at_the_guest_is_told() {
    let mut guest = Guest::new(TestDisk::new());
    let errors = [
        io::ErrorKind::StorageFull,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::Other,
    ];
    for error in errors {
        guest.disk.fail_next(error);
        assert_eq!(guest.write(0, &[1; SECTOR]), IOERR);
        guest.disk.fail_next(error);
        let (data, written, status) = guest.ask(&[&header(IN, 0)], &[SECTOR, 1]);
        assert_eq!((data, written, status), (vec![0; SECTOR], 0, IOERR));
        guest.disk.fail_next(error);
        assert_eq!(guest.status_of(&[&header(FLUSH, 0)], &[1]), IOERR);
    }
    assert_eq!(guest.write(0, &[2; SECTOR]), OK);
    assert_eq!(guest.read(0, SECTOR), [2; SECTOR]);
}

#[test]
fn a_range_that_fails_ends_the_request() {
    let mut guest = Guest::new(TestDisk::new());
    guest.disk.fail_next(io::ErrorKind::Other);
    let ranges = [range(0, 1, 0), range(1, 1, 0)].concat();
    assert_eq!(
        guest.status_of(&[&header(DISCARD, 0), &ranges], &[1]),
        IOERR
    );
    assert_eq!(guest.disk.operations().len(), 1);
}

#[test]
fn a_driver_without_flush_finds_its_writes_durable() {
    let disk = TestDisk::new();
    disk.set_pace(Pace::Held);
    let driver = Driver::start_with(block(&disk), !layout::F_FLUSH);
    let mut guest = Guest { driver, disk };
    let request = guest.submit(&[&header(OUT, 3), &[5; SECTOR]], &[1]);
    guest.wait_for_waiting(1);
    guest.disk.complete(0);
    // The write is done; now the flush waits, and the guest has heard nothing.
    guest.wait_for_waiting(1);
    assert_eq!(guest.disk.operations().pop(), Some(Operation::Flush));
    assert_eq!(guest.driver.try_used(QUEUE), None);
    guest.disk.complete(0);
    assert_eq!(guest.driver.used(QUEUE), (request.head, 1));
    assert_eq!(guest.disk.durable()[3 * SECTOR..4 * SECTOR], [5; SECTOR]);
    // And one whose flush fails is not.
    guest.disk.set_pace(Pace::AtOnce);
    guest.disk.fail_flushes();
    assert_eq!(guest.write(3, &[6; SECTOR]), IOERR);
}

#[test]
fn a_driver_with_flush_has_a_cache() {
    let mut guest = Guest::new(TestDisk::new());
    guest.write(0, &[5; SECTOR]);
    assert_eq!(guest.disk.durable()[..SECTOR], [0; SECTOR]);
    assert_eq!(guest.status_of(&[&header(FLUSH, 0)], &[1]), OK);
    assert_eq!(guest.disk.durable()[..SECTOR], [5; SECTOR]);
}

#[test]
fn a_file_is_a_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let raw = RawDisk::open(file.path(), DiskOptions::default()).unwrap();
    let mut driver = Driver::start(Box::new(Block::new(DiskAttachment {
        serial: "file".parse().unwrap(),
        backend: Box::new(raw),
    })));
    let data: Vec<u8> = (0..64 << 10)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let mut ask = |readable: &[&[u8]], writable: &[usize]| {
        let submitted = submit(&mut driver, readable, writable);
        let (head, _) = driver.used(QUEUE);
        assert_eq!(head, submitted.head);
        let parts = submitted.writable.iter().map(|buffer| driver.read(buffer));
        parts.collect::<Vec<_>>().concat()
    };
    assert_eq!(ask(&[&header(OUT, 100), &data], &[1]), [OK]);
    assert_eq!(ask(&[&header(FLUSH, 0)], &[1]), [OK]);
    assert_eq!(
        ask(&[&header(WRITE_ZEROES, 0), &range(101, 1, 1)], &[1]),
        [OK]
    );
    let read = ask(&[&header(IN, 100)], &[data.len(), 1]);
    assert_eq!(read[..SECTOR], data[..SECTOR]);
    assert_eq!(read[SECTOR..2 * SECTOR], [0; SECTOR]);
    assert_eq!(read[2 * SECTOR..data.len()], data[2 * SECTOR..]);
}
