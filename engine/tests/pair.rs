// SPDX-License-Identifier: Apache-2.0
//! Two engine processes on this machine's `/dev/kvm` with a bare guest, judged from outside: what
//! the observer of the console saw is complete, in order, and nothing was executed twice.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

mod cutter;
#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;

use kemari_api::replica::Promotion;
use kemari_api::{Licence, Role};
use kemari_cluster_tests::observer::Observer;
use kemari_cluster_tests::{guests, ledger};
use nix::sys::signal::Signal;

use cutter::Cutter;
use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip};

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
        ReplicaProcess::start(node, &self.description(cmdline))
    }

    fn description<'a>(&'a self, cmdline: &'a str) -> Description<'a> {
        Description {
            memory_mib: 64,
            kernel: guests::ledger(),
            cmdline,
            console: &self.console,
            replication: "",
            sections: "",
        }
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

#[test]
fn a_frozen_active_replica_that_was_replaced_is_refused_and_stops() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "");
    let b = outside.replica("b", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    outside.see_more(500);
    a.signal(Signal::SIGSTOP);
    b.wait("the silence noticed", |status| {
        status.detail.contains("lost")
    });
    b.promote(Promotion::TakeOver, 2).unwrap();
    outside.see_more(500);
    a.signal(Signal::SIGCONT);
    // No agent tells it: the other replica itself does, when it is asked to pair again.
    let status = a.wait("the old one outdated", |status| {
        status.role == Role::Outdated
    });
    assert_eq!(
        (status.licence, status.generation.get()),
        (Licence::None, 2)
    );
    let refused = a.promote(Promotion::TakeOver, 3).unwrap_err().to_string();
    assert!(refused.contains("outdated"), "{refused}");
    outside.see_more(500);
    outside.judge();
}

#[test]
fn a_lost_link_holds_outputs_and_a_returned_one_goes_on_without_a_copy() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "pages=8");
    let b = outside.replica("b", "pages=8");
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    outside.see_more(500);
    b.signal(Signal::SIGSTOP);
    a.wait("the cut noticed", |status| status.licence == Licence::Cut);
    // Two replicas with a state of one generation: one of them would be too old to run from.
    let c = outside.replica("c", "pages=8");
    let other = a
        .monitor(&format!("migrate -d {}", c.address))
        .unwrap_err()
        .to_string();
    assert!(other.contains("stop that one first"), "{other}");
    b.signal(Signal::SIGCONT);
    a.wait("the pair again", |status| {
        status.licence == Licence::Paired && status.in_sync
    });
    assert!(
        a.log().contains("from=epoch"),
        "it went on from what was held:\n{}",
        a.log()
    );
    outside.see_more(500);
    outside.judge();
}

#[test]
fn an_active_replica_goes_solo_only_with_a_newer_generation() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "");
    let mut b = outside.replica("b", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    let refused = a.go_solo(1).unwrap_err().to_string();
    assert!(refused.contains("not newer"), "{refused}");
    b.kill();
    a.wait("the cut noticed", |status| status.licence == Licence::Cut);
    a.go_solo(2).unwrap();
    assert_eq!(a.status().licence, Licence::Solo);
    outside.see_more(500);
    outside.judge();
}

#[test]
fn an_active_replica_that_is_told_to_go_solo_leaves_its_pair() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "");
    let b = outside.replica("b", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    a.go_solo(2).unwrap();
    assert_eq!(a.status().licence, Licence::Solo);
    b.wait("the end of the pair", |status| {
        status.detail.contains("lost")
    });
    outside.see_more(500);
    a.protect(&b);
    assert_eq!(b.status().generation, a.status().generation);
    outside.see_more(500);
    outside.judge();
}

#[test]
fn a_replica_told_of_a_newer_generation_never_runs_from_what_it_had() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "");
    let b = outside.replica("b", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    b.wait("in sync", |status| status.in_sync);
    b.outdate(5).unwrap();
    let refused = b.promote(Promotion::TakeOver, 6).unwrap_err().to_string();
    assert!(refused.contains("not in sync"), "{refused}");
    a.outdate(5).unwrap();
    assert_eq!(a.status().role, Role::Outdated);
    outside.judge();
}

#[test]
fn a_connection_cut_anywhere_leaves_the_passive_replica_promotable_or_not_in_sync() {
    if !kvm_or_skip() {
        return;
    }
    // The copy of 64 MiB of mostly zero pages is about 200 KiB; then checkpoints follow.
    for bytes in [
        40, 1_000, 150_000, 260_000, 300_001, 340_003, 380_007, 500_011,
    ] {
        let outside = Outside::new();
        let a = outside.replica("a", "pages=4");
        let b = outside.replica("b", "pages=4");
        a.promote(Promotion::ColdStart, 1).unwrap();
        outside.see_more(300);
        let cutter = Cutter::start(&b.address, bytes);
        a.migrate(&cutter.address);
        cutter.wait_cut();
        b.wait("the cut noticed", |_| b.log().contains("connection ended"));
        let taken_over = b.promote(Promotion::TakeOver, 2);
        println!(
            "cut after {bytes} bytes: {taken_over:?} from epoch {}",
            b.status().epoch
        );
        if let Err(refused) = taken_over {
            assert!(refused.to_string().contains("not in sync"), "{refused}");
            let noticed = |text: &str| text.contains("held") || text.contains("not replicating");
            let status = a.wait("the cut noticed", |status| noticed(&status.detail));
            if status.licence == Licence::Cut {
                // The first commit was on its way: only arbitration knows that it never arrived.
                a.go_solo(2).unwrap();
            }
        }
        outside.see_more(300);
        outside.judge();
    }
}

#[test]
fn replicas_that_differ_refuse_each_other_and_say_why() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let a = outside.replica("a", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    let larger = Description {
        memory_mib: 128,
        ..outside.description("")
    };
    let b = ReplicaProcess::start("b", &larger);
    let refused = a
        .monitor(&format!("migrate {}", b.address))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("Memory: 128 MiB") && refused.contains("128"),
        "{refused}"
    );
    let other = ReplicaProcess::start_named("c", "other", &outside.description(""));
    let refused = a
        .monitor(&format!("migrate {}", other.address))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("VM other") && refused.contains("check address"),
        "{refused}"
    );
    outside.see_more(300);
    outside.judge();
}

#[test]
fn the_monitor_speaks_the_words_of_the_first_kemari() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let mut a = outside.replica("a", "");
    let b = outside.replica("b", "");
    a.promote(Promotion::ColdStart, 1).unwrap();
    assert_eq!(a.monitor(&format!("migrate -d {}", b.address)).unwrap(), "");
    a.wait("a pair", |status| status.in_sync);
    let status = a.monitor("info status").unwrap();
    assert!(
        status.starts_with("VM status: running\nrole: active\nlicence: paired"),
        "{status}"
    );
    let figures = a.monitor("info migrate").unwrap();
    assert!(
        figures.contains("active (continuous)") && figures.contains("p99"),
        "{figures}"
    );
    a.monitor("stop").unwrap();
    assert!(a.monitor("info status").unwrap().contains("paused"));
    a.monitor("cont").unwrap();
    outside.see_more(300);
    let unknown = a.monitor("migrte x").unwrap_err().to_string();
    assert!(
        unknown.contains("\"migrte\"") && unknown.contains("help"),
        "{unknown}"
    );
    let wrong = a.monitor("migrate -d tcp:x:1").unwrap_err().to_string();
    assert!(wrong.contains("kemari:tcp:HOST:PORT"), "{wrong}");
    // The guest powers itself off when its button is pressed; the pair dissolves in good order.
    a.monitor("system_powerdown").unwrap();
    assert_eq!(a.exit_status(), Some(0), "{}", a.log());
    b.wait("nothing left to run", |status| {
        status.role == Role::Waiting && !status.in_sync
    });
    outside.judge();
}

#[test]
fn synchronous_mode_stops_the_guest_until_each_acknowledgement() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let synchronous = Description {
        // Commits take longer than the longest epoch: the guest must get its time to run all the same.
        replication: "synchronous = true\nepoch_ms_max = 1\n",
        sections: "",
        ..outside.description("pages=8")
    };
    let mut a = ReplicaProcess::start("a", &synchronous);
    let b = ReplicaProcess::start("b", &synchronous);
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    outside.see_more(500);
    a.kill();
    b.wait("the loss noticed", |status| status.detail.contains("lost"));
    b.promote(Promotion::TakeOver, 2).unwrap();
    outside.see_more(500);
    outside.judge();
}

#[test]
fn a_guest_comes_to_memory_that_was_made_ready_for_it() {
    if !kvm_or_skip() {
        return;
    }
    let outside = Outside::new();
    let ready = Description {
        sections: "[memory]\nprefault = true\n",
        ..outside.description("pages=8")
    };
    let mut a = outside.replica("a", "pages=8");
    let b = ReplicaProcess::start("b", &ready);
    b.wait("memory ready", |_| {
        b.log().contains("is ready for the first copy")
    });
    assert!(b.log().contains("mib=64"), "{}", b.log());
    a.promote(Promotion::ColdStart, 1).unwrap();
    outside.see_more(300);
    a.protect(&b);
    outside.see_more(500);
    a.kill();
    b.wait("the loss noticed", |status| status.detail.contains("lost"));
    b.promote(Promotion::TakeOver, 2).unwrap();
    outside.see_more(500);
    outside.judge();
}

#[test]
fn a_reset_of_the_guest_is_replicated_like_everything_else() {
    if !kvm_or_skip() {
        return;
    }
    let (console, lines) = typing_console(b"r");
    let description = Description {
        memory_mib: 64,
        kernel: guests::ledger(),
        cmdline: "",
        console: &console,
        replication: "",
        sections: "",
    };
    let mut a = ReplicaProcess::start("a", &description);
    let b = ReplicaProcess::start("b", &description);
    a.promote(Promotion::ColdStart, 1).unwrap();
    a.protect(&b);
    let started_again = |line: &String| line == "LEDGER START";
    let mut lines = lines.into_iter();
    assert!(lines.any(|line| started_again(&line)), "the guest boots");
    assert!(lines.any(|line| started_again(&line)), "typing r resets it");
    a.kill();
    b.wait("the loss noticed", |status| status.detail.contains("lost"));
    b.promote(Promotion::TakeOver, 2).unwrap();
    let counts_on = |line: String| line.split(' ').next().is_some_and(|n| n == "200");
    assert!(lines.any(counts_on), "the guest counts on after the reset");
}

/// A console sink that answers the first line it sees by typing this, once.
fn typing_console(keys: &'static [u8]) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sink = format!("tcp:{}", listener.local_addr().unwrap());
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut keys = Some(keys);
        for stream in listener.incoming().map_while(Result::ok) {
            for line in BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(Result::ok)
            {
                let seen_start = line == "LEDGER START";
                if sender.send(line).is_err() {
                    return;
                }
                if let Some(keys) = keys.take_if(|_| seen_start) {
                    (&stream).write_all(keys).unwrap();
                }
            }
        }
    });
    (sink, lines)
}
