// SPDX-License-Identifier: Apache-2.0
//! Runs a fuzz target without a fuzzer: on kept inputs, and on a bounded number of random ones.
//!
//! Included by the tests of the crates that have targets. The random inputs are the same each time.
//! `KEMARI_FUZZ_ITERATIONS` makes more of them, `KEMARI_FUZZ_SEED` others.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

const ITERATIONS: u64 = 2000;
const INPUT_BYTES_MAX: usize = 4096;

/// Runs `target` on every file of the directories, and on random changes of them.
pub fn replay(target: fn(&[u8]), directories: &[PathBuf]) {
    let mut inputs: Vec<Vec<u8>> = Vec::new();
    for file in directories.iter().flat_map(|directory| files(directory)) {
        let input = fs::read(&file).unwrap();
        run(target, &input, &file.display().to_string());
        inputs.push(input);
    }
    inputs.push(Vec::new());
    let mut random = Random(setting("KEMARI_FUZZ_SEED", 1));
    for iteration in 0..setting("KEMARI_FUZZ_ITERATIONS", ITERATIONS) {
        let input = random.input(&inputs);
        run(target, &input, &format!("random input {iteration}"));
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn files(directory: &Path) -> Vec<PathBuf> {
    // No directory: nothing was kept.
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn run(target: fn(&[u8]), input: &[u8], name: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let path = std::env::temp_dir().join("kemari-fuzz-failure");
        fs::write(&path, input).unwrap();
        eprintln!("Failed on {name}; the input is kept in {}", path.display());
        resume_unwind(panic);
    }
}

/// A generator of 64 bits (xorshift64*, Vigna 2014); good enough for this.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).unwrap();
        usize::try_from((self.next() >> 16) % limit).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    /// All random, or one of the inputs with a few changes.
    fn input(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        if input.is_empty() {
            let length = self.below(400);
            return (0..length).map(|_| self.byte()).collect();
        }
        for _ in 0..=self.below(6) {
            self.change(&mut input, inputs);
        }
        input.truncate(input.len().min(INPUT_BYTES_MAX.max(inputs[0].len())));
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        const NUMBERS: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, 0x10, 0x40];
        let at = self.below(input.len() + 1);
        let end = (at + 1 + self.below(16)).min(input.len());
        match self.below(7) {
            0 if at < input.len() => input[at] = self.byte(),
            1 if at < input.len() => input[at] ^= 1 << self.below(8),
            2 if at < input.len() => input[at..end].fill(NUMBERS[self.below(NUMBERS.len())]),
            3 => {
                input.drain(at.min(end)..end);
            }
            4 => {
                let fresh: Vec<u8> = (0..=self.below(12)).map(|_| self.byte()).collect();
                input.splice(at..at, fresh);
            }
            5 => {
                let copy = input[at.min(end)..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            _ => {
                let other = &inputs[self.below(inputs.len())];
                let from = self.below(other.len() + 1);
                let to = (from + self.below(32)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
}
