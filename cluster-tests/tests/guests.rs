// SPDX-License-Identifier: Apache-2.0
//! The bare guests in QEMU's emulation: an independent machine that knows nothing of Kemari.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kemari_cluster_tests::{guests, ledger};

const QEMU: &str = "qemu-system-x86_64";

/// A guest under QEMU with its console on our pipes; killed when dropped.
struct Guest(Child);

impl Guest {
    /// `None`, with a word about it, where there is no QEMU.
    fn boot(guest: &Path, command_line: &str, more: &[&str]) -> Option<Self> {
        let mut qemu = Command::new(QEMU);
        qemu.args([
            "-accel",
            "tcg",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        qemu.args(["-m", "64"])
            .args(more)
            .arg("-kernel")
            .arg(guest)
            .args(["-append", command_line]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        match qemu.spawn() {
            Ok(child) => Some(Self(child)),
            Err(error) => {
                println!("SKIPPED: {QEMU}: {error} (Debian: qemu-system-x86)");
                None
            }
        }
    }

    fn type_in(&mut self, text: &str) {
        let console = self.0.stdin.as_mut().expect("it is piped");
        console
            .write_all(text.as_bytes())
            .expect("QEMU reads its console");
    }

    /// Reads until the console holds this many bytes.
    fn read_at_least(&mut self, length: usize, console: &mut Vec<u8>) {
        let output = self.0.stdout.as_mut().expect("it is piped");
        let mut buffer = [0; 4096];
        while console.len() < length {
            let count = output.read(&mut buffer).expect("QEMU runs");
            assert_ne!(count, 0, "QEMU ended: {}", String::from_utf8_lossy(console));
            console.extend_from_slice(&buffer[..count]);
        }
    }

    /// Everything until it ends by itself.
    fn read_to_end(&mut self, console: &mut Vec<u8>) {
        self.0
            .stdout
            .as_mut()
            .expect("it is piped")
            .read_to_end(console)
            .expect("QEMU runs");
        assert!(self.0.wait().expect("it is our child").success());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn console_of(guest: &Path, command_line: &str) -> Option<String> {
    let mut console = Vec::new();
    Guest::boot(guest, command_line, &[])?.read_to_end(&mut console);
    Some(String::from_utf8(console).expect("guests write ASCII"))
}

#[test]
fn hello_repeats_its_command_line_and_powers_off() {
    let Some(console) = console_of(guests::hello(), "one two=3") else {
        return;
    };
    assert_eq!(console, "HELLO one two=3\n");
}

#[test]
fn pio_finds_nothing_wrong_with_qemu() {
    let Some(console) = console_of(guests::pio(), "") else {
        return;
    };
    assert_eq!(console, "PIO OK\n");
}

#[test]
fn too_many_pages_are_refused() {
    let Some(console) = console_of(guests::dirty(), "pages=16000") else {
        return;
    };
    assert!(console.starts_with("ERROR more pages"), "{console}");
}

#[test]
fn halt_says_so_and_stays() {
    let Some(mut guest) = Guest::boot(guests::halt(), "", &[]) else {
        return;
    };
    let mut console = Vec::new();
    guest.read_at_least(5, &mut console);
    assert_eq!(console, b"HALT\n");
    assert!(guest.0.try_wait().expect("it is our child").is_none());
}

#[test]
fn ledgers_are_kept_until_the_console_ends_them() {
    for (guest, command_line) in [
        (guests::ledger(), "interval=10"),
        (guests::ledger(), "x pages=3"),
        (guests::dirty(), ""),
    ] {
        let Some(mut guest) = Guest::boot(guest, command_line, &[]) else {
            return;
        };
        let mut console = Vec::new();
        guest.read_at_least(20_000, &mut console);
        guest.type_in("q");
        guest.read_to_end(&mut console);
        let summary = ledger::check(&console).expect("QEMU loses nothing");
        assert!(summary.lines > 700, "{summary:?}");
        assert_eq!((summary.backward, summary.unfinished), (0, 0));
    }
}

#[test]
fn a_reset_starts_a_new_ledger() {
    let Some(mut guest) = Guest::boot(guests::dirty(), "pages=8", &[]) else {
        return;
    };
    let mut console = Vec::new();
    guest.read_at_least(2_000, &mut console);
    guest.type_in("r");
    let length = console.len() + 20_000;
    guest.read_at_least(length, &mut console);
    guest.type_in("q");
    guest.read_to_end(&mut console);
    assert!(matches!(
        ledger::check(&console),
        Err(ledger::LedgerError::Restarted { .. })
    ));
    assert_eq!(
        ledger::check_with_resets(&console)
            .expect("two ledgers")
            .boots,
        2
    );
}
