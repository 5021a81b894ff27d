// SPDX-License-Identifier: Apache-2.0
//! A pair with two links, of which one is cut or falls silent: the guest goes on, the outside sees a
//! complete and ordered console, memory is copied once only, and both sides say which link it is.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

mod relay;
#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use kemari_api::replica::{Promotion, ReplicaStatus};
use kemari_api::{Licence, Role};
use kemari_cluster_tests::observer::Observer;
use kemari_cluster_tests::{guests, ledger};

use relay::Relay;
use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip, outside};

/// Two replicas and two networks between them.
struct Links {
    observer: Observer,
    a: ReplicaProcess,
    b: ReplicaProcess,
    first: Relay,
    second: Relay,
}

impl Links {
    /// `b_lines`: of the passive replica's `[replication]`.
    fn new(b_lines: &str) -> Self {
        let (observer, console) = outside();
        let description = |lines| Description {
            memory_mib: 64,
            kernel: guests::ledger(),
            cmdline: "pages=8",
            console: &console,
            replication: lines,
            sections: "",
        };
        let a = ReplicaProcess::start("a", &description("peer_timeout_ms = 500\n"));
        let b = ReplicaProcess::start_at("b", &description(b_lines), "kemari:tcp:0.0.0.0:PORT");
        let to = b.address.replace("0.0.0.0", "127.0.0.1");
        let (first, second) = (
            Relay::start("127.0.0.1", &to),
            Relay::start("127.0.0.2", &to),
        );
        a.promote(Promotion::ColdStart, 1).unwrap();
        Self {
            observer,
            a,
            b,
            first,
            second,
        }
    }

    fn protect(&self) {
        let addresses = format!("{},{}", self.first.address, self.second.address);
        self.a.migrate(&addresses);
    }

    fn see_more(&self, bytes: usize) {
        self.observer.wait_for_more(bytes, PATIENCE).unwrap();
    }

    /// Waits until the pair is in sync over this link, and outputs leave.
    fn in_sync_over(&self, link: &Relay) -> ReplicaStatus {
        let over = format!("over {}", link.address);
        let status = self.a.wait(&format!("a pair {over}"), |status| {
            status.licence == Licence::Paired && status.in_sync && status.detail.contains(&over)
        });
        self.see_more(500);
        status
    }

    /// `info status` says of this link.
    fn says(&self, link: &Relay, words: &str) {
        let status = self.a.monitor("info status").unwrap();
        let line = format!("link: {} ({words})", link.address);
        assert!(status.contains(&line), "{line}: {status}");
    }

    /// Nothing is missing, nothing was executed twice, and memory was copied once; also after the
    /// passive replica took over what came to it over both links.
    fn judge(mut self) {
        let copies = self.a.log().matches("from=a full copy").count()
            + self.a.log().matches("from=\"a full copy\"").count();
        assert_eq!(copies, 1, "{}", self.a.log());
        self.a.kill();
        self.b
            .wait("the loss noticed", |status| status.detail.contains("lost"));
        self.b.promote(Promotion::TakeOver, 2).unwrap();
        assert_eq!(self.b.status().role, Role::Active);
        self.see_more(500);
        assert_eq!(self.observer.violations(), []);
        let summary = ledger::check(&self.observer.bytes()).unwrap();
        println!("{summary:?}, takeovers {:?}", self.observer.takeovers());
    }
}

#[test]
fn a_pair_goes_on_over_the_next_link_when_one_is_cut_and_back_when_it_returns() {
    if !kvm_or_skip() {
        return;
    }
    let links = Links::new("peer_timeout_ms = 500\n");
    links.protect();
    links.in_sync_over(&links.first);
    links.says(&links.first, "in use");
    links.says(&links.second, "idle");
    links.first.cut();
    let status = links.in_sync_over(&links.second);
    assert!(
        status
            .detail
            .contains(&format!("since {} failed", links.first.address)),
        "{status:?}"
    );
    links.says(&links.first, "failed");
    links.says(&links.second, "in use");
    let log = links.a.log();
    assert!(
        log.contains("the link failed, outputs are held until the next one carries"),
        "{log}"
    );
    assert!(!log.contains("out of reach"), "{log}");
    links.first.open();
    links.in_sync_over(&links.first);
    let log = links.a.log();
    assert!(log.contains("the pair goes back to it"), "{log}");
    links.says(&links.second, "idle");
    // The one that was left is as good as before.
    links.first.cut();
    links.in_sync_over(&links.second);
    links.judge();
}

#[test]
fn a_passive_replica_that_still_waits_on_a_silent_link_takes_the_new_call() {
    if !kvm_or_skip() {
        return;
    }
    // It would notice the silence only after the whole test.
    let links = Links::new("peer_timeout_ms = 60000\n");
    links.protect();
    links.in_sync_over(&links.first);
    links.first.silence();
    links.in_sync_over(&links.second);
    let log = links.b.log();
    assert!(log.contains("has called anew"), "{log}");
    let receiving = links.b.status();
    assert!(
        receiving.detail.contains("receiving from a at 127.0.0.1:"),
        "{receiving:?}"
    );
    links.second.cut();
    links.first.open();
    links.in_sync_over(&links.first);
    links.judge();
}

#[test]
fn with_every_link_cut_outputs_are_held_until_one_returns() {
    if !kvm_or_skip() {
        return;
    }
    let links = Links::new("peer_timeout_ms = 500\n");
    links.protect();
    links.in_sync_over(&links.first);
    links.second.cut();
    links.first.cut();
    links.a.wait("the cut noticed", |status| {
        status.licence == Licence::Cut && links.a.log().contains("is out of reach")
    });
    links.second.open();
    links.in_sync_over(&links.second);
    assert_eq!(
        links.a.log().matches("is out of reach").count(),
        1,
        "{}",
        links.a.log()
    );
    links.judge();
}

#[test]
fn a_pair_begins_over_the_second_link_when_the_first_leads_nowhere() {
    if !kvm_or_skip() {
        return;
    }
    let links = Links::new("peer_timeout_ms = 500\n");
    links.first.silence();
    links.protect();
    links.in_sync_over(&links.second);
    links.says(&links.first, "failed");
    links.judge();
}
