// SPDX-License-Identifier: Apache-2.0
//! What a real engine tells the service manager, which is the test's socket here.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use kemari_api::Role;
use kemari_api::replica::Promotion;
use kemari_cluster_tests::guests;

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip};

/// The next message that is one of `wanted`; the others are passed over.
fn next<'a>(manager: &UnixDatagram, wanted: &[&'a str]) -> &'a str {
    let mut buffer = [0; 4096];
    loop {
        let length = manager.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        let found = wanted
            .iter()
            .find(|wanted| text.lines().any(|line| line == **wanted));
        if let Some(found) = found {
            return found;
        }
    }
}

#[test]
fn a_sandboxed_engine_gives_signs_of_life_idle_and_active() {
    if !kvm_or_skip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    // As /run/systemd/notify is.
    std::fs::set_permissions(&socket, Permissions::from_mode(0o777)).unwrap();

    let description = Description {
        memory_mib: 64,
        kernel: guests::ledger(),
        cmdline: "interval=5000",
        console: "none",
        replication: "",
        sections: "",
    };
    let engine = ReplicaProcess::start_watched("a", &description, &socket);
    let both = ["READY=1", "WATCHDOG=1"];
    let first = next(&manager, &both);
    let second = next(&manager, &both);
    assert!(
        first == "READY=1" || second == "READY=1",
        "{first} {second}"
    );
    for _ in 0..3 {
        next(&manager, &["WATCHDOG=1"]);
    }
    engine.promote(Promotion::ColdStart, 1).unwrap();
    assert_eq!(engine.status().role, Role::Active);
    // What was sent before lies in the socket.
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 4096]).is_ok() {}
    manager.set_nonblocking(false).unwrap();
    for _ in 0..3 {
        next(&manager, &["WATCHDOG=1"]);
    }
}
