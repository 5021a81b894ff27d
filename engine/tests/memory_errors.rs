// SPDX-License-Identifier: Apache-2.0
//! The host's memory fails under a guest of two real engines.
//!
//! Poisoned memory needs a kernel that can do that. So the engines get the signal that such a kernel sends,
//! to the thread it would send it to: a tracer (ptrace(2)) may give a signal any content. What the
//! kernel itself does is tested in `kemari-vmm`, where it can.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::fs;

use kemari_api::replica::Promotion;
use kemari_api::{Licence, Role};
use kemari_cluster_tests::observer::Observer;
use kemari_cluster_tests::{guests, ledger};
use nix::libc::{BUS_MCEERR_AO, BUS_MCEERR_AR};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip, outside};

/// A size that no other mapping of an engine has.
const MEMORY_MIB: u32 = 80;
/// A page in the middle of it.
const PAGE: u64 = 0x123_4000;
/// What the engine ends with (EX_OSERR of sysexits(3)).
const STATUS: Option<i32> = Some(71);

fn possible() -> bool {
    if !geteuid().is_root() {
        println!("SKIPPED: only root may trace an engine");
        return false;
    }
    kvm_or_skip()
}

fn replica(node: &str, console: &str) -> ReplicaProcess {
    let description = Description {
        memory_mib: MEMORY_MIB,
        kernel: guests::ledger(),
        cmdline: "pages=16",
        console,
        replication: "",
        sections: "",
    };
    ReplicaProcess::start(node, &description)
}

/// A pair in sync whose guest writes to the observer.
fn pair() -> (ReplicaProcess, ReplicaProcess, Observer) {
    let (observer, console) = outside();
    let (active, passive) = (replica("a", &console), replica("b", &console));
    active.promote(Promotion::ColdStart, 1).unwrap();
    see_more(&observer);
    active.protect(&passive);
    see_more(&observer);
    (active, passive, observer)
}

fn see_more(observer: &Observer) {
    observer.wait_for_more(1_000, PATIENCE).unwrap();
}

/// Nothing is missing, nothing was executed twice.
fn judge(observer: &Observer) {
    assert_eq!(observer.violations(), []);
    println!("{:?}", ledger::check(&observer.bytes()).unwrap());
}

/// Which thread gets the signal.
enum Thread {
    Main,
    Vcpu,
}

/// What the kernel sends when the page of the guest at this address fails.
fn memory_error(engine: &ReplicaProcess, thread: &Thread, code: i32, page: u64) {
    let process = engine.status().pid;
    let task = match thread {
        Thread::Main => process,
        Thread::Vcpu => vcpu(process),
    };
    let task = Pid::from_raw(i32::try_from(task).unwrap());
    ptrace::attach(task).unwrap();
    let stopped = waitpid(task, Some(WaitPidFlag::__WALL)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(task, Signal::SIGSTOP));
    let info = kemari_vmm::bus_error(code, guest_ram(process) + page, 12);
    ptrace::setsiginfo(task, &info).unwrap();
    ptrace::detach(task, Signal::SIGBUS).unwrap();
}

fn vcpu(process: u32) -> u32 {
    fs::read_dir(format!("/proc/{process}/task"))
        .unwrap()
        .map(|task| task.unwrap().path())
        .find(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == "vcpu0")
        .and_then(|task| task.file_name()?.to_str()?.parse().ok())
        .unwrap()
}

/// Where the guest's memory is in an engine.
fn guest_ram(process: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    maps.lines()
        .filter(|line| line.contains(" rw-p "))
        .filter_map(|line| line.split_once(' ')?.0.split_once('-'))
        .map(|(start, end)| (number(start), number(end)))
        .find(|(start, end)| end - start == u64::from(MEMORY_MIB) << 20)
        .unwrap_or_else(|| panic!("no guest RAM in {maps}"))
        .0
}

/// It ended as documented, and said this, once.
fn ended(engine: &mut ReplicaProcess, saying: &str) {
    assert_eq!(engine.exit_status(), STATUS, "{}", engine.log());
    let log = engine.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    let [line] = errors.as_slice() else {
        panic!("not one line: {log}");
    };
    assert!(line.contains(&format!("{PAGE:#x} (4 KiB)")), "{line}");
    assert!(line.contains(saying), "{line}");
}

#[test]
fn the_passive_replica_continues_when_the_active_ones_memory_fails() {
    if !possible() {
        return;
    }
    for (thread, code) in [
        (Thread::Main, BUS_MCEERR_AO),
        (Thread::Vcpu, BUS_MCEERR_AR),
        (Thread::Main, BUS_MCEERR_AR),
    ] {
        let (mut active, passive, observer) = pair();
        memory_error(&active, &thread, code, PAGE);
        ended(&mut active, "the passive one on b continues");
        passive.wait("the loss noticed", |status| status.detail.contains("lost"));
        passive.promote(Promotion::TakeOver, 2).unwrap();
        let status = passive.status();
        assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
        see_more(&observer);
        judge(&observer);
    }
}

#[test]
fn a_passive_replica_whose_memory_fails_cannot_be_promoted() {
    if !possible() {
        return;
    }
    let (active, mut passive, observer) = pair();
    memory_error(&passive, &Thread::Main, BUS_MCEERR_AO, PAGE);
    ended(&mut passive, "what it held is gone");
    active.wait("the loss noticed", |status| !status.in_sync);
    active.go_solo(2).unwrap();
    see_more(&observer);
    // Started again, it is a passive replica like any other.
    let passive = passive.start_again();
    active.protect(&passive);
    see_more(&observer);
    judge(&observer);
}

#[test]
fn a_guest_that_nobody_continues_lives_until_it_touches_the_page() {
    if !possible() {
        return;
    }
    let (observer, console) = outside();
    let (mut active, other) = (replica("a", &console), replica("b", &console));
    active.promote(Promotion::ColdStart, 1).unwrap();
    memory_error(&active, &Thread::Main, BUS_MCEERR_AO, PAGE);
    active.wait("the page reported", |status| {
        status.detail.contains("cannot be copied")
    });
    assert!(
        active.log().contains("so the guest goes on"),
        "{}",
        active.log()
    );
    see_more(&observer);
    // Nothing that would touch it is begun.
    active
        .monitor(&format!("migrate -d {}", other.address))
        .unwrap_err();
    let status = active.status();
    assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
    let directory = tempfile::tempdir().unwrap();
    let (saved, said) = active.save(&directory.path().join("snapshot"), &[]);
    assert_ne!(saved, Some(0), "{said}");
    assert!(said.contains("cannot be copied"), "{said}");
    see_more(&observer);
    memory_error(&active, &Thread::Vcpu, BUS_MCEERR_AR, PAGE);
    ended(&mut active, "nobody can continue");
    assert_eq!(observer.violations(), []);
}

#[test]
fn a_copy_under_way_is_given_up() {
    if !possible() {
        return;
    }
    let (observer, console) = outside();
    let active = replica("a", &console);
    active.promote(Promotion::ColdStart, 1).unwrap();
    // Somebody who takes the call and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    active.migrate(&format!("kemari:tcp:{}", silent.local_addr().unwrap()));
    memory_error(&active, &Thread::Main, BUS_MCEERR_AO, PAGE);
    let status = active.wait("the page reported", |status| {
        status.detail.contains("cannot be copied")
    });
    assert_eq!((status.role, status.licence), (Role::Active, Licence::Solo));
    see_more(&observer);
}

#[test]
fn another_bus_error_ends_the_engine_as_ever() {
    if !possible() {
        return;
    }
    let (_observer, console) = outside();
    let mut engine = replica("a", &console);
    engine.signal(Signal::SIGBUS);
    assert_eq!(engine.exit_status(), None, "{}", engine.log());
    assert!(!engine.log().contains("memory failed"), "{}", engine.log());
}
