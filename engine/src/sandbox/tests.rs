// SPDX-License-Identifier: Apache-2.0
//! Each kind of thread in a process of its own, which does something and may not survive it.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use kemari_vmm::backend::{
    DiscardPolicy, DiskBackend, DiskOptions, DiskRequest, IoEngine, NetworkBackend,
    PACKET_BYTES_MAX, PACKET_HEADER_BYTES, RawDisk, Tap, TapOptions, Unmap,
};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::Signal;

use super::{FILTERS, Kind, enter, kinds};
use crate::exit::{Failure, FailureKind};

/// Tells the process of a test what to do: a kind and an act.
const TASK: &str = "KEMARI_SANDBOX_TEST";
const SURVIVED: &str = "survived it";
const LAST_WORDS: &str = "These are the last words";

fn attempt(kind: Kind, act: &str) -> Output {
    attempt_with(kind, act, &[])
}

fn attempt_with(kind: Kind, act: &str, environment: &[(&str, &Path)]) -> Output {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::in_a_process_of_its_own"])
        .args(["--ignored", "--nocapture"])
        .env(TASK, format!("{kind:?} {act}"))
        .envs(environment.iter().copied())
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{kind:?} {act}: {:?} {said}", output.status);
    output
}

fn survives(kind: Kind, act: &str) {
    survives_with(kind, act, &[]);
}

fn survives_with(kind: Kind, act: &str, environment: &[(&str, &Path)]) {
    let output = attempt_with(kind, act, environment);
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
    let _errors = kemari_vmm::MemoryErrors::watch().unwrap();
    FILTERS.set(kinds::filters().unwrap()).unwrap();
    let act = act.to_owned();
    let thread = std::thread::Builder::new().name("probe".into());
    let probe = thread.spawn(move || {
        let opened = Opened::new(&act);
        enter(kind);
        perform(&act, opened);
        eprintln!("{SURVIVED}");
    });
    probe.unwrap().join().unwrap();
}

/// What is open before the thread is confined.
struct Opened {
    bell: EventFd,
    disks: Vec<RawDisk>,
    taps: Option<Tap>,
}

impl Opened {
    /// What the act needs; a thread that closes something needs a right for that too.
    fn new(act: &str) -> Self {
        let disk = |engine| {
            let options = DiskOptions {
                read_only: false,
                direct: false,
                discard: DiscardPolicy::FreeSpace,
                engine,
            };
            let copy = tempfile::NamedTempFile::new().unwrap();
            copy.as_file().set_len(1 << 20).unwrap();
            RawDisk::open(copy.path(), options).unwrap()
        };
        let engines: &[IoEngine] = match act {
            "use disks" => &[IoEngine::Auto, IoEngine::Plain],
            _ => &[],
        };
        let tap = || {
            Tap::open(&TapOptions {
                name: format!("kmt{}", std::process::id()),
                pairs: 2,
                mtu: None,
                bridge: None,
            })
        };
        Self {
            bell: EventFd::from_value(1).unwrap(),
            disks: engines.iter().copied().map(disk).collect(),
            // Only root makes one.
            taps: (act == "use a TAP").then(tap).and_then(Result::ok),
        }
    }
}

fn use_disk(mut disk: RawDisk) {
    let requests = [
        DiskRequest::Write {
            offset: 4096,
            buffer: vec![1; 8192],
        },
        DiskRequest::Flush,
        DiskRequest::Read {
            offset: 0,
            buffer: vec![0; 16384],
        },
        DiskRequest::Discard {
            offset: 4096,
            length: 4096,
        },
        DiskRequest::WriteZeroes {
            offset: 8192,
            length: 4096,
            unmap: Unmap::Forbidden,
        },
    ];
    let mut done = Vec::new();
    for (request, tag) in requests.into_iter().zip(0..) {
        disk.submit(tag, request);
        disk.drain().unwrap();
        disk.completed(&mut done);
    }
    assert_eq!(done.len(), 5);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
}

fn use_tap(tap: Option<Tap>) {
    let Some(mut tap) = tap else {
        return;
    };
    tap.set_offloads(tap.offloads()).unwrap();
    let mut packet = [0; PACKET_HEADER_BYTES + 60];
    packet[PACKET_HEADER_BYTES..][..12].fill(0xff);
    if tap.has_room() {
        tap.transmit(&packet);
    }
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    for pair in 0..tap.pairs() {
        while tap.receive(pair, &mut buffer).unwrap().is_some() {}
    }
}

fn perform(act: &str, opened: Opened) {
    let bell = opened.bell;
    match act {
        "use disks" => opened.disks.into_iter().for_each(use_disk),
        "use a TAP" => use_tap(opened.taps),
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
        "change directory" => nix::unistd::chdir("/").unwrap(),
        "signal another" => {
            let other = nix::unistd::getppid();
            let _ = nix::sys::signal::kill(other, None);
        }
        "say last words" => Failure::told(FailureKind::Memory, LAST_WORDS).tell_systemd(),
        "meet a bus error" => nix::sys::signal::raise(Signal::SIGBUS).unwrap(),
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
fn the_thread_that_ends_the_engine_reaches_systemd() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    survives_with(
        Kind::MemoryErrors,
        "say last words",
        &[("NOTIFY_SOCKET", socket.as_path())],
    );
    systemd.set_nonblocking(true).unwrap();
    let mut said = [0; 256];
    let length = systemd.recv(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]).into_owned();
    assert_eq!(said.trim(), format!("STATUS={LAST_WORDS}"));
    dies_of(Kind::MemoryErrors, "listen");
}

#[test]
fn a_bus_error_that_is_no_memory_error_ends_every_kind() {
    for kind in Kind::ALL {
        let died = attempt(kind, "meet a bus error");
        let signal = died.status.signal();
        assert_eq!(signal, Some(Signal::SIGBUS as i32), "{kind:?}");
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
        survives(kind, "use disks");
        survives(kind, "use a TAP");
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
