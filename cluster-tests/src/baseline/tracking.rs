// SPDX-License-Identifier: Apache-2.0
//! What it costs the guest that its changed pages are tracked: the same work before, while and after the guest is being copied away so
//! slowly that the copying itself costs next to nothing.

use std::fmt;

use anyhow::{Context, Result, ensure};

use crate::server_guest::ServerGuest;

const PROGRAM: &str = include_str!("tracking/work.c");

/// Memory whose pages are written to. Not much of the guest's, much more than any cache of the emulation.
const WRITTEN_MIB: u32 = 64;
/// How often a file is compiled.
const COMPILED: u32 = 5;

/// How fast a guest works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkFigures {
    /// Pages a second that one processor writes to, one byte each.
    pub written_pages_per_s: f64,
    /// Seconds that a compiler needs for one file.
    pub compile_s: f64,
}

impl WorkFigures {
    /// Measures a guest for some seconds.
    ///
    /// # Errors
    /// When the guest cannot be reached or a program of it fails.
    pub fn measure(guest: &ServerGuest<'_>, seconds: u32) -> Result<Self> {
        let script = format!(
            "set -e; cat >/var/tmp/work.c <<'END'\n{PROGRAM}END\n\
             cc -O2 -o /var/tmp/work /var/tmp/work.c; /var/tmp/work {WRITTEN_MIB} {seconds}; begin=$(date +%s.%N); \
             for i in $(seq {COMPILED}); do cc -O2 -o /var/tmp/again /var/tmp/work.c; done; \
             echo $(date +%s.%N) $begin | awk '{{ print ($1 - $2) / {COMPILED} }}'"
        );
        let text = guest.ssh(&script)?.success()?;
        let mut numbers = text.lines().map(|line| line.trim().parse::<f64>());
        let mut number = || {
            let number = numbers.next().context("A figure is missing")?;
            number.with_context(|| format!("Not figures: {text}"))
        };
        Ok(Self {
            written_pages_per_s: number()?,
            compile_s: number()?,
        })
    }
}

impl fmt::Display for WorkFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} pages/s written to, {:.2} s to compile a file",
            self.written_pages_per_s, self.compile_s
        )
    }
}

/// The same work without, with and again without tracking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrackingFigures {
    /// Before.
    pub off: WorkFigures,
    /// While the guest is being copied.
    pub on: WorkFigures,
    /// After that was given up.
    pub off_again: WorkFigures,
}

impl TrackingFigures {
    /// Measures a guest that runs elsewhere than on `to`, for so many seconds each time.
    ///
    /// # Errors
    /// When a program fails, or the copy ended while it was measured.
    pub fn measure(guest: &mut ServerGuest<'_>, to: &str, seconds: u32) -> Result<Self> {
        let off = WorkFigures::measure(guest, seconds)?;
        eprintln!("before it is copied: {:?}", guest.clock_report()?);
        guest.vm().copy_slowly(to)?;
        let on = WorkFigures::measure(guest, seconds)?;
        eprintln!("while it is copied: {:?}", guest.clock_report()?);
        let said = guest.vm().give_up_copy(to)?;
        ensure!(said.contains("copying"), "The copy did not last: {said}");
        let off_again = WorkFigures::measure(guest, seconds)?;
        Ok(Self { off, on, off_again })
    }
}

impl fmt::Display for TrackingFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tracking off: {}", self.off)?;
        writeln!(f, "tracking on: {}", self.on)?;
        write!(f, "tracking off again: {}", self.off_again)
    }
}
