// SPDX-License-Identifier: Apache-2.0
//! Builds the bare guests of `guests/` from source with gcc, as and ld.
//!
//! The guests run 32-bit code (a PVH guest begins there, and they never leave) inside 64-bit ELF
//! files (loaders of direct-boot kernels read no other). gcc has no option for that pair, so the C
//! is compiled to 32-bit assembly, marked `.code32`, and assembled into 64-bit objects. No libc and
//! no multilib package is needed. `CC`, `AS` and `LD` name other tools.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A guest: its file name, its source, and what the preprocessor is told.
const GUESTS: [(&str, &str, &[&str]); 6] = [
    ("ledger", "ledger.c", &[]),
    ("dirty", "ledger.c", &["-DDEFAULT_PAGES=256"]),
    ("hello", "hello.c", &[]),
    ("halt", "halt.c", &[]),
    ("pio", "pio.c", &[]),
    ("pages", "pages.c", &[]),
];

/// What every guest is linked with.
const SHARED: [&str; 3] = ["console.c", "boot.c", "disk.c"];

const CFLAGS: [&str; 17] = [
    "-m32",
    "-march=i686",
    "-O2",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-nostdlib",
    "-fno-pic",
    "-no-pie",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    // A loop that copies or fills must not become a call of memcpy or memset: there is no libc.
    "-fno-tree-loop-distribute-patterns",
    "-S",
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=guests");
    for tool in ["CC", "AS", "LD"] {
        println!("cargo::rerun-if-env-changed={tool}");
    }
    let sources = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("guests");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let start = assemble(&sources.join("start.S"), &out.join("start"))?;
    for (name, source, defines) in GUESTS {
        let mut objects = vec![start.clone()];
        for file in SHARED.iter().copied().chain([source]) {
            objects.push(compile(&sources.join(file), &out, name, defines)?);
        }
        link(&sources.join("guest.ld"), &objects, &out.join(name))?;
    }
    Ok(())
}

/// C to an object: 32-bit assembly first, then [`assemble`].
fn compile(source: &Path, out: &Path, guest: &str, defines: &[&str]) -> Result<PathBuf> {
    let stem = source.file_stem().ok_or("a guest source has no name")?;
    let target = out.join(format!("{guest}-{}", stem.display()));
    let assembly = target.with_extension("s");
    let mut gcc = tool("CC", "gcc");
    gcc.args(CFLAGS).args(defines).arg(source);
    run(gcc.arg("-o").arg(&assembly))?;
    assemble(&assembly, &target)
}

/// 32-bit assembly to a 64-bit object.
fn assemble(source: &Path, target: &Path) -> Result<PathBuf> {
    let marked = target.with_extension("code32.s");
    fs::write(&marked, format!(".code32\n{}", fs::read_to_string(source)?))?;
    let object = target.with_extension("o");
    run(tool("AS", "as")
        .args(["--64", "-o"])
        .arg(&object)
        .arg(&marked))?;
    Ok(object)
}

fn link(script: &Path, objects: &[PathBuf], target: &Path) -> Result<()> {
    let mut ld = tool("LD", "ld");
    ld.args(["-m", "elf_x86_64", "-nostdlib", "-static"]);
    ld.args([
        "--fatal-warnings",
        "--build-id=none",
        "-z",
        "noexecstack",
        "-T",
    ]);
    run(ld.arg(script).args(objects).arg("-o").arg(target))
}

fn tool(variable: &str, otherwise: &str) -> Command {
    Command::new(env::var(variable).unwrap_or_else(|_| otherwise.to_owned()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| {
        format!(
            "{command:?}: {error}; the bare guests need gcc and binutils (Debian: build-essential)"
        )
    })?;
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok(())
}
