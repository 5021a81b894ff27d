// SPDX-License-Identifier: Apache-2.0
//! The bare guests: small machines that poll, built from `guests/` when this crate is built.
//!
//! Each is a 64-bit ELF file with a PVH entry note, loaded at 1 MiB, about 10 KiB large, and needs
//! 2 MiB of memory (plus 4 KiB for each page it is told to dirty). They use COM1 at 0x3f8 and the
//! ACPI PM1a ports 0x600 and 0x604, and no interrupt.
//!
//! From the console `q` powers them off and `r` resets them; the ACPI power button powers them off.

use std::path::Path;

/// Numbered lines `<n> <time stamp counter>`, as fast as the console takes them.
///
/// Command line: `interval=N` (iterations of an empty loop between lines, default 0), `pages=N`
/// (pages rewritten and verified before each line, default 0), `disk=N` (sectors of the first virtio
/// disk that are written and verified, default 0: none). See [`crate::ledger`].
pub fn ledger() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/ledger"))
}

/// [`ledger`] with 256 pages rewritten and verified before each line.
pub fn dirty() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/dirty"))
}

/// Prints `HELLO <command line>` and powers off.
pub fn hello() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/hello"))
}

/// Prints `HALT` and halts its vCPU with interrupts off, for ever.
pub fn halt() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/halt"))
}

/// Checks devices behind ports, prints `PIO OK` or `PIO BAD …` lines, and powers off.
pub fn pio() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/pio"))
}

/// Writes to the same pages round after round and is silent; what is typed comes back.
///
/// Command line: `pages=N` (written to in each round, default 0), `fill=N` (given a word that is not zero once, before that, default
/// 0), `quiet=N` (iterations of an empty loop after each round, default 0). Prints `PAGES START` when the rounds begin.
pub fn pages() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/pages"))
}
