// SPDX-License-Identifier: Apache-2.0
//! The observer over real sockets, fed by threads that behave like engines.

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use kemari_cluster_tests::ledger;
use kemari_cluster_tests::observer::{Event, Header, Observer, monotonic_ns};

/// Longer than any stall of a loaded machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

fn console(lines: u64) -> Vec<u8> {
    let lines = (1..=lines).map(|n| format!("{n} {:016x}\n", n * 4096));
    format!("{}\n{}", ledger::START, lines.collect::<String>()).into_bytes()
}

fn header(node: &str, generation: u64, position: usize) -> String {
    let (vm, node) = ("web".to_owned(), node.to_owned());
    let header = Header {
        vm,
        node,
        generation,
        position: position as u64,
    };
    format!("{header}\n")
}

/// An engine releasing `bytes[from..to]`, a few at a time.
fn release(sink: &mut impl Write, bytes: &[u8]) {
    for piece in bytes.chunks(37) {
        sink.write_all(piece)
            .expect("the observer reads until it is dropped");
    }
}

fn fail_over(observer: &Observer, mut connect: impl FnMut() -> Box<dyn Write>) {
    let stream = console(20_000);
    let (death, last_commit) = (stream.len() / 2, stream.len() / 2 - 1234);
    {
        let mut old = connect();
        old.write_all(header("node1", 1, 0).as_bytes())
            .expect("connected");
        release(&mut old, &stream[..death]);
    }
    observer
        .wait_for_bytes(death, PATIENCE)
        .expect("everything was sent");
    let before = monotonic_ns();
    let mut new = connect();
    new.write_all(header("node2", 2, last_commit).as_bytes())
        .expect("connected");
    release(&mut new, &stream[last_commit..]);
    observer
        .wait_for_bytes(stream.len(), PATIENCE)
        .expect("everything was sent");
    observer
        .wait_for_generation(2, PATIENCE)
        .expect("node2 has delivered");

    assert_eq!(observer.violations(), []);
    assert_eq!(observer.bytes(), stream);
    assert_eq!(
        ledger::check(&observer.bytes())
            .expect("nothing is missing")
            .last,
        20_000
    );
    let raw = |splice: &kemari_cluster_tests::observer::Splice| {
        ledger::check_stamps(splice.raw().map(|(header, bytes)| (header.position, bytes)))
    };
    assert_eq!(observer.with(raw), Ok(20_000));
    let latest = observer.latest().expect("there are lines");
    assert_eq!(
        (latest.source.node.as_str(), latest.line.as_str()),
        ("node2", "20000 0000000004e20000")
    );
    let [takeover] = &observer.takeovers()[..] else {
        panic!("one takeover")
    };
    assert_eq!(takeover.replayed, 1234);
    assert!(takeover.resumed_ns.is_some_and(|resumed| resumed > before));
    assert!(takeover.silent_from_ns < before);
    let closed = |event: &Event| matches!(event, Event::Closed { connection: 0, .. });
    assert!(observer.events().iter().any(closed));
}

#[test]
fn a_failover_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let observer = Observer::over(listener).expect("a thread and a socket pair");
    fail_over(&observer, || {
        Box::new(TcpStream::connect(address).expect("it listens"))
    });
}

#[test]
fn a_failover_over_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("console");
    let listener = UnixListener::bind(&path).expect("a new path");
    let observer = Observer::over_unix(listener).expect("a thread and a socket pair");
    fail_over(&observer, || {
        Box::new(UnixStream::connect(&path).expect("it listens"))
    });
}

#[test]
fn waiting_in_vain_says_what_there_was() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let observer = Observer::over(listener).expect("a thread and a socket pair");
    let mut engine = TcpStream::connect(address).expect("it listens");
    engine
        .write_all(header("node1", 1, 0).as_bytes())
        .expect("connected");
    engine.write_all(b"one\ntwo").expect("connected");
    observer.wait_for_bytes(7, PATIENCE).expect("seven bytes");
    let silent = observer
        .wait_for_bytes(8, Duration::ZERO)
        .expect_err("there are only seven");
    assert!(silent.to_string().contains("\"one\""), "{silent}");
}

#[test]
fn dropping_it_hangs_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let observer = Observer::over(listener).expect("a thread and a socket pair");
    let mut engine = TcpStream::connect(address).expect("it listens");
    engine
        .write_all(header("node1", 1, 0).as_bytes())
        .expect("connected");
    let opened = |event: &Event| matches!(event, Event::Opened { .. });
    observer
        .wait_for(PATIENCE, |splice| {
            splice.events().iter().any(opened).then_some(())
        })
        .expect("the header was sent");
    drop(observer);
    let error = loop {
        if let Err(error) = engine.write_all(b"still there?\n") {
            break error;
        }
    };
    assert!(
        matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        "{error}"
    );
}
