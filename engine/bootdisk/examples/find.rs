// SPDX-License-Identifier: Apache-2.0
//! Says what a disk image boots, and writes kernel and initrd into a directory if one is given.
//!
//! `cargo run -p kemari-bootdisk --example find -- DISK [DIRECTORY]`

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("find: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let disk = arguments.next().ok_or("usage: find DISK [DIRECTORY]")?;
    let files = kemari_bootdisk::find(disk.as_ref())?;
    println!("{}", files.described);
    println!("{}", files.cmdline);
    if let Some(directory) = arguments.next() {
        let directory = Path::new(&directory);
        std::fs::write(directory.join("kernel"), &files.kernel)?;
        if let Some(initrd) = &files.initrd {
            std::fs::write(directory.join("initrd"), initrd)?;
        }
    }
    Ok(())
}
