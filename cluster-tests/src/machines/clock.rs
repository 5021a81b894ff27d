// SPDX-License-Identifier: Apache-2.0
//! How fast the time stamp counter of this host counts, which is that of its emulated machines too.
//!
//! A machine's kernel measures the counter against an emulated timer. On a busy host that goes wrong by factors: a
//! node's clock was seen to run six times too fast, and every time-out of its cluster with it. So the machine is
//! told; the kernel then corrects by at most one percent (Linux, `arch/x86/kernel/tsc.c`).

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::{self, Key};

const PROGRAM: &str = include_str!("host-tsc.c");

/// The counter's rate in kHz; `None` where it is not constant, so that machines must use a slower clock.
///
/// # Errors
/// When the measuring program cannot be built or run.
pub(super) fn tsc_khz() -> Result<Option<u64>> {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "constant_tsc") {
        return Ok(None);
    }
    let directory = cache::obtain("host-tsc", &Key::new().with(PROGRAM.as_bytes()), |into| {
        let source = into.join("host-tsc.c");
        fs::write(&source, PROGRAM).context("Cannot write a source file")?;
        let status = Command::new("gcc")
            .args(["-O2", "-o"])
            .args([&into.join("host-tsc"), &source])
            .status()
            .context("Cannot run gcc; is its package installed?")?;
        ensure!(status.success(), "gcc ended with {status}");
        Ok(())
    })?;
    let output = Command::new(directory.join("host-tsc"))
        .output()
        .context("Cannot run host-tsc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let khz: u64 = text.trim().parse().context("host-tsc gave no number")?;
    // The slowest x86-64 processors and more than the fastest.
    ensure!(
        (100_000..20_000_000).contains(&khz),
        "The time stamp counter cannot count {khz} kHz"
    );
    Ok(Some(khz))
}
