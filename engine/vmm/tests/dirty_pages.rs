// SPDX-License-Identifier: Apache-2.0
//! Tracking changed pages on real KVM, in every way that this host offers.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::{Bench, guests};
use kemari_vmm::{
    DirtyLogError, DirtyPages, DirtyTracking, PAGE_SIZE, PageIndex, TrackingMode, kvm_is_usable,
};

/// The pages the painter guest writes: one in every 64 KiB from 2 MiB to 4 MiB.
fn painted() -> Vec<u64> {
    (0x20_0000..0x40_0000u64)
        .step_by(0x1_0000)
        .map(|address| address / PAGE_SIZE as u64)
        .collect()
}

fn numbers(pages: &DirtyPages) -> Vec<u64> {
    pages.iter().map(|page| page.0).collect()
}

/// Runs a test once for each way of tracking.
fn in_every_way(test: impl Fn(DirtyTracking)) {
    if !kvm_is_usable() {
        eprintln!("SKIPPED: /dev/kvm is missing or may not be opened");
        return;
    }
    for tracking in common::safe_trackings() {
        eprintln!("tracking: {tracking:?}");
        test(tracking);
    }
}

/// A machine of `mib` MiB with a bare guest, booted.
fn booted(code: &[u8], mib: u32, tracking: DirtyTracking) -> Bench {
    let kernel = guests::write_elf(code);
    let mut config = common::config(kernel.path(), "", mib);
    config.dirty_tracking = tracking;
    let mut bench = Bench::with_config(config);
    bench.machine.boot().unwrap();
    bench
}

fn arm_everything(bench: &mut Bench) {
    let page_count = bench.machine.memory().page_count();
    bench.machine.arm_dirty_tracking(0..page_count).unwrap();
}

/// What the first has that the second has not, and the other way round.
fn differences(ones: &[u64], others: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let without = |these: &[u64], those: &[u64]| {
        let missing = |page: &&u64| those.binary_search(page).is_err();
        these.iter().filter(missing).copied().collect()
    };
    (without(ones, others), without(others, ones))
}

/// A painter that has painted once, is paused, and whose pages are being tracked.
fn tracked_painter(tracking: DirtyTracking) -> Bench {
    let mut bench = booted(guests::painter(), 16, tracking);
    bench.machine.resume();
    bench.console.wait_for(1);
    bench.machine.start_dirty_tracking().unwrap();
    bench.machine.pause().unwrap();
    // The guest may have run on while tracking began, but it only polls.
    bench.machine.harvest_dirty().unwrap();
    bench
}

fn paint_again(bench: &mut Bench) {
    let before = bench.console.len();
    bench.machine.resume();
    assert_eq!(bench.machine.console_input().push(b"x"), 1);
    bench.console.wait_for(before + 1);
}

#[test]
fn the_pages_a_guest_writes_are_harvested_once() {
    in_every_way(|tracking| {
        let mut bench = tracked_painter(tracking);
        for _ in 0..10 {
            paint_again(&mut bench);
            bench.machine.pause().unwrap();
            let harvest = bench.machine.harvest_dirty().unwrap();
            assert_eq!(numbers(&harvest), painted());
            assert!(bench.machine.harvest_dirty().unwrap().is_empty());
        }
    });
}

#[test]
fn saving_state_dirties_nothing_after_the_harvest() {
    in_every_way(|tracking| {
        let mut bench = tracked_painter(tracking);
        paint_again(&mut bench);
        bench.machine.pause().unwrap();
        bench.machine.save().unwrap();
        let first = bench.machine.harvest_dirty().unwrap();
        bench.machine.save().unwrap();
        assert_eq!(numbers(&first), painted());
        assert!(bench.machine.harvest_dirty().unwrap().is_empty());
    });
}

#[test]
fn harvests_of_a_running_guest_lose_nothing() {
    in_every_way(|tracking| {
        let mut bench = tracked_painter(tracking);
        let mut seen = DirtyPages::none(bench.machine.memory().page_count());
        paint_again(&mut bench);
        for _ in 0..50 {
            seen.union(&bench.machine.harvest_dirty().unwrap());
        }
        bench.machine.pause().unwrap();
        seen.union(&bench.machine.harvest_dirty().unwrap());
        assert_eq!(numbers(&seen), painted());
    });
}

/// Cloud Hypervisor #2458: pages written by the VMM were not tracked, because KVM does not see them.
#[test]
fn cloud_hypervisor_2458_our_own_writes_are_harvested() {
    in_every_way(|tracking| {
        let mut bench = tracked_painter(tracking);
        let memory = bench.machine.memory();
        let ours = [PageIndex(7), PageIndex(63), PageIndex(64), PageIndex(4095)];
        for page in ours {
            memory.write_page(page, &[1; PAGE_SIZE]).unwrap();
        }
        let harvest = bench.machine.harvest_dirty().unwrap();
        assert_eq!(numbers(&harvest), ours.map(|page| page.0));
        assert!(bench.machine.harvest_dirty().unwrap().is_empty());
    });
}

/// Propolis #232 and #387: reading KVM's log clears it, so what a failed transaction took was lost.
#[test]
fn propolis_387_the_pages_of_a_failed_transaction_come_again() {
    in_every_way(|tracking| {
        let mut bench = tracked_painter(tracking);
        paint_again(&mut bench);
        bench.machine.pause().unwrap();
        let failed = bench.machine.harvest_dirty().unwrap();
        let memory = bench.machine.memory();
        memory.write_page(PageIndex(9), &[1; PAGE_SIZE]).unwrap();
        bench.machine.mark_dirty(&failed);
        let next = bench.machine.harvest_dirty().unwrap();
        assert_eq!(numbers(&next), [vec![9], painted()].concat());
        assert!(bench.machine.harvest_dirty().unwrap().is_empty());
    });
}

#[test]
fn memory_above_the_hole_is_tracked_too() {
    in_every_way(|tracking| {
        let mut bench = booted(guests::painter(), 3080, tracking);
        bench.machine.start_dirty_tracking().unwrap();
        arm_everything(&mut bench);
        bench.machine.resume();
        bench.console.wait_for(1);
        bench.machine.pause().unwrap();
        let memory = bench.machine.memory();
        let last = PageIndex(memory.page_count() - 1);
        memory.write_page(last, &[1; PAGE_SIZE]).unwrap();
        let harvest = bench.machine.harvest_dirty().unwrap();
        assert!(harvest.contains(last));
        assert!(
            painted()
                .into_iter()
                .all(|page| harvest.contains(PageIndex(page)))
        );
    });
}

#[test]
fn nothing_is_harvested_without_tracking() {
    in_every_way(|tracking| {
        let mut bench = booted(guests::painter(), 16, tracking);
        assert!(matches!(
            bench.machine.harvest_dirty(),
            Err(DirtyLogError::NotTracking)
        ));
        bench.machine.start_dirty_tracking().unwrap();
        arm_everything(&mut bench);
        assert!(bench.machine.harvest_dirty().unwrap().is_empty());
        bench.machine.stop_dirty_tracking().unwrap();
        assert!(bench.machine.harvest_dirty().is_err());
    });
}

/// Copying only harvested pages keeps a second memory equal to the first.
#[test]
fn harvested_pages_are_enough_to_follow_a_guest() {
    in_every_way(|tracking| {
        let mut bench = booted(guests::counter(), 16, tracking);
        let follower = Bench::empty();
        bench.machine.start_dirty_tracking().unwrap();
        arm_everything(&mut bench);
        common::copy_memory(&bench.machine, &follower.machine);
        let (from, to) = (bench.machine.memory(), follower.machine.memory());
        let mut page = [0; PAGE_SIZE];
        for round in 1..=30 {
            bench.machine.resume();
            bench.console.wait_for(round * 50);
            bench.machine.pause().unwrap();
            bench.machine.save().unwrap();
            for index in bench.machine.harvest_dirty().unwrap().iter() {
                from.read_page(index, &mut page).unwrap();
                to.write_page(index, &page).unwrap();
            }
            let mut other = [0; PAGE_SIZE];
            for index in (0..from.page_count()).map(PageIndex) {
                from.read_page(index, &mut page).unwrap();
                to.read_page(index, &mut other).unwrap();
                assert!(page == other, "page {} differs in round {round}", index.0);
            }
        }
    });
}

/// Starting anew, without an end in between or with one, leaves nothing out.
#[test]
fn tracking_can_be_started_again() {
    in_every_way(|tracking| {
        let mut bench = tracked_painter(tracking);
        for ends in [false, true] {
            if ends {
                bench.machine.stop_dirty_tracking().unwrap();
            }
            bench.machine.start_dirty_tracking().unwrap();
            arm_everything(&mut bench);
            paint_again(&mut bench);
            bench.machine.pause().unwrap();
            let first = bench.machine.harvest_dirty().unwrap();
            // A page that is only read may be among them: where the CPU has nested page tables, KVM
            // maps it writable at its first use and counts it as written.
            assert!(
                painted()
                    .iter()
                    .all(|page| first.contains(PageIndex(*page)))
            );
            paint_again(&mut bench);
            bench.machine.pause().unwrap();
            let second = bench.machine.harvest_dirty().unwrap();
            assert_eq!(numbers(&second), painted(), "ends: {ends}");
        }
    });
}

/// Who does not arm what is copied gets too much, once, and never too little.
#[test]
fn pages_that_are_not_armed_are_in_the_first_harvest_at_most() {
    in_every_way(|tracking| {
        let mut bench = booted(guests::painter(), 16, tracking);
        bench.machine.resume();
        bench.console.wait_for(1);
        bench.machine.start_dirty_tracking().unwrap();
        bench.machine.arm_dirty_tracking(0..100).unwrap();
        bench.machine.pause().unwrap();
        let first = bench.machine.harvest_dirty().unwrap();
        if bench.machine.tracking_mode() == TrackingMode::ManualBitmap && !first.is_empty() {
            // The words that the armed pages are in were armed whole.
            assert_eq!(numbers(&first), (128..4096).collect::<Vec<_>>());
        } else {
            assert!(first.is_empty());
        }
        paint_again(&mut bench);
        bench.machine.pause().unwrap();
        assert_eq!(numbers(&bench.machine.harvest_dirty().unwrap()), painted());
    });
}

/// More pages than a dirty ring has entries (65,536): the vCPU leaves with a full ring on the way.
#[test]
fn more_pages_than_a_ring_holds_are_all_harvested() {
    in_every_way(|tracking| {
        // Without a ring there is nothing to fill, and in an emulated machine a page takes a while.
        let count = match tracking {
            DirtyTracking::Ring => 70_000,
            _ => 5_000,
        };
        let mut bench = booted(guests::dirtier(), 512, tracking);
        bench.machine.start_dirty_tracking().unwrap();
        arm_everything(&mut bench);
        let order = guests::dirtier_order(count, 4096);
        let page = PageIndex(guests::DIRTIER_ORDER / PAGE_SIZE as u64);
        bench.machine.memory().write_page(page, &order).unwrap();
        let first = guests::DIRTIER_START / PAGE_SIZE as u64;
        let expected: Vec<u64> = std::iter::once(page.0)
            .chain(first..first + u64::from(count))
            .collect();
        for round in 1..=2 {
            bench.machine.resume();
            assert_eq!(bench.machine.console_input().push(b"x"), 1);
            bench.console.wait_long_for(round);
            bench.machine.pause().unwrap();
            let harvest = bench.machine.harvest_dirty().unwrap();
            let (more, less) = differences(&numbers(&harvest), &expected);
            // In the second round nobody writes the order. In the first, KVM may count the code, too,
            // which it maps writable when it is first read.
            let (most_more, most_less) = if round == 1 { (1, 0) } else { (0, 1) };
            assert!(
                more.len() <= most_more && less.len() <= most_less,
                "round {round}: +{more:?} -{less:?}"
            );
        }
    });
}
