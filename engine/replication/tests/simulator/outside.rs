// SPDX-License-Identifier: Apache-2.0
//! The outside: it sees what leaves, and knows what never may.
//!
//! It judges by the bytes alone: every output carries its number. The first time each number is
//! seen must be in order, and whatever is seen again must be what was seen before.

use std::collections::BTreeMap;

use kemari_replication::{Epoch, Generation, Output, OutputKind};

use super::guest::RECORD_BYTES;

/// The guest at the end of an epoch, as the active side cut it.
#[derive(Debug, Clone, Copy)]
pub struct CutRecord {
    pub hash: u64,
    pub next_output: u64,
}

/// What an output leaves under.
#[derive(Debug, Clone, Copy)]
pub struct Right {
    pub generation: Generation,
    /// Under a solo licence, which needs no commit.
    pub solo: bool,
}

/// The outside, and what an all-knowing judge writes down of both replicas.
#[derive(Debug, Default)]
pub struct Outside {
    console: Vec<u8>,
    /// What output number n felt.
    seen: Vec<u64>,
    cuts: BTreeMap<(Generation, Epoch), CutRecord>,
    /// How many outputs the newest state holds that the passive side committed in a generation.
    committed: BTreeMap<Generation, u64>,
    /// How many outputs the state held that a generation took over from.
    taken_over: BTreeMap<Generation, u64>,
    pub repeats: u64,
    /// Outputs seen for the first time, in all boots.
    pub fresh: u64,
}

impl Outside {
    /// The VM begins from nothing: nobody has any state of it.
    pub fn reboot(&mut self) {
        self.console.clear();
        self.seen.clear();
        self.taken_over.clear();
    }

    /// How many outputs were seen since the VM's boot.
    pub const fn outputs(&self) -> u64 {
        self.seen.len() as u64
    }

    /// The active side cut an epoch.
    pub fn cut(&mut self, generation: Generation, epoch: Epoch, cut: CutRecord) {
        let again = self.cuts.insert((generation, epoch), cut);
        assert!(
            again.is_none(),
            "epoch {epoch} of {generation} was used twice"
        );
    }

    /// The passive side says it could run from this.
    pub fn holds(&mut self, generation: Generation, epoch: Epoch, hash: u64, newest: Generation) {
        let cut = self.same_as_cut(generation, epoch, hash);
        self.committed.insert(generation, cut.next_output);
        if generation == newest {
            self.not_older_than_seen(cut.next_output, "is promotable");
        }
    }

    /// A replica is about to go on from this checkpoint.
    pub fn takes_over(&self, from: (Generation, Epoch), hash: u64) {
        let cut = self.same_as_cut(from.0, from.1, hash);
        self.not_older_than_seen(cut.next_output, "runs");
    }

    /// A replica runs, with a right of this generation, from a state with so many outputs made.
    pub fn runs(&mut self, generation: Generation, next_output: u64) {
        self.taken_over.insert(generation, next_output);
    }

    fn same_as_cut(&self, generation: Generation, epoch: Epoch, hash: u64) -> CutRecord {
        let cut = self.cuts.get(&(generation, epoch));
        let cut = cut.unwrap_or_else(|| panic!("epoch {epoch} of {generation} was never cut"));
        assert_eq!(
            cut.hash, hash,
            "the passive state of epoch {epoch}, generation {generation}, is not the active one"
        );
        *cut
    }

    fn not_older_than_seen(&self, next_output: u64, what: &str) {
        assert!(
            next_output >= self.outputs(),
            "a replica {what} with {next_output} outputs made, but {} were seen outside",
            self.outputs()
        );
    }

    /// Takes an output, or its beginning if the sink fails in the middle of it.
    pub fn take(&mut self, right: Right, output: &Output, length: usize) {
        self.allowed(right, output);
        match output.kind {
            OutputKind::Console => self.take_console(output.position, &output.bytes[..length]),
            // A packet leaves whole or not at all.
            OutputKind::Network(_) if length < output.bytes.len() => {}
            OutputKind::Network(_) => self.see(&output.bytes[..RECORD_BYTES]),
        }
    }

    fn allowed(&self, right: Right, output: &Output) {
        let whole = output.bytes.len() / RECORD_BYTES * RECORD_BYTES;
        let last = match output.kind {
            OutputKind::Console => whole - RECORD_BYTES,
            OutputKind::Network(_) => 0,
        };
        let (number, _) = record(&output.bytes[last..last + RECORD_BYTES]);
        if !right.solo {
            let committed = self.committed.get(&right.generation).copied();
            assert!(
                committed.is_some_and(|committed| number < committed),
                "output {number} left before it was committed in generation {} ({committed:?})",
                right.generation
            );
        }
        for (newer, base) in self.taken_over.range(right.generation.next()..) {
            assert!(
                number < *base,
                "output {number} of generation {} left, but {newer} runs from {base}",
                right.generation
            );
        }
    }

    fn take_console(&mut self, position: u64, bytes: &[u8]) {
        let position = usize::try_from(position).expect("a short stream");
        let length = self.console.len();
        assert!(
            position <= length,
            "console bytes {length} to {position} were lost"
        );
        let known = bytes.len().min(length - position);
        assert_eq!(
            bytes[..known],
            self.console[position..position + known],
            "console bytes at {position} differ from what was seen before"
        );
        self.repeats += u64::from(known > 0);
        self.console.extend_from_slice(&bytes[known..]);
        let (before, after) = (length / RECORD_BYTES, self.console.len() / RECORD_BYTES);
        for number in before..after {
            let at = number * RECORD_BYTES;
            let bytes = self.console[at..at + RECORD_BYTES].to_vec();
            self.see(&bytes);
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        let (number, felt) = record(bytes);
        let next = self.outputs();
        assert!(
            number <= next,
            "outputs {next} to {number} were lost or overtaken"
        );
        match usize::try_from(number).ok().and_then(|n| self.seen.get(n)) {
            None => {
                self.seen.push(felt);
                self.fresh += 1;
            }
            Some(before) => {
                assert_eq!(*before, felt, "output {number} differs from its first time");
                self.repeats += 1;
            }
        }
    }
}

fn record(bytes: &[u8]) -> (u64, u64) {
    let (words, _) = bytes.as_chunks::<8>();
    (u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]))
}
