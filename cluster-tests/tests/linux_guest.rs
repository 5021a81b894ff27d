// SPDX-License-Identifier: Apache-2.0
//! The Linux guest in QEMU's emulation: an independent machine that knows nothing of Kemari.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kemari_cluster_tests::linux_guest;

/// Killed when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_linux_guest_writes_its_ledger() {
    let guest = linux_guest::ensure().unwrap();
    let begin = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max,la57=off",
            "-machine",
            "pc,acpi=off",
        ])
        .args(["-m", "128", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initramfs)
        .args(["-append", &linux_guest::command_line(20)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let guest = Guest(child);
    let mut console = Vec::new();
    let mut buffer = [0; 4096];
    while console.iter().filter(|byte| **byte == b'\n').count() < 30 {
        assert!(
            begin.elapsed() < Duration::from_secs(240),
            "{}",
            String::from_utf8_lossy(&console)
        );
        let count = output.read(&mut buffer).unwrap();
        assert_ne!(
            count,
            0,
            "QEMU ended: {}",
            String::from_utf8_lossy(&console)
        );
        console.extend_from_slice(&buffer[..count]);
    }
    drop(guest);
    eprintln!("30 lines after {} ms", begin.elapsed().as_millis());
    let text = String::from_utf8(console).unwrap();
    let ledger = &text[text.find("LEDGER START\n").expect("it started")..];
    assert!(!text.contains('\r'), "the console is not raw: {text:?}");
    for (line, number) in ledger.lines().skip(1).take(25).zip(1u64..) {
        let (count, stamp) = line.split_once(' ').unwrap();
        assert_eq!(
            (count, stamp.len()),
            (number.to_string().as_str(), 16),
            "{line}"
        );
        assert!(u64::from_str_radix(stamp, 16).unwrap() > 0);
    }
}
