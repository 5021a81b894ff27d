// SPDX-License-Identifier: Apache-2.0
//! Tracking changed pages on real KVM.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::{Bench, guests};
use kemari_vmm::{DirtyLogError, DirtyPages, PAGE_SIZE, PageIndex};

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

/// A painter that has painted once, is paused, and whose pages are being tracked.
fn tracked_painter() -> Bench {
    let mut bench = Bench::booted(guests::painter(), "");
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
    needs_kvm!();
    let mut bench = tracked_painter();
    for _ in 0..10 {
        paint_again(&mut bench);
        bench.machine.pause().unwrap();
        let harvest = bench.machine.harvest_dirty().unwrap();
        assert_eq!(numbers(&harvest), painted());
        assert!(bench.machine.harvest_dirty().unwrap().is_empty());
    }
}

#[test]
fn saving_state_dirties_nothing_after_the_harvest() {
    needs_kvm!();
    let mut bench = tracked_painter();
    paint_again(&mut bench);
    bench.machine.pause().unwrap();
    bench.machine.save().unwrap();
    let first = bench.machine.harvest_dirty().unwrap();
    bench.machine.save().unwrap();
    assert_eq!(numbers(&first), painted());
    assert!(bench.machine.harvest_dirty().unwrap().is_empty());
}

#[test]
fn harvests_of_a_running_guest_lose_nothing() {
    needs_kvm!();
    let mut bench = tracked_painter();
    let mut seen = DirtyPages::none(bench.machine.memory().page_count());
    paint_again(&mut bench);
    for _ in 0..50 {
        seen.union(&bench.machine.harvest_dirty().unwrap());
    }
    bench.machine.pause().unwrap();
    seen.union(&bench.machine.harvest_dirty().unwrap());
    assert_eq!(numbers(&seen), painted());
}

/// Cloud Hypervisor #2458: pages written by the VMM were not tracked, because KVM does not see them.
#[test]
fn cloud_hypervisor_2458_our_own_writes_are_harvested() {
    needs_kvm!();
    let mut bench = tracked_painter();
    let memory = bench.machine.memory();
    let ours = [PageIndex(7), PageIndex(63), PageIndex(64), PageIndex(4095)];
    for page in ours {
        memory.write_page(page, &[1; PAGE_SIZE]).unwrap();
    }
    let harvest = bench.machine.harvest_dirty().unwrap();
    assert_eq!(numbers(&harvest), ours.map(|page| page.0));
    assert!(bench.machine.harvest_dirty().unwrap().is_empty());
}

/// Propolis #232 and #387: reading KVM's log clears it, so what a failed transaction took was lost.
#[test]
fn propolis_387_the_pages_of_a_failed_transaction_come_again() {
    needs_kvm!();
    let mut bench = tracked_painter();
    paint_again(&mut bench);
    bench.machine.pause().unwrap();
    let failed = bench.machine.harvest_dirty().unwrap();
    let memory = bench.machine.memory();
    memory.write_page(PageIndex(9), &[1; PAGE_SIZE]).unwrap();
    bench.machine.mark_dirty(&failed);
    let next = bench.machine.harvest_dirty().unwrap();
    assert_eq!(numbers(&next), [vec![9], painted()].concat());
    assert!(bench.machine.harvest_dirty().unwrap().is_empty());
}

#[test]
fn memory_above_the_hole_is_tracked_too() {
    needs_kvm!();
    let kernel = guests::write_elf(guests::painter());
    let mut bench = Bench::with_memory(kernel.path(), "", 3080);
    bench.machine.boot().unwrap();
    bench.machine.start_dirty_tracking().unwrap();
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
}

#[test]
fn nothing_is_harvested_without_tracking() {
    needs_kvm!();
    let mut bench = Bench::empty();
    assert!(matches!(
        bench.machine.harvest_dirty(),
        Err(DirtyLogError::NotTracking)
    ));
    bench.machine.start_dirty_tracking().unwrap();
    assert!(bench.machine.harvest_dirty().unwrap().is_empty());
    bench.machine.stop_dirty_tracking().unwrap();
    assert!(bench.machine.harvest_dirty().is_err());
}

/// Copying only harvested pages keeps a second memory equal to the first.
#[test]
fn harvested_pages_are_enough_to_follow_a_guest() {
    needs_kvm!();
    let mut bench = Bench::booted(guests::counter(), "");
    let follower = Bench::empty();
    bench.machine.start_dirty_tracking().unwrap();
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
}
