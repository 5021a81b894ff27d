// SPDX-License-Identifier: Apache-2.0
//! Each kind of thread in a process of its own, which does something and may not survive it.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::Signal;

use super::{FILTERS, Kind, enter, kinds};

/// Tells the process of a test what to do: a kind and an act.
const TASK: &str = "KEMARI_SANDBOX_TEST";
const SURVIVED: &str = "survived it";

fn attempt(kind: Kind, act: &str) -> Output {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::in_a_process_of_its_own"])
        .args(["--ignored", "--nocapture"])
        .env(TASK, format!("{kind:?} {act}"))
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{kind:?} {act}: {:?} {said}", output.status);
    output
}

fn survives(kind: Kind, act: &str) {
    let output = attempt(kind, act);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{kind:?} {act}: {said}");
    assert!(said.contains(SURVIVED), "{kind:?} {act}: {said}");
}

fn dies_of(kind: Kind, act: &str) {
    let output = attempt(kind, act);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let signal = output.status.signal();
    assert_eq!(
        signal,
        Some(Signal::SIGSYS as i32),
        "{kind:?} {act}: {said}"
    );
    assert!(
        said.contains("kemari: thread \"probe\" made system call"),
        "{kind:?} {act}: {said}"
    );
    assert!(!said.contains(SURVIVED), "{kind:?} {act}: {said}");
}

#[test]
#[ignore = "is run by the other tests"]
fn in_a_process_of_its_own() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let (kind, act) = task.split_once(' ').unwrap();
    let kind = Kind::ALL
        .into_iter()
        .find(|known| format!("{known:?}") == kind)
        .unwrap();
    kemari_vmm::report_forbidden_calls().unwrap();
    FILTERS.set(kinds::filters().unwrap()).unwrap();
    let act = act.to_owned();
    let thread = std::thread::Builder::new().name("probe".into());
    let probe = thread.spawn(move || {
        let bell = EventFd::from_value(1).unwrap();
        enter(kind);
        perform(&act, &bell);
        eprintln!("{SURVIVED}");
    });
    probe.unwrap().join().unwrap();
}

fn perform(act: &str, bell: &EventFd) {
    match act {
        "live" => {
            std::thread::sleep(Duration::from_millis(1));
            let boxes: Vec<Box<[u8; 4096]>> = (0..1000).map(|_| Box::new([1; 4096])).collect();
            assert_eq!(boxes.len(), 1000);
            assert_eq!(bell.write(1).unwrap(), 8);
        }
        "wait" => assert_eq!(bell.read().unwrap(), 1),
        "open" => {
            let error = std::fs::File::open("/etc/hostname").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
        }
        "start a vCPU" => std::thread::spawn(|| enter(Kind::Vcpu)).join().unwrap(),
        "start a process" => drop(Command::new("/bin/true").status()),
        "change directory" => drop(nix::unistd::chdir("/")),
        "signal another" => {
            let other = nix::unistd::getppid();
            drop(nix::sys::signal::kill(other, None));
        }
        "listen" => drop(TcpListener::bind("127.0.0.1:0")),
        other => panic!("{other}"),
    }
}

#[test]
fn every_kind_lives() {
    for kind in Kind::ALL {
        survives(kind, "live");
    }
}

#[test]
fn no_kind_may_do_what_none_needs() {
    for kind in Kind::ALL {
        dies_of(kind, "change directory");
    }
}

#[test]
fn no_kind_starts_processes_and_some_start_threads() {
    for kind in [
        Kind::Conductor,
        Kind::Device,
        Kind::Link,
        Kind::Outputs,
        Kind::Control,
    ] {
        // The C library blocks all signals for it, so nothing is said.
        let died = attempt(kind, "start a process");
        assert_eq!(
            died.status.signal(),
            Some(Signal::SIGSYS as i32),
            "{kind:?}"
        );
    }
    survives(Kind::Conductor, "start a vCPU");
    let died = attempt(Kind::Vcpu, "start a vCPU");
    assert_eq!(died.status.signal(), Some(Signal::SIGSYS as i32));
}

#[test]
fn threads_that_face_the_guest_reach_nothing_by_name() {
    for kind in [Kind::Vcpu, Kind::Device] {
        survives(kind, "wait");
        survives(kind, "open");
        dies_of(kind, "listen");
        dies_of(kind, "signal another");
    }
}

#[test]
fn nobody_listens_anew() {
    for kind in Kind::ALL {
        dies_of(kind, "listen");
    }
}
