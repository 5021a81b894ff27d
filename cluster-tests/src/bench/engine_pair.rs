// SPDX-License-Identifier: Apache-2.0
//! Two engine processes on this host, started by hand as README.md says, and what they say of themselves.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::console::Console;
use super::quantiles::Quantiles;
use crate::guests;

/// Nothing here takes longer on a sound machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The guest's memory.
    pub memory_mib: u32,
    /// The guest's CPUs. A bare guest uses one; the others wait to be started, but are stopped and saved all the same.
    pub vcpus: u8,
    /// What the guest is told.
    pub cmdline: String,
    /// Lines of `[replication]`.
    pub replication: String,
    /// Lines of `[memory]`.
    pub memory: String,
}

/// The engine's programs, which lie beside this one.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("Where is this program?")?;
    let beside = own.with_file_name(name);
    ensure!(
        beside.exists(),
        "{} is missing: `make bench` builds it",
        beside.display()
    );
    Ok(beside)
}

#[derive(Debug)]
struct Engine {
    directory: TempDir,
    child: Child,
}

impl Engine {
    fn start(description: &str, arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kemari-bench-").tempdir()?;
        let path = directory.path();
        // The sandbox's user reads the kernel.
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        let kernel = path.join("kernel");
        fs::copy(guests::pages(), &kernel)?;
        fs::set_permissions(&kernel, Permissions::from_mode(0o644))?;
        let config = path.join("vm.toml");
        fs::write(
            &config,
            description.replace("KERNEL", &kernel.display().to_string()),
        )?;
        let child = Command::new(program("kemari-engine")?)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .args(arguments)
            .env("KEMARI_RUN_DIR", path)
            .env("KEMARI_STATE_DIR", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path.join("log"))?)
            .spawn()
            .context("Cannot start kemari-engine")?;
        Ok(Self { directory, child })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn monitor(&self, line: &str) -> Result<String> {
        let output = Command::new(program("kemarictl")?)
            .args(["monitor", "vm"])
            .args(line.split(' '))
            .env("KEMARI_RUN_DIR", self.path())
            .output()
            .context("Cannot run kemarictl")?;
        ensure!(
            output.status.success(),
            "kemarictl monitor vm {line}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.path().join("vm.sock").exists() || self.monitor("info status").is_err() {
            if begun.elapsed() > PATIENCE || self.child.try_wait()?.is_some() {
                bail!("An engine did not come up:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An active engine whose guest runs, and one that waits for it.
#[derive(Debug)]
pub struct EnginePair {
    active: Engine,
    _passive: Engine,
    address: String,
    /// The guest's console.
    pub console: Console,
}

/// What `info migrate` says of the checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoints {
    /// How many were committed.
    pub committed: u64,
    /// Pages in the last one.
    pub last_pages: u64,
    /// How long the guest stood still for one.
    pub pause: Quantiles,
    /// From the end of an epoch to its commit.
    pub commit: Quantiles,
    /// How long the guest stood still in all.
    pub stopped: Duration,
    /// Bytes sent, the copy included.
    pub sent_kib: u64,
}

impl EnginePair {
    /// Starts both; the guest runs alone and has begun its rounds.
    ///
    /// # Errors
    /// When an engine or the guest does not come up.
    pub fn start(shape: &Shape) -> Result<Self> {
        let mut console = Console::listen()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let describe = |output: &str| {
            let mut text = format!(
                "[vm]\nname = \"vm\"\nmemory_mib = {}\nvcpus = {}\n[boot]\nkernel = \"KERNEL\"\ncmdline = {:?}\n\
                 [console]\noutput = {output:?}\n[sandbox]\nuser = \"nobody\"\n[replication]\nport = {port}\n",
                shape.memory_mib, shape.vcpus, shape.cmdline
            );
            let _ = writeln!(text, "{}\n[memory]\n{}", shape.replication, shape.memory);
            text
        };
        let address = format!("kemari:tcp:127.0.0.1:{port}");
        let mut passive = Engine::start(
            &describe("none"),
            &["--node", "passive", "--incoming", &address],
        )?;
        passive.wait_ready()?;
        let mut active = Engine::start(&describe(&console.sink()?), &["--node", "active"])?;
        active.wait_ready()?;
        console
            .wait_for("PAGES START\n")
            .with_context(|| active.log())?;
        Ok(Self {
            active,
            _passive: passive,
            address,
            console,
        })
    }

    /// Protects the guest and waits for the first commit. Gives how long that took.
    ///
    /// # Errors
    /// When the pair does not come about.
    pub fn protect(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.active.monitor(&format!("migrate {}", self.address))?;
        Ok(begun.elapsed())
    }

    /// What the checkpoints have been like.
    ///
    /// # Errors
    /// When the engine does not say.
    pub fn checkpoints(&self) -> Result<Checkpoints> {
        let text = self.active.monitor("info migrate")?;
        Checkpoints::read(&text).with_context(|| format!("info migrate says:\n{text}"))
    }
}

impl Checkpoints {
    fn read(text: &str) -> Option<Self> {
        let line = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let number = |name: &str| line(name)?.split(' ').next()?.parse::<u64>().ok();
        let quantiles = |name: &str| {
            let (median, p99) = line(name)?.split_once(" us median, ")?;
            Some(Quantiles {
                p50: Duration::from_micros(median.parse().ok()?),
                p99: Duration::from_micros(p99.strip_suffix(" us p99")?.parse().ok()?),
            })
        };
        Some(Self {
            committed: number("checkpoints")?,
            last_pages: number("pages in the last checkpoint")?,
            pause: quantiles("guest stopped per checkpoint")?,
            commit: quantiles("cut to commit")?,
            stopped: Duration::from_micros(number("guest stopped in all")?),
            sent_kib: number("transferred")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_monitor_says_is_read_and_anything_else_is_not() {
        let text = "Migration status: active (continuous)\ncheckpoints: 12\ntransferred: 345 KiB\n\
                    pages in the last checkpoint: 100\nguest stopped per checkpoint: 80 us median, 1200 us p99\n\
                    guest stopped in all: 1700 us\ncut to commit: 400 us median, 900 us p99\n";
        let read = Checkpoints::read(text).unwrap();
        assert_eq!(
            (read.committed, read.last_pages, read.sent_kib),
            (12, 100, 345)
        );
        assert_eq!(read.pause.p99, Duration::from_micros(1200));
        assert_eq!(read.stopped, Duration::from_micros(1700));
        assert_eq!(Checkpoints::read(&text.replace("us p99", "p99")), None);
    }
}
