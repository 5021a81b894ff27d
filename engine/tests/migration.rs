// SPDX-License-Identifier: Apache-2.0
//! Guests that move between engines while they run, judged from outside.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use kemari_api::replica::Promotion;
use kemari_api::{Licence, Role};
use kemari_cluster_tests::{guests, ledger};

use replica_process::{Description, PATIENCE, ReplicaProcess, free_port, kvm_or_skip, outside};

fn description(console: &str) -> Description<'_> {
    Description {
        memory_mib: 64,
        kernel: guests::ledger(),
        cmdline: "pages=64",
        console,
        replication: "",
        sections: "",
    }
}

#[test]
fn a_guest_moves_there_and_back_and_nothing_is_lost_or_done_twice() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let description = description(&console);
    let mut here = ReplicaProcess::start("a", &description);
    here.promote(Promotion::ColdStart, 1).unwrap();
    for round in 0..6 {
        observer.wait_for_more(500, PATIENCE).unwrap();
        let node = if round % 2 == 0 { "b" } else { "a" };
        let there = ReplicaProcess::start_for_migration(node, &description);
        let said = here.monitor(&format!("migrate {}", there.address)).unwrap();
        println!("{said}");
        assert!(said.starts_with("migrated in "), "{said}");
        let status = there.wait("the migrated guest runs", |status| status.running);
        assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
        assert_eq!(here.exit_status(), Some(0));
        here = there;
    }
    observer.wait_for_more(500, PATIENCE).unwrap();
    assert_eq!(observer.violations(), []);
    println!("{:?}", ledger::check(&observer.bytes()).unwrap());
}

#[test]
fn replication_and_migration_are_not_mistaken_for_each_other() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let description = description(&console);
    let active = ReplicaProcess::start("a", &description);
    active.promote(Promotion::ColdStart, 1).unwrap();
    observer.wait_for_more(300, PATIENCE).unwrap();

    let replica = ReplicaProcess::start("b", &description);
    let address = replica.address.replace("kemari:", "");
    let told = active.monitor(&format!("migrate {address}")).unwrap_err();
    assert!(
        told.to_string().contains("it waits for replication"),
        "{told}"
    );
    drop(replica);

    let target = ReplicaProcess::start_for_migration("b", &description);
    let address = format!("kemari:{}", target.address);
    let told = active.monitor(&format!("migrate {address}")).unwrap_err();
    assert!(
        told.to_string().contains("it waits for a migration"),
        "{told}"
    );
    drop(target);

    let nobody = format!("migrate tcp:127.0.0.1:{}", free_port());
    let told = active.monitor(&nobody).unwrap_err();
    assert!(told.to_string().contains("The migration failed"), "{told}");

    // Whatever was tried, the guest goes on where it was.
    observer.wait_for_more(300, PATIENCE).unwrap();
    assert_eq!(active.status().role, Role::Active);
    assert_eq!(observer.violations(), []);
    ledger::check(&observer.bytes()).unwrap();
}
