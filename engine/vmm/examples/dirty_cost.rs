// SPDX-License-Identifier: Apache-2.0
//! What tracking dirty pages costs on this host: `dirty_cost` prints, for each way of tracking that is
//! safe here, for 256 MiB and for 4 GiB of sparse memory, what starting costs, and what a harvest
//! costs when the guest dirtied 0, 1,000 and 10,000 pages. Beside it the cost of copying as many pages
//! out of guest memory, to compare figures of different machines by.
//!
//! Times are of the controller's thread, with the guest paused, median and 99th percentile of all
//! rounds.
#![allow(
    clippy::unwrap_used,
    reason = "a measurement ends at the first failure"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::{Bench, guests};
use kemari_vmm::{DirtyTracking, HugePages, PAGE_SIZE, PageIndex, kvm_is_usable};

const ROUNDS: usize = 50;
const STARTS: usize = 20;
/// Pages that the engine's initial copy arms at once.
const ARMED_AT_ONCE: u64 = 256;

/// Durations of one step over all rounds.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn add<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = step();
        self.0.push(start.elapsed());
        result
    }

    fn show(&mut self) -> String {
        self.0.sort_unstable();
        let at = |percent: usize| {
            let index = (self.0.len() * percent / 100).min(self.0.len() - 1);
            self.0[index].as_secs_f64() * 1e6
        };
        format!("{:9.1} {:9.1}", at(50), at(99))
    }
}

fn main() {
    if !kvm_is_usable() {
        println!("SKIPPED: /dev/kvm is missing or may not be opened");
        return;
    }
    println!("all times in µs                                  median      99 %");
    for tracking in common::safe_trackings() {
        // In the large memory the dirty pages lie apart, one in 256 KiB.
        for (mib, stride) in [(256, 4096), (4096, 64 * 4096)] {
            measure(tracking, mib, stride);
        }
    }
}

fn measure(tracking: DirtyTracking, mib: u32, stride: u32) {
    let label = |what: &str| format!("{tracking:?}, {mib} MiB: {what}");
    let mut bench = dirtier(tracking, mib);
    dirty_pages(&mut bench, 10_000, stride);
    bench.machine.pause().unwrap();

    let (mut start, mut arm, mut stop) = (Times::default(), Times::default(), Times::default());
    for _ in 0..STARTS {
        start.add(|| bench.machine.start_dirty_tracking().unwrap());
        arm_everything(&mut bench, &mut arm);
        stop.add(|| bench.machine.stop_dirty_tracking().unwrap());
    }
    print(&label("start"), &mut start);
    print(&label("arm 256 pages"), &mut arm);
    print(&label("stop"), &mut stop);

    bench.machine.start_dirty_tracking().unwrap();
    arm_everything(&mut bench, &mut Times::default());
    for pages in [0, 1_000, 10_000] {
        let (mut harvest, mut copy) = (Times::default(), Times::default());
        for _ in 0..ROUNDS {
            dirty_pages(&mut bench, pages, stride);
            bench.machine.pause().unwrap();
            let dirty = harvest.add(|| bench.machine.harvest_dirty().unwrap());
            assert!(dirty.len() >= usize::try_from(pages).unwrap());
            copy.add(|| copy_pages(&bench, pages, stride));
        }
        print(&label(&format!("harvest {pages}")), &mut harvest);
        print(&label(&format!("copy {pages} pages")), &mut copy);
    }
}

fn print(what: &str, times: &mut Times) {
    println!("{what:44} {}", times.show());
}

fn dirtier(tracking: DirtyTracking, mib: u32) -> Bench {
    let kernel = guests::write_elf(guests::dirtier());
    let mut config = common::config(kernel.path(), "", mib);
    config.dirty_tracking = tracking;
    // So that pages that lie apart take no more memory than they have.
    config.memory_options.huge_pages = HugePages::Off;
    let mut bench = Bench::with_config(config);
    bench.machine.boot().unwrap();
    bench
}

/// Has the guest write to that many pages.
fn dirty_pages(bench: &mut Bench, count: u32, stride: u32) {
    if count == 0 {
        return;
    }
    let memory = bench.machine.memory();
    let page = PageIndex(guests::DIRTIER_ORDER / PAGE_SIZE as u64);
    let order = guests::dirtier_order(count, stride);
    memory.write_page(page, &order).unwrap();
    let before = bench.console.len();
    bench.machine.resume();
    assert_eq!(bench.machine.console_input().push(b"x"), 1);
    bench.console.wait_for(before + 1);
}

fn arm_everything(bench: &mut Bench, times: &mut Times) {
    let page_count = bench.machine.memory().page_count();
    for first in (0..page_count).step_by(usize::try_from(ARMED_AT_ONCE).unwrap()) {
        let pages = first..first + ARMED_AT_ONCE;
        times.add(|| bench.machine.arm_dirty_tracking(pages).unwrap());
    }
}

fn copy_pages(bench: &Bench, count: u32, stride: u32) {
    let memory = bench.machine.memory();
    let mut page = [0; PAGE_SIZE];
    for number in 0..u64::from(count) {
        let address = guests::DIRTIER_START + number * u64::from(stride);
        memory
            .read_page(PageIndex(address / PAGE_SIZE as u64), &mut page)
            .unwrap();
        std::hint::black_box(&page);
    }
}
