// SPDX-License-Identifier: Apache-2.0
//! `hash_epochs`: what the passive replica holds after each commit is what the active one was at the cut, all memory and all state.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::collections::BTreeMap;

use kemari_api::replica::Promotion;
use kemari_cluster_tests::guests;

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip, outside};

/// An epoch's generation and number, as the log has them.
type Epoch = (u64, u64);

/// Epochs that both must have hashed before a comparison says something.
const EPOCHS: usize = 40;

/// What a log says of each epoch: the hashes as they stand there.
fn hashes(log: &str) -> BTreeMap<Epoch, String> {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        rest.split(' ').next().map(str::to_owned)
    };
    log.lines()
        .filter(|line| line.contains("epoch hashed"))
        .map(|line| {
            let number = |name| field(line, name).unwrap().parse().unwrap();
            let epoch = (number("generation"), number("epoch"));
            let memory = field(line, "memory").unwrap();
            let state = field(line, "state").unwrap();
            (epoch, format!("memory {memory} state {state}"))
        })
        .collect()
}

/// Compares what both sides have hashed; gives how many epochs that were, and in how many ways memory looked.
fn compare(active: &str, passive: &str) -> (usize, usize) {
    let (cut, held) = (hashes(active), hashes(passive));
    let mut both = 0;
    let mut looks: Vec<&str> = Vec::new();
    for (epoch, hash) in &held {
        // A log is read while its engine writes on: a last line may be missing on one side.
        let Some(at_cut) = cut.get(epoch) else {
            continue;
        };
        assert_eq!(hash, at_cut, "epoch {epoch:?}");
        both += 1;
        looks.push(hash);
    }
    looks.sort_unstable();
    looks.dedup();
    (both, looks.len())
}

/// Epoch by epoch, over a failover and the new pair after it.
fn equal_in_each_epoch(compression: &str) {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let replication = format!("hash_epochs = true\ncompression = {compression:?}");
    let description = Description {
        memory_mib: 64,
        kernel: guests::ledger(),
        cmdline: "pages=48 interval=500",
        console: &console,
        replication: &replication,
        sections: "",
    };
    let mut active = ReplicaProcess::start("a", &description);
    active.promote(Promotion::ColdStart, 1).unwrap();
    for (generation, node) in [(2, "b"), (3, "c")] {
        let passive = ReplicaProcess::start(node, &description);
        active.protect(&passive);
        let (mut epochs, mut looks) = (0, 0);
        while epochs < EPOCHS {
            observer.wait_for_more(200, PATIENCE).unwrap();
            (epochs, looks) = compare(&active.log(), &passive.log());
        }
        println!("{compression}: {epochs} epochs were equal, {looks} of them different");
        // Hashes that are always the same would say nothing.
        assert!(looks > epochs / 2, "{looks} of {epochs}");
        active.kill();
        passive.wait("the loss noticed", |status| status.detail.contains("lost"));
        passive.promote(Promotion::TakeOver, generation).unwrap();
        observer.wait_for_more(200, PATIENCE).unwrap();
        active = passive;
    }
    assert_eq!(observer.violations(), []);
}

#[test]
fn pages_as_they_are() {
    equal_in_each_epoch("off");
}

#[test]
fn pages_as_differences() {
    equal_in_each_epoch("delta");
}

#[test]
fn pages_compressed() {
    equal_in_each_epoch("lz4");
}
