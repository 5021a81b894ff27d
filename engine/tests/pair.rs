// SPDX-License-Identifier: Apache-2.0
//! Two engine processes on this machine's `/dev/kvm` with a bare guest, judged from outside: what
//! the observer of the console saw is complete, in order, and nothing was executed twice.

mod replica_process;

use std::net::TcpListener;

use kemari_api::replica::Promotion;
use kemari_api::{Licence, Role};
use kemari_cluster_tests::observer::Observer;
use kemari_cluster_tests::{guests, ledger};
use replica_process::{Description, PATIENCE, ReplicaProcess};

/// The outside, and the descriptions of a VM whose console goes there.
struct Outside {
    observer: Observer,
    console: String,
}

impl Outside {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let console = format!("tcp:{}", listener.local_addr().unwrap());
        Self {
            observer: Observer::over(listener).unwrap(),
            console,
        }
    }

    fn replica(&self, node: &str, cmdline: &str) -> ReplicaProcess {
        let description = Description {
            memory_mib: 64,
            kernel: guests::ledger(),
            cmdline,
            console: &self.console,
            replication: "",
        };
        ReplicaProcess::start(node, &description)
    }

    /// Waits until this many more bytes were seen.
    fn see_more(&self, bytes: usize) {
        self.observer.wait_for_more(bytes, PATIENCE).unwrap();
    }

    /// Nothing is missing, nothing was executed twice.
    fn judge(&self) {
        assert_eq!(self.observer.violations(), []);
        let bytes = self.observer.bytes();
        let summary = ledger::check(&bytes).unwrap();
        println!("{summary:?}, takeovers {:?}", self.observer.takeovers());
    }
}

fn kvm_or_skip() -> bool {
    let usable = kemari_vmm::kvm_is_usable();
    if !usable {
        println!("SKIPPED: /dev/kvm cannot be opened on this machine");
    }
    usable
}

#[test]
fn a_killed_active_replica_is_continued_by_the_passive_one() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let mut active = outside.replica("a", "pages=16");
    active.promote(Promotion::ColdStart, 1).unwrap();
    outside.see_more(2_000);
    let mut generation = 1;
    for round in 0..10 {
        let passive = outside.replica(if round % 2 == 0 { "b" } else { "a" }, "pages=16");
        active.protect(&passive);
        outside.see_more(1_000);
        active.kill();
        generation += 1;
        passive.wait("the loss noticed", |status| status.detail.contains("lost"));
        passive.promote(Promotion::TakeOver, generation).unwrap();
        let status = passive.status();
        assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
        outside.see_more(500);
        active = passive;
    }
    outside.judge();
    assert_eq!(outside.observer.takeovers().len(), 10);
}

#[test]
fn a_demoted_replica_hands_over_without_loss_and_can_come_back() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "");
    let b = outside.replica("b", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    let mut pair = [&a, &b];
    for generation in 2..8 {
        let [active, passive] = pair;
        active.protect(passive);
        outside.see_more(300);
        active.demote().unwrap();
        assert_eq!(active.status().role, Role::Waiting);
        passive.promote(Promotion::TakeOver, generation).unwrap();
        outside.see_more(300);
        pair = [passive, active];
    }
    outside.judge();
}
