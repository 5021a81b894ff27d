// SPDX-License-Identifier: Apache-2.0
//! The least a copying checkpoint can cost: one copy of the pages that were written.

use std::time::{Duration, Instant};

use super::quantiles::Quantiles;

const PAGE: usize = 4096;

/// How long it takes to copy so many pages of a guest's memory, which lie side by side there as the test guest's do, into a buffer
/// that was used before.
pub fn measure(pages: usize, rounds: usize) -> Option<Quantiles> {
    // Different bytes everywhere: memory that was never written to is one page of zeroes in the cache.
    let memory: Vec<u8> = (0..pages * PAGE).map(|at| at.to_le_bytes()[1]).collect();
    let mut copy = vec![1; pages * PAGE];
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        for (from, to) in memory.chunks_exact(PAGE).zip(copy.chunks_exact_mut(PAGE)) {
            to.copy_from_slice(std::hint::black_box(from));
        }
        std::hint::black_box(&mut copy);
        times.push(begun.elapsed());
        // As between two checkpoints: others have used the cache meanwhile.
        std::thread::sleep(Duration::from_millis(5));
    }
    Quantiles::of(times)
}
