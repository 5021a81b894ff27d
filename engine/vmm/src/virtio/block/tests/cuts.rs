// SPDX-License-Identifier: Apache-2.0
//! Pausing, moving, resetting and stopping with requests in flight.

use super::*;

#[test]
fn a_pause_completes_what_is_in_flight_and_nothing_after_it() {
    let mut guest = Guest::new(TestDisk::new());
    guest.disk.set_pace(Pace::Held);
    let request = guest.submit(&[&header(OUT, 0), &[1; SECTOR]], &[1]);
    let ranges = [range(1, 1, 0), range(2, 1, 0), range(4, 1, 0)].concat();
    guest.submit(&[&header(WRITE_ZEROES, 0), &ranges], &[1]);
    guest.wait_for_waiting(2);
    guest.driver.function().pause();
    let heads = [guest.driver.try_used(QUEUE), guest.driver.try_used(QUEUE)];
    assert!(heads.contains(&Some((request.head, 1))));
    assert!(heads.iter().all(Option::is_some));
    let late = guest.submit(&[&header(OUT, 0), &[2; SECTOR]], &[1]);
    let state = guest.driver.function().save();
    assert_eq!(guest.disk.operations().len(), 4);
    assert_eq!(guest.disk.content()[..SECTOR], [1; SECTOR]);
    guest.disk.set_pace(Pace::AtOnce);
    // Another machine's disk goes on with what was asked meanwhile.
    let replica = TestDisk::with_content(guest.disk.content());
    let mut driver = guest.driver.move_to(block(&replica), &state);
    assert_eq!(driver.used(QUEUE), (late.head, 1));
    assert_eq!(replica.content()[..SECTOR], [2; SECTOR]);
}

#[test]
fn a_state_does_not_fit_another_disk() {
    let guest = Guest::new(TestDisk::new());
    guest.driver.function().pause();
    let state = guest.driver.function().save();
    for mut other in [
        block(&TestDisk::read_only()),
        block(&TestDisk::with_content(vec![0; SECTOR])),
        Box::new(Block::new(DiskAttachment {
            serial: "another".parse().unwrap(),
            backend: Box::new(TestDisk::new().open()),
        })),
    ] {
        assert!(other.restore(&state.device, 0).is_err());
        assert!(other.restore(&DeviceState::Rng, 0).is_err());
    }
    assert!(block(&TestDisk::new()).restore(&state.device, 0).is_ok());
}

#[test]
fn a_host_that_no_longer_answers_stops_the_device() {
    let mut guest = Guest::new(TestDisk::new());
    guest.disk.set_pace(Pace::Held);
    guest.submit(&[&header(OUT, 0), &[1; SECTOR]], &[1]);
    guest.wait_for_waiting(1);
    guest.disk.break_drain(true);
    guest.driver.function().pause();
    assert_eq!(guest.driver.status() & 0x40, 0x40);
    guest.driver.function().resume();
    // What comes after all is nobody's.
    guest.disk.break_drain(false);
    guest.disk.complete(0);
    let Guest { driver, disk } = guest;
    let driver = driver.restart();
    disk.set_pace(Pace::AtOnce);
    let mut guest = Guest { driver, disk };
    assert_eq!(guest.write(1, &[3; SECTOR]), OK);
    assert_eq!(guest.read(1, SECTOR), [3; SECTOR]);
}

#[test]
fn a_reset_leaves_nothing_in_flight() {
    let mut guest = Guest::new(TestDisk::new());
    guest.disk.set_pace(Pace::Held);
    guest.submit(&[&header(OUT, 0), &[1; SECTOR]], &[1]);
    guest.wait_for_waiting(1);
    guest.driver.set(0x14, &[0]);
    assert_eq!(guest.disk.waiting(), 0);
    // A driver that takes its readiness back does not leave anything to a cut either.
    let Guest { driver, disk } = guest;
    let mut guest = Guest {
        driver: driver.restart(),
        disk,
    };
    guest.submit(&[&header(OUT, 1), &[2; SECTOR]], &[1]);
    guest.wait_for_waiting(1);
    guest.driver.set(0x14, &[3]);
    assert_eq!(guest.disk.waiting(), 1);
    guest.driver.function().pause();
    assert_eq!(guest.disk.waiting(), 0);
    assert_eq!(guest.driver.try_used(QUEUE), None);
}

#[test]
fn a_machine_that_goes_leaves_nothing_in_flight() {
    let mut guest = Guest::new(TestDisk::new());
    guest.disk.set_pace(Pace::Held);
    guest.submit(&[&header(OUT, 0), &[1; SECTOR]], &[1]);
    guest.wait_for_waiting(1);
    let Guest { driver, disk } = guest;
    drop(driver);
    assert_eq!(disk.waiting(), 0);
    disk.set_pace(Pace::AtOnce);
    let driver = Driver::start(block(&disk));
    let mut guest = Guest { driver, disk };
    assert_eq!(guest.read(0, SECTOR), [1; SECTOR]);
}
