// SPDX-License-Identifier: Apache-2.0
//! Guests in files: saved, ended, restored in other processes, judged from outside.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::path::Path;

use kemari_api::replica::Promotion;
use kemari_api::{Licence, Role};
use kemari_cluster_tests::{guests, ledger};

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip, outside};

fn description(console: &str, memory_mib: u32) -> Description<'_> {
    Description {
        memory_mib,
        kernel: guests::ledger(),
        cmdline: "pages=64",
        console,
        replication: "",
        sections: "",
    }
}

fn booted(description: &Description<'_>) -> ReplicaProcess {
    let engine = ReplicaProcess::start("a", description);
    engine.promote(Promotion::ColdStart, 1).unwrap();
    engine
}

#[test]
fn thirty_cycles_of_save_end_and_restore_lose_and_double_nothing() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let description = description(&console, 64);
    let directory = tempfile::tempdir().unwrap();
    let mut engine = booted(&description);
    for cycle in 0..30 {
        observer.wait_for_more(300, PATIENCE).unwrap();
        let snapshot = directory.path().join(format!("{cycle}"));
        let (status, said) = engine.save(&snapshot, &[]);
        assert_eq!(status, Some(0), "{said}{}", engine.log());
        assert_eq!(engine.exit_status(), Some(0));
        let node = if cycle % 2 == 0 { "b" } else { "a" };
        engine = ReplicaProcess::restore(node, &description, &snapshot);
        let status = engine.wait("the restored guest runs", |status| status.running);
        assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
        std::fs::remove_file(&snapshot).unwrap();
    }
    observer.wait_for_more(300, PATIENCE).unwrap();
    assert_eq!(observer.violations(), []);
    println!("{:?}", ledger::check(&observer.bytes()).unwrap());
}

#[test]
fn a_saved_guest_that_goes_on_is_not_disturbed() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let description = description(&console, 64);
    let directory = tempfile::tempdir().unwrap();
    let engine = booted(&description);
    observer.wait_for_more(300, PATIENCE).unwrap();
    let snapshot = directory.path().join("snapshot");
    let (status, said) = engine.save(&snapshot, &["--continue"]);
    assert_eq!(status, Some(0), "{said}");
    observer.wait_for_more(300, PATIENCE).unwrap();
    let (status, said) = engine.save(&snapshot, &["--continue"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("exists already"), "{said}");
    assert_eq!(observer.violations(), []);
    ledger::check(&observer.bytes()).unwrap();
}

/// What `snapshot restore` says when it fails.
fn refusal(description: &Description<'_>, snapshot: &Path) -> String {
    let panic = std::panic::catch_unwind(|| {
        drop(ReplicaProcess::restore("b", description, snapshot));
    });
    let text = panic.expect_err("the restore must be refused");
    text.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn a_snapshot_of_another_machine_a_cut_and_a_damaged_one_are_refused() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let directory = tempfile::tempdir().unwrap();
    let engine = booted(&description(&console, 64));
    observer.wait_for_more(300, PATIENCE).unwrap();
    let snapshot = directory.path().join("snapshot");
    engine.save(&snapshot, &["--continue"]);
    let said = refusal(&description(&console, 65), &snapshot);
    assert!(said.contains("64 MiB"), "{said}");

    let whole = std::fs::read(&snapshot).unwrap();
    std::fs::write(&snapshot, &whole[..whole.len() - 100]).unwrap();
    let said = refusal(&description(&console, 64), &snapshot);
    assert!(said.contains("Cannot restore the snapshot"), "{said}");

    let mut damaged = whole;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&snapshot, &damaged).unwrap();
    let said = refusal(&description(&console, 64), &snapshot);
    assert!(said.contains("Cannot restore the snapshot"), "{said}");

    let said = refusal(&description(&console, 64), Path::new("/nonexistent"));
    assert!(said.contains("/nonexistent"), "{said}");
}
