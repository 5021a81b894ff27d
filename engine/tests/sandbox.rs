// SPDX-License-Identifier: Apache-2.0
//! What a running engine has given up, seen from outside.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use kemari_api::replica::Promotion;
use kemari_cluster_tests::guests;
use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip};

/// An engine whose guest runs, and the file its console goes to.
fn running(arguments: &[&str]) -> (ReplicaProcess, tempfile::TempDir, PathBuf) {
    // Out of reach of the engine's user: the engine opens it before.
    let outside = tempfile::tempdir().unwrap();
    let console = outside.path().join("console");
    let sink = format!("file:{}", console.display());
    let description = Description {
        memory_mib: 64,
        kernel: guests::ledger(),
        cmdline: "",
        console: &sink,
        replication: "",
        sections: "",
    };
    let engine = ReplicaProcess::start_with("a", &description, arguments);
    engine.promote(Promotion::ColdStart, 1).unwrap();
    let begun = Instant::now();
    while !fs::read_to_string(&console).is_ok_and(|text| text.contains("LEDGER START")) {
        assert!(begun.elapsed() < PATIENCE, "{}", engine.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    (engine, outside, console)
}

/// `/proc/PID/task/*/status` of the engine's own threads: their names and the rest.
fn threads(engine: &ReplicaProcess) -> Vec<(String, String)> {
    let tasks = format!("/proc/{}/task", engine.status().pid);
    fs::read_dir(tasks)
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .map(|status| (field(&status, "Name"), status))
        // KVM's own.
        .filter(|(name, _)| !name.starts_with("kvm"))
        .collect()
}

fn field(status: &str, name: &str) -> String {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("{name} in {status}"))
        .trim()
        .to_owned()
}

#[test]
fn every_thread_of_an_engine_has_given_up_its_rights() {
    if !kvm_or_skip() {
        return;
    }
    let (engine, _outside, _) = running(&[]);
    let begun = Instant::now();
    let threads = loop {
        let threads = threads(&engine);
        // One that was never scheduled yet has had no time to confine itself.
        let confined = |(_, status): &(String, String)| field(status, "Seccomp") == "2";
        if threads.iter().all(confined) {
            break threads;
        }
        assert!(begun.elapsed() < PATIENCE, "{threads:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    println!(
        "{:?}",
        threads.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    assert!(threads.iter().any(|(name, _)| name == "vcpu0"));
    for (name, status) in &threads {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(status, set), "0000000000000000", "{name} {set}");
        }
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
        if geteuid().is_root() {
            let nobody = User::from_name("nobody").unwrap().unwrap();
            let (uid, gid) = (nobody.uid, nobody.gid);
            let ids = |id: u32| format!("{id}\t{id}\t{id}\t{id}");
            assert_eq!(field(status, "Uid"), ids(uid.as_raw()), "{name}");
            assert_eq!(field(status, "Gid"), ids(gid.as_raw()), "{name}");
            assert_eq!(field(status, "Groups"), "", "{name}");
            assert_eq!(field(status, "CapBnd"), "0000000000000000", "{name}");
        }
    }
    assert!(!engine.log().contains("The sandbox is off"));
}

#[test]
fn without_the_sandbox_the_engine_says_so_once_and_keeps_its_rights() {
    if !kvm_or_skip() {
        return;
    }
    let (engine, _outside, _) = running(&["--no-sandbox"]);
    for (name, status) in threads(&engine) {
        assert_eq!(field(&status, "Seccomp"), "0", "{name}");
    }
    assert_eq!(engine.log().matches("The sandbox is off").count(), 1);
}

/// An engine that listens, as its peer.
fn waiting() -> ReplicaProcess {
    ReplicaProcess::start(
        "b",
        &Description {
            memory_mib: 64,
            kernel: guests::ledger(),
            cmdline: "",
            console: "none",
            replication: "",
            sections: "",
        },
    )
}

#[test]
fn a_sandboxed_engine_finds_its_peer_by_name() {
    if !kvm_or_skip() {
        return;
    }
    let (engine, _outside, _) = running(&[]);
    let peer = waiting();
    engine.migrate(&peer.address.replace("127.0.0.1", "localhost"));
    engine.wait("a pair in sync", |status| status.in_sync);
}

#[test]
fn a_sandboxed_engine_says_why_a_name_is_none_and_ends_in_good_order() {
    if !kvm_or_skip() {
        return;
    }
    let (mut engine, _outside, _) = running(&[]);
    let unknown = engine
        .monitor("migrate kemari:tcp:no-such-host.invalid:4444")
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("no-such-host.invalid"), "{unknown}");
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.exit_status(), Some(0), "{}", engine.log());
}
