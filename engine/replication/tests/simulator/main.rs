// SPDX-License-Identifier: Apache-2.0
//! The transaction state machines under a deterministic simulator.
//!
//! A seed makes a history: two hosts that run the shipped state machines, glued as the engine glues
//! them, a network with every fault there is, crashes and freezes at every step, clocks of
//! different speed, late timers, arbitration by late views. An outside judges what leaves. The
//! same seed makes the same history, to the last event.
//!
//! `cargo test` lives through a thousand; `make sim` through 100,000 (`SEEDS=`), and
//! `make sim SEED=n` through one and prints what happened. See `docs/testing.md`.
#![forbid(unsafe_code)]

mod agents;
mod engine;
mod env;
mod faults;
mod frames;
mod guest;
mod mutant;
mod network;
mod outside;
mod profile;
mod runner;
mod schedule;
mod world;

use env::{Counts, Trace};
use mutant::Mutant;

/// What `cargo test` lives through.
const SEEDS: u64 = 1000;
/// Within so many seeds every faulty engine is found out.
const MUTANT_SEEDS: u64 = 400;

#[test]
fn no_history_breaks_a_rule() {
    let total = runner::campaign(0..SEEDS, &mut |_, _| ());
    println!("{SEEDS} seeds: {total:?}");
    let Counts {
        commits,
        failovers,
        handovers,
        solos,
        crashes,
        freezes,
        frames_hit,
        broken,
        repeats,
        ..
    } = total;
    // A simulator in which nothing happens proves nothing.
    for (count, what) in [
        (commits, "commits"),
        (failovers, "failovers"),
        (handovers, "handovers"),
        (solos, "solo licences"),
        (crashes, "crashes"),
        (freezes, "freezes"),
        (frames_hit, "frames hit"),
        (broken, "sessions ended by a protocol error"),
        (repeats, "repeated outputs"),
    ] {
        assert!(count > SEEDS / 20, "only {count} {what} in {SEEDS} seeds");
    }
}

#[test]
fn a_seed_makes_the_same_history_twice() {
    for seed in [3, 14, 15] {
        let story = || match world::World::new(seed, None, Trace::Keep(Vec::new())).run() {
            (counts, Trace::Keep(lines)) => (counts, lines),
            (_, other) => panic!("{other:?}"),
        };
        let (first, again) = (story(), story());
        assert!(first.1.len() > 100, "{} lines", first.1.len());
        assert!(first == again, "seed {seed} made two different histories");
    }
}

#[test]
fn every_faulty_engine_is_found_out() {
    for mutant in Mutant::ALL {
        let found = (0..MUTANT_SEEDS).find_map(|seed| {
            let failure = runner::live(seed, Some(mutant), Trace::Off).err()?;
            Some((seed, failure))
        });
        let Some((seed, failure)) = found else {
            panic!("{mutant:?} went unnoticed in {MUTANT_SEEDS} seeds");
        };
        println!("{mutant:?}: seed {seed}: {failure}");
    }
}

/// The VM goes on after the loss of a host with nobody asked; the shipped arbiter's own tests are
/// in `agent/tests/arbitration`.
#[test]
fn trap_8_a_lost_host_is_answered_by_a_failover_without_a_person() {
    let total = runner::campaign(1000..1040, &mut |_, _| ());
    assert!(total.crashes + total.freezes > 20, "{total:?}");
    assert!(total.failovers > 20, "{total:?}");
}

/// Not a test but a program: `make sim`.
#[test]
#[ignore = "run by `make sim`, for as long as SEEDS says"]
fn campaign() {
    runner::from_environment();
}
