// SPDX-License-Identifier: Apache-2.0
//! Terminals attached to a running engine, compared with what the outside saw.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

#[allow(dead_code, reason = "each test file uses its part")]
mod replica_process;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use kemari_api::console::{PIECE_HEADER_BYTES, PieceHeader};
use kemari_api::replica::Promotion;
use kemari_cluster_tests::guests;

use replica_process::{Description, PATIENCE, ReplicaProcess, kvm_or_skip, outside};

/// So slowly that the history holds what is printed in a minute or more.
const SLOWLY: &str = "interval=5000";

fn replica(node: &str, console: &str, cmdline: &str) -> ReplicaProcess {
    let description = Description {
        memory_mib: 64,
        kernel: guests::ledger(),
        cmdline,
        console,
        replication: "",
        sections: "",
    };
    ReplicaProcess::start(node, &description)
}

/// An attached terminal.
struct Terminal {
    connection: UnixStream,
    /// Where the next piece begins if nothing is passed over.
    expected: u64,
    /// Where what it was shown begins.
    start: u64,
    shown: Vec<u8>,
    passed_over: u64,
}

impl Terminal {
    fn attach(replica: &ReplicaProcess, from: u64) -> Self {
        let end: OwnedFd = replica.console(from).unwrap();
        let connection = UnixStream::from(end);
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            connection,
            expected: from,
            start: from,
            shown: Vec::new(),
            passed_over: 0,
        }
    }

    /// The next piece; false at the end.
    fn read_piece(&mut self) -> bool {
        let mut header = [0; PIECE_HEADER_BYTES];
        match self.connection.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return false,
            result => result.unwrap(),
        }
        let header = PieceHeader::read(header).unwrap();
        assert!(header.position >= self.expected, "shown again");
        self.passed_over += header.position - self.expected;
        if self.shown.is_empty() {
            self.start = header.position;
        }
        let mut bytes = vec![0; header.len()];
        self.connection.read_exact(&mut bytes).unwrap();
        self.expected = header.position + bytes.len() as u64;
        self.shown.extend(bytes);
        true
    }

    fn read_at_least(&mut self, bytes: usize) {
        while self.shown.len() < bytes {
            assert!(self.read_piece(), "the console ended");
        }
    }

    fn read_to_the_end(&mut self) {
        while self.read_piece() {}
    }
}

#[test]
fn what_is_printed_between_two_attachments_is_shown_once() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let active = replica("a", &console, SLOWLY);
    active.promote(Promotion::ColdStart, 1).unwrap();
    let mut all = Vec::new();
    for _ in 0..8 {
        let mut terminal = Terminal::attach(&active, all.len() as u64);
        terminal.read_at_least(300);
        assert_eq!(
            (terminal.start, terminal.passed_over),
            (all.len() as u64, 0)
        );
        all.extend(&terminal.shown);
        drop(terminal);
        // Printed while nobody is attached.
        observer.wait_for_more(300, PATIENCE).unwrap();
    }
    // Two at once, of whom one types what ends the guest: both hear its last words.
    let mut reader = Terminal::attach(&active, 0);
    let mut typing = Terminal::attach(&active, all.len() as u64);
    typing.connection.write_all(b"q").unwrap();
    reader.read_to_the_end();
    typing.read_to_the_end();
    all.extend(&typing.shown);
    let mut active = active;
    assert_eq!(active.exit_status(), Some(0), "{}", active.log());
    let seen = observer.bytes();
    assert!(all.starts_with(b"LEDGER START"));
    assert_eq!(all, seen);
    assert_eq!(reader.shown, seen);
    assert_eq!(observer.violations(), []);
}

#[test]
fn a_terminal_that_does_not_read_holds_nobody_up_and_is_skipped_ahead() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let active = replica("a", &console, "");
    active.promote(Promotion::ColdStart, 1).unwrap();
    let mut stuck = Terminal::attach(&active, 0);
    // More than the connection and the history hold: half a minute's work of a guest that has a processor for itself. A busy
    // machine needs longer, and prints on all the same.
    for _ in 0..36 {
        observer.wait_for_more(16 * 1024, PATIENCE).unwrap();
    }
    stuck.connection.shutdown(Shutdown::Write).unwrap();
    stuck.read_to_the_end();
    assert!(stuck.passed_over > 0);
    let (head, tail) = (100, stuck.expected);
    let begun = Instant::now();
    let seen = loop {
        let seen = observer.bytes();
        if seen.len() as u64 >= tail {
            break seen;
        }
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    // Its beginning, and its end as long as what is certainly in one piece.
    assert_eq!(stuck.shown.get(..head), seen.get(..head));
    let tail = usize::try_from(tail).unwrap();
    assert_eq!(
        stuck.shown.get(stuck.shown.len() - 1000..),
        seen.get(tail - 1000..tail)
    );
    assert_eq!(stuck.shown.len() as u64 + stuck.passed_over, tail as u64);
    assert_eq!(observer.violations(), []);
}

#[test]
fn after_a_failover_the_console_goes_on_at_the_other_replica() {
    if !kvm_or_skip() {
        return;
    }
    let (observer, console) = outside();
    let mut active = replica("a", &console, SLOWLY);
    let passive = replica("b", &console, SLOWLY);
    let refused = passive.console(0).unwrap_err().to_string();
    assert!(refused.contains("waiting"), "{refused}");
    active.promote(Promotion::ColdStart, 1).unwrap();
    active.protect(&passive);
    let refused = passive.console(0).unwrap_err().to_string();
    assert!(
        refused.contains("passive") && refused.contains("on a"),
        "{refused}"
    );
    let mut terminal = Terminal::attach(&active, 0);
    terminal.read_at_least(2_000);
    active.kill();
    terminal.read_to_the_end();
    let mut all = terminal.shown;
    passive.wait("the loss noticed", |status| status.detail.contains("lost"));
    passive.promote(Promotion::TakeOver, 2).unwrap();
    let mut terminal = Terminal::attach(&passive, all.len() as u64);
    terminal.read_at_least(2_000);
    assert_eq!(terminal.passed_over, 0);
    // A demotion ends the console, and not before all is shown that was let out.
    let other = replica("a", &console, SLOWLY);
    passive.protect(&other);
    passive.demote().unwrap();
    terminal.read_to_the_end();
    all.extend(&terminal.shown);
    assert_eq!(all, observer.bytes());
    other.promote(Promotion::TakeOver, 3).unwrap();
    let mut terminal = Terminal::attach(&other, all.len() as u64);
    terminal.read_at_least(500);
    assert_eq!(terminal.passed_over, 0);
    all.extend(&terminal.shown);
    observer.wait_for_more(1_000, PATIENCE).unwrap();
    assert!(observer.bytes().starts_with(&all));
    assert_eq!(observer.violations(), []);
}
