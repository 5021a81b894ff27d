// SPDX-License-Identifier: Apache-2.0
//! Measures on this host's KVM how long pausing, saving and restoring take as vCPUs grow:
//! `pause [ROUNDS] [VCPUS...]` (by default 300 rounds with 1, 2, 4 and 8).
//!
//! The guest is a bare one whose CPUs all count without a break and without exits, so a pause has to get
//! every one of them out of the guest.

#[path = "../tests/common/mod.rs"]
mod common;

use std::error::Error;
use std::time::{Duration, Instant};

use common::{Bench, smp_guests};

/// How long the guest runs between two pauses.
const RUN: Duration = Duration::from_millis(2);

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<u32> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let (rounds, vcpus) = match numbers.as_slice() {
        [] => (300, [1, 2, 4, 8].as_slice()),
        [rounds] => (*rounds, [1, 2, 4, 8].as_slice()),
        [rounds, vcpus @ ..] => (*rounds, vcpus),
    };
    println!("microseconds     pause            save             restore");
    println!("vCPUs        median    99 %   median    99 %   median    99 %");
    for count in vcpus {
        measure(*count, rounds)?;
    }
    Ok(())
}

fn measure(vcpus: u32, rounds: u32) -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::booted_smp(smp_guests::smp_counter(), vcpus);
    let mut times = [const { Vec::<Duration>::new() }; 3];
    for _ in 0..rounds.max(1) {
        bench.machine.resume();
        std::thread::sleep(RUN);
        let [pause, save, restore] = &mut times;
        let start = Instant::now();
        bench.machine.pause()?;
        pause.push(start.elapsed());
        let start = Instant::now();
        let state = bench.machine.save()?;
        save.push(start.elapsed());
        let start = Instant::now();
        bench.machine.restore(&state)?;
        restore.push(start.elapsed());
    }
    print!("{vcpus:5}      ");
    for times in &mut times {
        times.sort_unstable();
        let at = |percent: usize| {
            let place = (times.len() * percent / 100).min(times.len() - 1);
            times.get(place).map_or(0, Duration::as_micros)
        };
        print!(" {:7} {:7} ", at(50), at(99));
    }
    println!();
    Ok(())
}
